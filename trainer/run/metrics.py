"""Rows of metrics in the run folder, as objects of JSON lines; without torch.

Each object is named by its first step and its start of the run, and never changes. Small ones are joined into one:
every row names its step and its start, so a row that is there twice is read once, and joining may end at any point.
"""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from pipeline.base.errors import NotFound, StorageError
from pipeline.base.parsing import parse_json
from pipeline.store.base import Entry, Store

logger = logging.getLogger(__name__)

Row = dict[str, Any]

_FOLDER = "metrics/"
_SMALL_BYTES = 1 << 20
_NUM_JOINED = 64  # a choice: 150,000 rows of 600 bytes become about 100 objects, each row is written two or three times
_FLUSH_SECONDS = 30.0  # a choice: what who watches a run has to wait for, against the number of requests
_READS = 5  # of a listing whose objects are joined meanwhile


def write_metrics(store: Store, attempt: str, rows: Sequence[Row]) -> None:
    """Store rows of one start of a run as one object; no error if it is there."""
    if rows:
        store.create(f"{_FOLDER}{rows[0]['step']:09d}-{attempt}.jsonl", _lines(json.dumps(row) for row in rows))


class MetricsReader:
    """Reads the rows of a run again and again; objects that it has seen are not read twice."""

    def __init__(self, store: Store) -> None:
        """Read from the folder of a run."""
        self._store = store
        self._seen: dict[str, list[Row]] = {}

    def all_rows(self) -> list[Row]:
        """Return every row once, those of lost steps too, in the order in which they were measured.

        Raises:
            NotFound: Objects vanished again and again while they were read.
        """
        for attempt in range(_READS):
            try:
                self._seen = {
                    entry.key: self._seen[entry.key] if entry.key in self._seen else _parsed(self._store, entry.key)
                    for entry in self._store.list(_FOLDER)
                }
                break
            except NotFound:  # joined since it was listed
                if attempt == _READS - 1:
                    raise
        rows: dict[tuple[str, int], Row] = {}
        for found in self._seen.values():
            for row in found:
                rows.setdefault((row.get("attempt", ""), row["step"]), row)
        began: dict[str, float] = {}
        for row in rows.values():
            name, at = row.get("attempt", ""), row.get("time", 0.0)
            began[name] = min(at, began.get(name, at))
        return sorted(rows.values(), key=lambda row: (*_start(row, began), row["step"]))


def _start(row: Row, began: dict[str, float]) -> tuple[float, str]:
    """Return a key that orders the starts of a run; rows of old releases name none, and come first."""
    name = row.get("attempt", "")
    return began[name], name


def kept_rows(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of the steps that the run has kept, by step.

    A start goes on from a checkpoint: what was measured before from its first row on was lost with the state behind it.

    Args:
        rows: In the order in which they were measured, start by start.
    """
    kept: list[Row] = []
    attempt: str | None = None
    for row in rows:
        if row.get("attempt", "") != attempt:
            attempt = row.get("attempt", "")
            while kept and kept[-1]["step"] >= row["step"]:
                kept.pop()
        kept.append(row)
    return kept


def read_metrics(store: Store) -> list[Row]:
    """Return the metric rows of a run by step; of a step that was measured twice, that of the latest start."""
    return kept_rows(MetricsReader(store).all_rows())


def to_join(entries: Iterable[Entry]) -> list[str]:
    """Return the keys of the small objects that are to become one, in their order; none while there are few."""
    small = [entry.key for entry in entries if entry.num_bytes < _SMALL_BYTES]
    return small if len(small) >= _NUM_JOINED else []


def join_small(store: Store) -> None:
    """Join small objects of rows into one, if there are many.

    It may end at any point, and several may do it at once: what is deleted is in another object by then.
    """
    keys = to_join(store.list(_FOLDER))
    if not keys:
        return
    try:
        lines = dict.fromkeys(line for key in keys for line in store.read(key).decode().splitlines())
    except NotFound:  # joined by another process
        return
    body = _lines(lines)
    first = keys[0].removeprefix(_FOLDER)[:9]
    joined = f"{_FOLDER}{first}-{hashlib.sha256(body).hexdigest()[:16]}.jsonl"
    store.create(joined, body)
    for key in keys:
        if key != joined:
            store.delete(key)


class MetricsWriter:
    """Writes the rows of a start: now and then by itself, in a thread, and when it is told to. Close it."""

    def __init__(self, store: Store, attempt: str) -> None:
        """Write to the folder of a run; `attempt` is the name of the start."""
        self._store, self._attempt = store, attempt
        self._rows: list[Row] = []
        self._of_rows, self._of_writing = threading.Lock(), threading.Lock()
        self._flushed = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="metrics")
        self._pending: Future[None] | None = None

    def add(self, row: Row) -> None:
        """Take a row; never waits for the store."""
        with self._of_rows:
            self._rows.append(row)
        if time.monotonic() - self._flushed >= _FLUSH_SECONDS and (self._pending is None or self._pending.done()):
            self._flushed = time.monotonic()
            self._pending = self._thread.submit(self._write_behind)

    def flush(self) -> None:
        """Write what is not written yet.

        Raises:
            StorageError: The store does not take it; the rows are kept for the next call.
        """
        self._flushed = time.monotonic()
        with self._of_writing:
            with self._of_rows:
                rows, self._rows = self._rows, []
            try:
                write_metrics(self._store, self._attempt, rows)
            except BaseException:
                with self._of_rows:
                    self._rows = rows + self._rows
                raise

    def close(self) -> None:
        """Write the rest, and end the thread.

        Raises:
            StorageError: The store does not take it.
        """
        self._thread.shutdown()
        self.flush()

    def _write_behind(self) -> None:
        try:
            self.flush()
            join_small(self._store)
        except StorageError as error:
            logger.warning("metrics are written later, since the store does not answer: %s", error)


def _parsed(store: Store, key: str) -> list[Row]:
    return [parse_json(line, f"{store.url}/{key}", dict) for line in store.read(key).splitlines()]


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
