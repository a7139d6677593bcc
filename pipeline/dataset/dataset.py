"""A published dataset, opened for reading: its pinned version, shards, blocks and samples."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.base.errors import NotFound
from pipeline.base.parsing import parse_json
from pipeline.dataset.schema import POINTER_KEY, ManifestVersion, is_adopted, sha256_hex, version_key
from pipeline.dataset.tables import read_table
from pipeline.dataset.versions import outstanding_rejects, parsed_version, published_version, refuse_datasets_below
from pipeline.store.base import Store, check_key, is_absolute, read_checked
from pipeline.store.url import open_store

SIDECAR_CACHE_BYTES = 32_000_000  # decoded, of a dataset; a choice: those of about 100 shards of 2,300 samples
_SEARCHED_FILES = 100_000  # of a folder without a manifest, for datasets below it; S3 lists 1,000 a request


@dataclass(frozen=True)
class Address:
    """Where a sample lies: everything that happens to it is a function of this and a seed."""

    shard: int
    row: int


class Dataset:
    """One version of a dataset. Open with `open_dataset`; safe for threads; may be pickled."""

    def __init__(self, store: Store, version: ManifestVersion) -> None:
        self.store = store
        self.version = version
        self._sidecars: OrderedDict[int, pa.Table] = OrderedDict()
        self._sidecar_bytes = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Dataset, (self.store, self.version)

    @cached_property
    def shards(self) -> "Shards":
        """Rows of schema.SHARD_SCHEMA, by shard number.

        Raises:
            CorruptShard: Its bytes are not those of the manifest, or it names files elsewhere.
        """
        table = self._checked_table(self.version.shards, self.version.shards_sha256)
        for path, sidecar in zip(table["path"].to_pylist(), table["sidecar"].to_pylist(), strict=True):
            check_key(self.store.url, sidecar)
            if not (is_adopted(sidecar) and is_absolute(path)):  # only the tars of an index may lie elsewhere
                check_key(self.store.url, path)
        return Shards(table)

    @cached_property
    def blocks(self) -> pa.Table:
        """Table of schema.BLOCK_SCHEMA, in shard order."""
        return self._checked_table(self.version.blocks, self.version.blocks_sha256)

    @cached_property
    def rejects(self) -> pa.Table:
        """Rows that could not be used and were not packed since, a table of schema.REJECT_SCHEMA."""
        return outstanding_rejects(self.store, self.version)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names by label; numbers as text where the dataset has no names."""
        key = self.version.classes
        if not key:
            return tuple(str(label) for label in range(self.version.num_classes))
        body = read_checked(self.store, key, str(self.version.classes_sha256))
        return tuple(map(str, parse_json(body, f"{self.store.url}/{key}", list)))

    def class_name(self, label: int) -> str:
        """Return the name of a label, or its number where it has none."""
        return self.classes[label] if label < len(self.classes) else str(label)

    @property
    def classes_sha256(self) -> str:
        """Digest of the class names in order: equal numbers of classes need not be equal classes."""
        return sha256_hex("\n".join(self.classes).encode())

    def samples(self, shard: int) -> pa.Table:
        """Return a shard's sidecar, a table of schema.SAMPLE_SCHEMA.

        Those used last are kept, up to SIDECAR_CACHE_BYTES together.

        Raises:
            CorruptShard: Its bytes are not those of the manifest.
        """
        held = self.held_samples(shard)
        if held is not None:
            return held
        row = self.shards[shard]
        table = self._checked_table(row["sidecar"], row["sidecar_sha256"])
        with self._lock:
            if shard not in self._sidecars:  # another thread may have read it meanwhile
                self._sidecars[shard] = table
                self._sidecar_bytes += table.nbytes
            while self._sidecar_bytes > SIDECAR_CACHE_BYTES:
                self._sidecar_bytes -= self._sidecars.popitem(last=False)[1].nbytes
        return table

    def held_samples(self, shard: int) -> pa.Table | None:
        """Return a shard's sidecar if it is one of those that are kept."""
        with self._lock:
            if shard in self._sidecars:
                self._sidecars.move_to_end(shard)
            return self._sidecars.get(shard)

    def all_samples(self, columns: list[str]) -> pa.Table:
        """Return the named sidecar columns of all samples, with `shard` and `row` in front."""
        parts = []
        for row in self.shards:
            table = self.samples(row["shard"]).select(columns)
            address = [
                pa.array(np.full(table.num_rows, row["shard"], np.int32)),
                pa.array(np.arange(table.num_rows, dtype=np.int32)),
            ]
            parts.append(pa.table([*address, *table.columns], names=["shard", "row", *columns]))
        return pa.concat_tables(parts)

    def shard_path(self, shard: int) -> str:
        """Return the key of a shard's tar, or its absolute URL where it lies elsewhere."""
        return self._paths[shard]

    @cached_property
    def _paths(self) -> list[str]:
        # A row of the table takes 58 us, one of these 0.2.
        paths: list[str] = self.shards.table["path"].to_pylist()
        return paths

    def is_trusted(self, shard: int) -> bool:
        """Return whether a shard's tar is our own, and all its images were decoded before they were packed into it.

        An image of any other tar is decoded by libjpeg alone: see pipeline/image/jpeg_region/README.md.
        """
        return self._are_trusted[shard]

    @cached_property
    def _are_trusted(self) -> list[bool]:
        sidecars: list[str] = self.shards.table["sidecar"].to_pylist()
        was_decoded = self.version.descriptor is not None
        return [was_decoded and not is_adopted(sidecar) for sidecar in sidecars]

    def shard_url(self, shard: int) -> str:
        """Return the absolute URL of a shard's tar."""
        path = self.shard_path(shard)
        return path if is_absolute(path) else f"{self.store.url}/{path}"

    def read_span(self, shard: int, offset: int, num_bytes: int) -> bytes:
        """Return a byte range of a shard's tar."""
        return self.store.read_range(self.shard_path(shard), offset, num_bytes)

    def read_image(self, address: Address) -> bytes:
        """Return the encoded image of one sample."""
        sample = self.sample(address)
        return self.read_span(address.shard, sample["image_offset"], sample["image_bytes"])

    def read_about(self, address: Address) -> dict[str, Any]:
        """Return the JSON member of one sample: source, labels, size and extra columns; empty where it has none."""
        sample = self.sample(address)
        if not sample["json_bytes"]:
            return {}
        body = self.read_span(address.shard, sample["json_offset"], sample["json_bytes"])
        return parse_json(body, f"{self.shard_url(address.shard)}: {sample['key']}.json", dict)

    def sample(self, address: Address) -> dict[str, Any]:
        """Return one row of a sidecar."""
        row: dict[str, Any] = self.samples(address.shard).slice(address.row, 1).to_pylist()[0]
        return row

    def _checked_table(self, key: str, sha256: str) -> pa.Table:
        check_key(self.store.url, key)
        return read_table(self.store, key, sha256)


class Shards(Sequence[dict[str, Any]]):
    """Rows of schema.SHARD_SCHEMA; each becomes a dictionary when it is asked for, since there may be 131 k."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table.combine_chunks()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"shard {index} of {len(self)}")
        row: dict[str, Any] = self.table.slice(index % len(self), 1).to_pylist()[0]
        return row

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.table.to_batches(max_chunksize=4096):
            yield from batch.to_pylist()


def open_dataset(url: str, version: int | None = None) -> Dataset:
    """Open a dataset at its latest version, or pinned to one.

    Raises:
        NotFound: Nothing is published there, or no such version.
        ConfigError: The dataset's format is not one this release reads; or there are datasets below the folder.
    """
    store = open_store(url)
    latest = published_version(store)
    if latest is None:
        refuse_datasets_below(store.url, (entry.key for entry in islice(store.walk(), _SEARCHED_FILES)))
        raise NotFound(f"{url} holds no published dataset (no {POINTER_KEY}); create one with `pipeline shard`")
    if version is None or version == latest.version.version:
        return Dataset(store, latest.version)
    try:
        body = store.read(version_key(version))
    except NotFound as error:
        raise NotFound(f"{url} has the versions 1 to {latest.version.version}, not {version}") from error
    return Dataset(store, parsed_version(body, f"{url}/{version_key(version)}"))


def label_matrix(labels: list[list[int]], num_classes: int) -> npt.NDArray[np.float32]:
    """Return multi-hot targets, shape (samples, classes), from lists of labels."""
    targets = np.zeros((len(labels), num_classes), np.float32)
    for row, sample_labels in enumerate(labels):
        targets[row, sample_labels] = 1.0
    return targets
