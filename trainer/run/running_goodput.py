"""The goodput of a run while it trains: what was before this start, read once behind the loop, and its rows since."""

import logging
import threading
from dataclasses import fields

from pipeline.base.errors import StorageError
from pipeline.store.base import Store
from trainer.run.events import attempts, read_failures, start_times
from trainer.run.goodput import TimeClasses, time_classes
from trainer.run.metrics import MetricsReader, Row

logger = logging.getLogger(__name__)


class RunningGoodput:
    """Adds up where the time went, row by row."""

    def __init__(self, store: Store, attempt: str) -> None:
        """Begin to read what was before; returns at once.

        Args:
            store: The run's folder.
            attempt: Name of this start, which is recorded already.
        """
        self._store, self._attempt = store, attempt
        self._classes: TimeClasses | None = None
        self._last: tuple[float, int] | None = None
        self._waiting: list[Row] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, name="goodput", daemon=True)
        self._thread.start()

    def add(self, row: Row) -> float | None:
        """Take a row of this start, and return the goodput of the whole run; None while it is not known."""
        with self._lock:
            self._waiting.append(row)
            if self._classes is None:
                return None
            for each in self._waiting:
                self._add(self._classes, each)
            self._waiting = []
            return self._classes.goodput

    def _add(self, classes: TimeClasses, row: Row) -> None:
        if self._last is None:
            return
        at, step = self._last
        start = {"attempt": self._attempt, "first_step": step, "time": at}
        spent = time_classes([start], [row | {"attempt": self._attempt}])
        for field in fields(TimeClasses):
            setattr(classes, field.name, getattr(classes, field.name) + getattr(spent, field.name))
        self._last = row["time"], row["step"]

    def _read(self) -> None:
        try:
            starts = attempts(self._store)
            rows = [row for row in MetricsReader(self._store).all_rows() if row.get("attempt") != self._attempt]
            failures = [failure["time"] for failure in read_failures(self._store)]
            began = start_times(self._store)
        except StorageError as error:
            logger.warning("the goodput of this start is not reported: %s", error)
            return
        own = next((each for each in starts if each["attempt"] == self._attempt), None)
        with self._lock:
            self._classes = time_classes(starts, rows, failures, began)
            self._last = (own["time"], own["first_step"]) if own else None
