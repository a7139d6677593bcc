"""Cuts sorted rows into shards and writes them, a row group of a Parquet file a shard."""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.dataset.schema import PLAN_SCHEMA
from pipeline.packing.external_sort import scratch_errors
from pipeline.packing.plan import SHARDS_PER_PART, ShardConfig, cut, sample_bytes
from pipeline.packing.probe import Probe

# What makes a row what it is; not where it lies.
_IDENTITY = ("source", "container", "offset", "num_bytes", "labels", "extra")


class PlanWriter:
    """Takes rows in plan order.

    Attributes:
        paths: Files written, SHARDS_PER_PART shards each.
        shard_ends: End row of each shard.
        digests: Of the rows of each shard.
        num_rows: Rows taken.
        num_bytes: Expected, of all tars.
        used_labels: All that some row has.
    """

    def __init__(self, folder: Path, config: ShardConfig, probe: Probe) -> None:
        """Open a writer of files below `folder`, which must exist."""
        self._folder = folder
        self._config = config
        self._probe = probe
        self._pending = PLAN_SCHEMA.empty_table()
        self._part: pq.ParquetWriter | None = None
        self.paths: list[Path] = []
        self.shard_ends: list[int] = []
        self.digests: list[bytes] = []
        self.num_rows = self.num_bytes = 0
        self.used_labels: set[int] = set()

    def add(self, rows: pa.Table) -> None:
        """Add rows of schema.PLAN_SCHEMA; all whole shards are written, the rest waits for more."""
        pending = pa.concat_tables([self._pending, rows]).combine_chunks()
        sizes = self._sizes(pending)
        ends = cut(sizes, self._config.shard_bytes, self._config.max_samples_per_shard)
        start = 0
        for end in ends[:-1]:
            self._write(pending.slice(start, end - start))
            start = end
        self._pending = pending.slice(start)
        self.num_bytes += int(sizes[:start].sum())

    def close(self) -> None:
        """Write what is left."""
        if self._pending.num_rows:
            self.num_bytes += int(self._sizes(self._pending).sum())
            self._write(self._pending)
        if self._part:
            with scratch_errors(self._folder):
                self._part.close()

    def _sizes(self, rows: pa.Table) -> npt.NDArray[np.int64]:
        return sample_bytes(
            rows["num_bytes"].to_numpy().astype(np.int64), self._probe.mean_source_bytes, self._probe.stored_fraction
        )

    def _write(self, rows: pa.Table) -> None:
        rows = rows.combine_chunks()
        self.num_rows += rows.num_rows
        self.shard_ends.append(self.num_rows)
        self.digests.append(_digest(rows))
        labels = rows["labels"].combine_chunks().flatten()
        self.used_labels.update(pc.unique(labels).to_pylist())
        with scratch_errors(self._folder):
            if len(self.digests) % SHARDS_PER_PART == 1 or SHARDS_PER_PART == 1:
                if self._part:
                    self._part.close()
                self.paths.append(self._folder / f"rows-{len(self.paths):05d}.parquet")
                self._part = pq.ParquetWriter(self.paths[-1], PLAN_SCHEMA, compression="zstd", write_statistics=False)
            if self._part:
                self._part.write_table(rows, row_group_size=rows.num_rows)


def _digest(rows: pa.Table) -> bytes:
    """Return a digest of the values of the rows' identity, whatever Arrow's buffers look like."""
    digest = hashlib.sha256()
    for name in _IDENTITY:
        column = rows[name].combine_chunks()
        if pa.types.is_list(column.type):
            digest.update(pc.list_value_length(column).to_numpy().astype("<i4").tobytes())
            column = column.flatten()
        if pa.types.is_string(column.type):
            digest.update(pc.binary_length(column).to_numpy().astype("<i4").tobytes())
            digest.update("".join(column.to_pylist()).encode())
        else:
            digest.update(column.to_numpy().astype("<i8").tobytes())
    return digest.digest()
