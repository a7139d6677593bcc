"""A published dataset, opened for reading: its pinned version, shards, blocks and samples."""

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import ConfigError, CorruptShard, NotFound
from pipeline.manifest import FORMAT, POINTER_KEY, ManifestVersion, from_parquet, json_offset, sha256_hex, version_key
from pipeline.store.base import Store
from pipeline.store.url import open_store

_CACHED_SIDECARS = 64  # about 3 MB of Parquet each at 2,300 samples once decoded


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
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Dataset, (self.store, self.version)

    @cached_property
    def shards(self) -> list[dict[str, Any]]:
        """Rows of manifest.SHARD_SCHEMA, by shard number."""
        rows: list[dict[str, Any]] = self._checked_table(self.version.shards, self.version.shards_sha256).to_pylist()
        return rows

    @cached_property
    def blocks(self) -> pa.Table:
        """Table of manifest.BLOCK_SCHEMA, in shard order."""
        return self._checked_table(self.version.blocks, self.version.blocks_sha256)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names by label; numbers as text where the dataset has no names."""
        if not self.version.classes:
            return tuple(str(label) for label in range(self.version.num_classes))
        return tuple(json.loads(self._checked(self.version.classes, str(self.version.classes_sha256))))

    @property
    def classes_sha256(self) -> str:
        """Digest of the class names in order: equal numbers of classes need not be equal classes."""
        return sha256_hex("\n".join(self.classes).encode())

    def samples(self, shard: int) -> pa.Table:
        """Gives a shard's sidecar, a table of manifest.SAMPLE_SCHEMA.

        Raises:
            CorruptShard: Its bytes are not those of the manifest.
        """
        with self._lock:
            if shard in self._sidecars:
                self._sidecars.move_to_end(shard)
                return self._sidecars[shard]
        row = self.shards[shard]
        table = self._checked_table(row["sidecar"], row["sidecar_sha256"])
        with self._lock:
            self._sidecars[shard] = table
            while len(self._sidecars) > _CACHED_SIDECARS:
                self._sidecars.popitem(last=False)
        return table

    def all_samples(self, columns: list[str]) -> pa.Table:
        """Gives the named sidecar columns of all samples, with `shard` and `row` in front."""
        parts = []
        for row in self.shards:
            table = self.samples(row["shard"]).select(columns)
            address = [
                pa.array(np.full(table.num_rows, row["shard"], np.int32)),
                pa.array(np.arange(table.num_rows, dtype=np.int32)),
            ]
            parts.append(pa.table([*address, *table.columns], names=["shard", "row", *columns]))
        return pa.concat_tables(parts)

    def read_span(self, shard: int, offset: int, num_bytes: int) -> bytes:
        """Gives a byte range of a shard's tar."""
        return self.store.read_range(self.shards[shard]["path"], offset, num_bytes)

    def read_block(self, shard: int, offset: int, num_bytes: int, crc32c: int) -> bytes:
        """Gives one whole block, checked.

        Raises:
            CorruptShard: The checksum differs.
        """
        body = self.read_span(shard, offset, num_bytes)
        if google_crc32c.value(body) != crc32c:
            raise CorruptShard(
                f"{self.store.url}/{self.shards[shard]['path']}, bytes {offset} to {offset + num_bytes}: checksum "
                f"differs from the manifest; run `pipeline verify {self.store.url}`"
            )
        return body

    def read_image(self, address: Address) -> bytes:
        """Gives the encoded image of one sample."""
        sample = self.sample(address)
        return self.read_span(address.shard, sample["image_offset"], sample["image_bytes"])

    def read_about(self, address: Address) -> dict[str, Any]:
        """Gives the JSON member of one sample: source, labels, size and extra columns."""
        sample = self.sample(address)
        described: dict[str, Any] = json.loads(self.read_span(address.shard, json_offset(sample), sample["json_bytes"]))
        return described

    def sample(self, address: Address) -> dict[str, Any]:
        """Gives one row of a sidecar."""
        row: dict[str, Any] = self.samples(address.shard).slice(address.row, 1).to_pylist()[0]
        return row

    def _checked(self, key: str, sha256: str) -> bytes:
        body = self.store.read(key)
        if sha256_hex(body) != sha256:
            raise CorruptShard(f"{self.store.url}/{key}: checksum differs from the manifest; restore or rebuild it")
        return body

    def _checked_table(self, key: str, sha256: str) -> pa.Table:
        return from_parquet(self._checked(key, sha256))


def open_dataset(url: str, version: int | None = None) -> Dataset:
    """Opens a dataset at its latest version, or pinned to one.

    Raises:
        NotFound: Nothing is published there.
        ConfigError: The dataset's format is not one this release reads.
    """
    store = open_store(url)
    key = POINTER_KEY if version is None else version_key(version)
    try:
        body = store.read(key)
    except NotFound as error:
        if "bucket" in str(error):
            raise
        raise NotFound(f"{url} holds no published dataset (no {key}); make one with `pipeline shard`") from error
    if f'"{FORMAT}"'.encode() not in body:
        raise ConfigError(f"{url}/{key} is not of format {FORMAT}; read it with the release that wrote it")
    return Dataset(store, ManifestVersion.model_validate_json(body))


def label_matrix(labels: list[list[int]], num_classes: int) -> npt.NDArray[np.float32]:
    """Gives multi-hot targets, shape (samples, classes), from lists of labels."""
    targets = np.zeros((len(labels), num_classes), np.float32)
    for row, sample_labels in enumerate(labels):
        targets[row, sample_labels] = 1.0
    return targets
