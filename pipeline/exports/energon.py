"""Megatron-Energon: `.nv-meta/` at the root and `SHARD.tar.idx` beside each shard, as `energon prepare` writes them."""

import tempfile
import uuid
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from pipeline.base.records import json_bytes
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.tar_reader import IMAGE_EXTENSIONS
from pipeline.exports.base import Export, Written
from pipeline.exports.energon_files import dataset_yaml, split_yaml, tar_index
from pipeline.exports.energon_sqlite import SampleIndex
from pipeline.exports.labels import label_place
from pipeline.exports.shard_tar import ShardTar
from pipeline.store.base import exists, put

_VERSION = "7.4.1"
_FOLDER = ".nv-meta/"
_DATASET_KEY, _SPLIT_KEY = f"{_FOLDER}dataset.yaml", f"{_FOLDER}split.yaml"
_SQLITE_KEY, _UUID_KEY = f"{_FOLDER}index.sqlite", f"{_FOLDER}index.uuid"
# 274 bytes and 15 us a sample: 5 GB here, 82 GB of scratch space at 300 M samples, for joins that few use.
_MOST_INDEXED_SAMPLES = 20_000_000
_COPY_BYTES = 8 << 20


class Energon(Export):
    """See Export."""

    hand_written = (_DATASET_KEY, _SPLIT_KEY)

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self._counts: dict[str, int] = {}
        self._splits: defaultdict[str, list[str]] = defaultdict(list)
        self._excluded: list[str] = []
        self._extensions: set[str] = set()
        self._place: str | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="energon-")
        self._index = self._new_index()

    def _new_index(self) -> SampleIndex | None:
        """Return the index to fill, unless the one that is there is of these shards, or it would be too large."""
        if self._dataset.version.num_samples > _MOST_INDEXED_SAMPLES or self._has_index():
            return None
        return SampleIndex(Path(self._scratch.name, "index.sqlite"))

    def _uuid(self) -> bytes:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, self._dataset.version.shards_sha256)).encode()

    def _has_index(self) -> bool:
        store = self._dataset.store
        return exists(store, _UUID_KEY) and store.read(_UUID_KEY) == self._uuid() and exists(store, _SQLITE_KEY)

    def of_shard(self, shard: ShardTar) -> Iterator[tuple[str, bytes]]:
        """See Export.of_shard."""
        yield f"{shard.path}.idx", tar_index(shard.layout)

    def add(self, shard: ShardTar) -> None:
        """See Export.add."""
        if self._place is None:
            self._place = label_place(self._dataset, shard)
        self._counts[shard.path] = len(shard.layout.samples)
        self._splits[shard.split].append(shard.path)
        for sample in shard.layout.samples:
            if not sample.is_listed:
                self._excluded.append(f"{shard.path}/{sample.key}")
            self._extensions |= {m.extension for m in sample.members if m.extension.lower() in IMAGE_EXTENSIONS}
        if self._index:
            self._index.add(len(self._counts) - 1, shard.layout)

    def finish(self) -> Written:
        """See Export.finish."""
        store = self._dataset.store
        has_index = self._finish_index()
        put(store, _DATASET_KEY, dataset_yaml(self._extensions, self._place or ""))
        put(store, _SPLIT_KEY, split_yaml(self._splits, self._excluded))
        info = {"energon_version": _VERSION, "shard_counts": self._counts}
        put(store, f"{_FOLDER}.info.json", json_bytes(info, end=""))
        joins = "" if has_index else "; for joins run `energon prepare --tar-index-only`"
        return Written("energon", _DATASET_KEY, f'megatron.energon.get_train_dataset("{self._url}", ...){joins}')

    def close(self) -> None:
        """See Export.close."""
        if self._index:
            self._index.close()
        self._scratch.cleanup()

    def _finish_index(self) -> bool:
        """Put the index in its place, or remove that of another version; return whether there is one."""
        store = self._dataset.store
        if self._index is None and self._has_index():
            return True
        # The uuid names the shards of an index, so it is deleted first and written last.
        store.delete(_UUID_KEY)
        store.delete(_SQLITE_KEY)
        if self._index is None or self._index.has_repeated_keys:
            return False
        self._index.finish()
        with store.writer(_SQLITE_KEY) as writer, self._index.path.open("rb") as file:
            while chunk := file.read(_COPY_BYTES):
                writer.write(chunk)
            writer.finish()
        put(store, _UUID_KEY, self._uuid())
        return True
