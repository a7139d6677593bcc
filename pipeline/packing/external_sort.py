"""Sorting more rows than memory holds.

Rows come with two hashes, of their run and of their name. They are spread over 256 files by the first bits of the
run's hash; each file then fits memory, and files in order are rows in order. A set below 2 M rows stays in memory.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.base.errors import StorageFull
from pipeline.packing.plan import Hashes, window_of

_NUM_BUCKETS = 256
_BUCKET_BITS = 8
_MOST_ROWS = 2_000_000  # in memory before they are written out: about 500 MB with their copies
_MOST_BYTES = 400_000_000
NAME_HASH, RUN_HASH = "_name_hash", "_run_hash"


@contextmanager
def scratch_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk under the scratch folder into the error that names it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise StorageFull(
                f"no space left in the scratch folder {folder}; free some, or choose another with --scratch"
            ) from error
        raise


class ExternalSort:
    """An external sort. For one thread."""

    def __init__(self, folder: Path) -> None:
        """Open a sort that writes below `folder`, which must exist, what memory does not hold."""
        self._folder = folder
        self._pending: list[pa.Table] = []
        self._pending_rows = self._pending_bytes = 0
        self._writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        self._files: dict[int, pa.OSFile] = {}

    def add(self, rows: pa.Table, name_hashes: Hashes, run_hashes: Hashes) -> None:
        """Add rows of one schema; the hashes have shape (rows,)."""
        hashed = rows.append_column(NAME_HASH, pa.array(name_hashes)).append_column(RUN_HASH, pa.array(run_hashes))
        self._pending.append(hashed)
        self._pending_rows += rows.num_rows
        self._pending_bytes += rows.nbytes
        if self._pending_rows >= _MOST_ROWS or self._pending_bytes >= _MOST_BYTES:
            self._flush()

    def sorted_tables(self, windows: int) -> Iterator[pa.Table]:
        """Yield all rows in the order (window of the run, hash of the name, name), in tables of any size.

        Args:
            windows: A power of two; see plan.window_of.
        """
        if not self._writers:
            if self._pending:
                yield _in_order(pa.concat_tables(self._pending), windows)
            return
        self._flush()
        for writer in self._writers.values():
            writer.close()
        for file in self._files.values():
            file.close()
        buckets_per_table = max(1, _NUM_BUCKETS // windows)
        for first in range(0, _NUM_BUCKETS, buckets_per_table):
            found = [self._read(bucket) for bucket in range(first, first + buckets_per_table) if bucket in self._files]
            if found:
                yield _in_order(pa.concat_tables(found), windows)

    def _path(self, bucket: int) -> Path:
        return self._folder / f"bucket-{bucket:03d}.arrow"

    def _read(self, bucket: int) -> pa.Table:
        with pa.OSFile(str(self._path(bucket))) as file, pa.ipc.open_stream(file) as reader:
            table = reader.read_all()
        self._path(bucket).unlink()
        return table

    def _flush(self) -> None:
        if not self._pending:
            return
        rows = pa.concat_tables(self._pending).combine_chunks()
        self._pending, self._pending_rows, self._pending_bytes = [], 0, 0
        buckets = rows[RUN_HASH].to_numpy() >> np.uint64(64 - _BUCKET_BITS)
        order = np.argsort(buckets, kind="stable")
        rows = rows.take(pa.array(order))
        ends = np.searchsorted(buckets[order], np.arange(_NUM_BUCKETS), side="right").tolist()
        with scratch_errors(self._folder):
            for bucket, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
                if end > start:
                    self._writer(bucket, rows.schema).write_table(rows.slice(start, end - start))

    def _writer(self, bucket: int, schema: pa.Schema) -> pa.ipc.RecordBatchStreamWriter:
        if bucket not in self._writers:
            self._files[bucket] = pa.OSFile(str(self._path(bucket)), "wb")
            options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
            self._writers[bucket] = pa.ipc.new_stream(self._files[bucket], schema, options=options)
        return self._writers[bucket]


def _in_order(rows: pa.Table, windows: int) -> pa.Table:
    rows = rows.combine_chunks()
    names = rows[NAME_HASH].to_numpy()
    window = window_of(rows[RUN_HASH].to_numpy(), windows)
    order = np.lexsort((names, window))
    same = (names[order][1:] == names[order][:-1]) & (window[order][1:] == window[order][:-1])
    for start, end in _runs(same):
        order[start:end] = sorted(order[start:end].tolist(), key=lambda row: _tie_break(rows, row))
    return rows.take(pa.array(order))


def _runs(same: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each stretch of equal neighbours; same[i] is whether item i + 1 equals item i."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    for start, end in edges.reshape(-1, 2).tolist():
        yield start, end + 1


def _tie_break(rows: pa.Table, row: int) -> tuple[str, str]:
    """Return the sort key among rows of one hash: the name, then everything else that is known of the row."""
    values = rows.slice(row, 1).to_pylist()[0]
    return values["source"], repr(values)
