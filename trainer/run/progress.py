"""The clock of a run: rows of metrics with rate, ETA, the share of time spent waiting for data, and why."""

import json
import time
from collections.abc import Callable
from typing import Any

from pipeline.streaming.throughput import Lap

Report = Callable[[dict[str, Any]], None]  # takes a row of figures, on rank 0


class Meter:
    """Makes rows; the rate refers to the steps since the row before."""

    def __init__(
        self, first_step: int, num_steps: int, batch_size: int, num_samples: int, steps_ahead: int = 0
    ) -> None:
        self._last_step = first_step
        self._num_steps = num_steps
        self._batch_size = batch_size
        self._num_samples = num_samples
        self._steps_ahead = steps_ahead
        self._started = time.perf_counter()

    def row(self, step: int, lap: Lap, **values: float) -> dict[str, Any]:
        """Return a row after optimizer step `step` (the number of steps done).

        Args:
            step: Steps done.
            lap: What this rank's loader did since the row before. The rate and the ETA are the whole run's.
            values: What the step measured.
        """
        seconds = max(time.perf_counter() - self._started, 1e-9)
        steps_per_second = (step - self._last_step) / seconds
        row = {
            "step": step,
            "num_steps": self._num_steps,
            "epoch": round((step + self._steps_ahead) * self._batch_size / self._num_samples, 4),
            **values,
            "images_per_second": round(steps_per_second * self._batch_size, 1),
            "data_wait_fraction": round(lap.wait_fraction, 4),
            **lap.figures(),
            "eta_seconds": round((self._num_steps - step) / max(steps_per_second, 1e-9)),
        }
        self._last_step, self._started = step, time.perf_counter()
        return row


def metrics_line(row: dict[str, Any]) -> str:
    """Return a row as one line for people."""
    why = "" if row["limiting_stage"] == "the consumer" else f" ({row['limiting_stage']})"
    slow = f"  rank {row['slowest_rank']} is slow" if "slowest_rank" in row else ""
    return (
        f"step {row['step']:,}/{row['num_steps']:,}  epoch {row['epoch']:.2f}  loss {row['loss']:.4f}  "
        f"accuracy {row['accuracy']:.3f}  lr {row['learning_rate']:.2e}  {row['images_per_second']:,.0f} images/s  "
        f"data wait {row['data_wait_fraction']:.0%}{why}  {row['eta_seconds']:,} s left{slow}"
    )


def json_line(row: dict[str, Any]) -> str:
    """Return a row as a line of JSON."""
    return json.dumps(row)
