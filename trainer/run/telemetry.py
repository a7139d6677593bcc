"""What a rank reports in training: its loader's figures line by line, Ray's metrics, and the samples it replaced."""

import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.base.errors import StorageError
from pipeline.store.url import open_store
from pipeline.streaming.loader.messages import BadSample
from pipeline.streaming.stream import Batch, Stream, warn_of
from pipeline.streaming.throughput import Lap, Laps
from pipeline.work.on_ray import is_on_ray

logger = logging.getLogger(__name__)

_LINE_SECONDS = 1.0
_SHOWN_SECONDS = 5.0  # between two times that a gauge is set: Ray forgets it 20 s later, and a stuck run would vanish
_PART_SECONDS = 60.0  # a choice: what a lost process may leave unwritten on S3, against the number of objects
COUNTERS = {
    "bit_images_total": "Pictures this rank has trained on",
    "bit_read_bytes_total": "Bytes this rank's loader has read from storage",
    "bit_bad_samples_total": "Damaged samples that were replaced; appears with the first one",
}
GAUGES = {
    "bit_images_per_second": "Pictures this rank trains on in a second",
    "bit_data_wait_fraction": "Share of the time that this rank waits for batches",
    "bit_loss": "Loss of the last finished step on this rank's samples",
    "bit_step": "Optimizer steps done",
    "bit_last_progress_timestamp_seconds": "When this rank last finished a step, in seconds since 1970",
}
# Of the whole run, from rank 0; by the figure of a row that they show.
RUN_GAUGES = {
    "bit_last_checkpoint_step": "Step of the newest checkpoint",
    "bit_last_checkpoint_timestamp_seconds": "When that was seen, or this start began, in seconds since 1970",
    "bit_checkpoint_stall_seconds": "For how long saves held the steps up since the row before",
    "bit_checkpoint_durable_seconds": "From the copy of the last saved state to its commit",
    "bit_restarts_total": "Starts of the run after its first one",
    "bit_goodput_ratio": "Share of the run's time that went into steps that were kept",
    "bit_mfu_ratio": "What the network needs, against what the GPUs do at most; where their peak is known",
}
_FIGURES = {
    "checkpoint_step": "bit_last_checkpoint_step",
    "checkpoint_stall_seconds": "bit_checkpoint_stall_seconds",
    "checkpoint_seconds": "bit_checkpoint_durable_seconds",
    "restarts": "bit_restarts_total",
    "goodput": "bit_goodput_ratio",
    "mfu": "bit_mfu_ratio",
}
_SAVED = "bit_last_checkpoint_timestamp_seconds"


class Quarantine:
    """Warns of each sample that was replaced, and keeps it until it is written to the run folder."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def __call__(self, bad: BadSample) -> None:
        """Take a sample; see Stream's `on_bad`."""
        warn_of(bad)
        self._rows.append(asdict(bad))

    def take_rows(self) -> list[dict[str, Any]]:
        """Return the samples since the last call."""
        rows, self._rows = self._rows, []
        return rows


class Telemetry:
    """Measures a rank's steps and reports each second, or each step where steps take longer. Close it."""

    def __init__(self, stream: Stream, num_workers: int, run: str, rank: int, loader_log: str | None) -> None:
        """Start to measure.

        Args:
            stream: Of the rank.
            num_workers: Loader processes of the stream; 0 for a thread.
            run: URL of its folder, by which metrics tell runs of a cluster apart.
            rank: Of the run.
            loader_log: URL of a file of JSON lines; the rank becomes part of its name. None for none.

        Raises:
            OSError: The file cannot be written.
        """
        self._row, self._second = Laps(stream, num_workers), Laps(stream, num_workers)
        self._log = _LoaderLog(loader_log, rank) if loader_log else None
        self._metrics = _RayMetrics(run, rank) if is_on_ray() else None
        self._of_run = {_SAVED: time.time()}
        self._step, self._loss = 0, 0.0
        self._has_more = False

    def on_result(self, loss: float) -> None:
        """Take the loss of a step."""
        self._loss = loss

    def after_step(self, step: int, batch: Batch) -> None:
        """Count a step; `step` is the number of steps done."""
        self._row.took(batch)
        self._second.took(batch)
        self._step, self._has_more = step, True
        if self._second.seconds >= _LINE_SECONDS:
            self._write_line()

    def on_row(self, row: Mapping[str, Any]) -> None:
        """Show the figures of a row of the whole run; called on rank 0."""
        self._of_run |= {name: row[key] for key, name in _FIGURES.items() if key in row}
        if "checkpoint_step" in row:
            self._of_run[_SAVED] = time.time()
        if self._metrics:
            self._metrics.publish_run(self._of_run)

    def lap(self) -> Lap:
        """Return what the rank's loader did since the last call."""
        return self._row.lap()

    def close(self) -> None:
        """Write the rest."""
        if self._has_more:
            self._write_line()
        if self._log:
            self._log.flush()
        if self._metrics:
            self._metrics.close()

    def _write_line(self) -> None:
        lap, self._has_more = self._second.lap(), False
        if self._log:
            self._log.write({"time": round(time.time(), 3), "step": self._step, **lap.row()})
        if self._metrics:
            self._metrics.publish(lap, self._loss, self._step)


class _RayMetrics:
    """Metrics that each Ray node serves to Prometheus under these names with `ray_` in front, by run and rank.

    A thread sets the gauges again and again, until they are closed: also while the run stands still.
    """

    def __init__(self, run: str, rank: int) -> None:
        from ray.util.metrics import Counter, Gauge  # noqa: PLC0415

        def create(kind: Any, names: dict[str, str]) -> dict[str, Any]:
            tags = {"run": run, "rank": str(rank)}
            return {name: kind(name, text, tag_keys=tuple(tags)).set_default_tags(tags) for name, text in names.items()}

        self._counters, self._gauges = create(Counter, COUNTERS), create(Gauge, GAUGES)
        self._gauges |= create(Gauge, RUN_GAUGES)
        self._figures: dict[str, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show_often, name="gauges", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def publish_run(self, figures: Mapping[str, float]) -> None:
        self._figures |= figures
        self._show()

    def publish(self, lap: Lap, loss: float, step: int) -> None:
        counted = (lap.images, lap.counts.bytes_read, lap.bad_samples)
        for counter, count in zip(self._counters.values(), counted, strict=True):
            if count:  # Ray refuses to add 0
                counter.inc(count)
        measured = (lap.images / lap.seconds, lap.wait_fraction, loss, step, time.time())
        self._figures |= zip(GAUGES, measured, strict=True)
        self._show()

    def _show(self) -> None:
        for name, value in self._figures.copy().items():
            self._gauges[name].set(value)

    def _show_often(self) -> None:
        while not self._ended.wait(_SHOWN_SECONDS):
            self._show()


class _LoaderLog:
    """Lines in a local file, or in an object for each minute on S3, where nothing can be appended.

    What cannot be written is warned of and dropped: a log is not worth a run.
    """

    def __init__(self, url: str, rank: int) -> None:
        folder, _, name = url.rpartition("/")
        self._name = f"{name.removesuffix('.jsonl')}-rank{rank}"
        self._store = open_store(folder) if "://" in url else None
        self._path = Path(folder) / f"{self._name}.jsonl"
        if not self._store:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()
        self._lines: list[str] = []
        self._flushed = time.monotonic()

    def write(self, row: dict[str, Any]) -> None:
        self._lines.append(json.dumps(row) + "\n")
        if not self._store or time.monotonic() - self._flushed >= _PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        body, self._lines, self._flushed = "".join(self._lines), [], time.monotonic()
        if not body:
            return
        try:
            if self._store:
                self._store.create(f"{self._name}-{time.time_ns()}.jsonl", body.encode())
            else:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(body)
        except (OSError, StorageError) as error:
            logger.warning("the loader's log cannot be written: %s", error)
