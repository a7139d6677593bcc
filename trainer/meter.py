"""The clock of a run: rows of metrics with rate, ETA and the share of time spent waiting for data."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Meter:
    """Collects rows; rate and waiting refer to the steps since the row before."""

    def __init__(self, first_step: int, num_steps: int, batch_size: int, num_samples: int) -> None:
        self._last_step = first_step
        self._num_steps = num_steps
        self._batch_size = batch_size
        self._num_samples = num_samples
        self._started = time.perf_counter()
        self._wait_seconds = 0.0
        self._rows: list[dict[str, Any]] = []

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        started = time.perf_counter()
        yield
        self._wait_seconds += time.perf_counter() - started

    def row(self, step: int, **values: float) -> dict[str, Any]:
        """Adds and gives a row after optimizer step `step` (the number of steps done)."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        steps_per_second = (step - self._last_step) / seconds
        row = {
            "step": step,
            "num_steps": self._num_steps,
            "epoch": round(step * self._batch_size / self._num_samples, 4),
            **values,
            "images_per_second": round(steps_per_second * self._batch_size, 1),
            "data_wait_fraction": round(self._wait_seconds / seconds, 4),
            "eta_seconds": round((self._num_steps - step) / max(steps_per_second, 1e-9)),
        }
        self._rows.append(row)
        self._last_step, self._started, self._wait_seconds = step, time.perf_counter(), 0.0
        return row

    def take_rows(self) -> list[dict[str, Any]]:
        """Gives the rows added since the last call."""
        rows, self._rows = self._rows, []
        return rows


def as_line(row: dict[str, Any]) -> str:
    """Gives a row as one line for people."""
    return (
        f"step {row['step']:,}/{row['num_steps']:,}  epoch {row['epoch']:.2f}  loss {row['loss']:.4f}  "
        f"accuracy {row['accuracy']:.3f}  lr {row['learning_rate']:.2e}  {row['images_per_second']:,.0f} images/s  "
        f"data wait {row['data_wait_fraction']:.0%}  {row['eta_seconds']:,} s left"
    )
