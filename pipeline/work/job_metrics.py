"""How far a job on Ray is, as gauges that the driver's node serves to Prometheus with `ray_` before their names."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pipeline.base.console import Advance, Reporting
from pipeline.work.on_ray import create_gauges, is_on_ray

_EVERY_SECONDS = 5.0  # Ray exports every 10 s
_DONE = "bit_job_done_units"
_PLANNED = "bit_job_planned_units"
_BYTES = "bit_job_done_bytes"
_REJECTED = "bit_job_rejected_images"
_QUARANTINED = "bit_job_quarantined_tasks"
_PROGRESS = "bit_job_last_progress_timestamp_seconds"
GAUGES = {
    _DONE: "Units of the stage that are done, by earlier starts too; appears with the first one",
    _PLANNED: "Units of the stage in all; where they are known",
    _BYTES: "Bytes of the tars that are packed or fingerprinted",
    _REJECTED: "Images that cannot be used, by earlier starts too; appears with the first one",
    _QUARANTINED: "Tasks of the stage that fail wherever they run; appears with the first one",
    _PROGRESS: "When a unit was last done, or the stage began, in seconds since 1970",
}
_CREDENTIALS = re.compile(r"(?<=://)[^/]*@")


def with_metrics(reporting: Reporting, command: str, url: str) -> Reporting:
    """Return a reporting that exports the progress of a job, too; where this process is not on Ray, the same one.

    A stage is exported from its beginning to its end: so a job that stands still can be told from one that is over.

    Args:
        reporting: What the job reports to.
        command: Of the job.
        url: What the job writes to: the run that its gauges are tagged with, without credentials.
    """
    if not is_on_ray():
        return reporting
    exported = _Exported(reporting, {"run": _CREDENTIALS.sub("", url), "command": command})
    return replace(reporting, progress=exported.progress, event=exported.event)


class _Exported:
    """The figures of a job's stages, which follow one another."""

    def __init__(self, reporting: Reporting, tags: dict[str, str]) -> None:
        self._reporting, self._tags = reporting, tags
        self._gauges = create_gauges(GAUGES, (*tags, "stage", "unit"))
        self._figures: dict[str, float] = {}

    def event(self, name: str, **values: Any) -> None:
        """See Reporting.event."""
        self._reporting.event(name, **values)
        if name in ("resumed", "shard"):  # not `published`, which counts those of earlier versions
            self._add(_REJECTED, values.get("num_rejects", 0))
        elif name == "quarantined":
            self._add(_QUARANTINED, 1)

    @contextmanager
    def progress(self, what: str, total: int | None, unit: str) -> Iterator[Advance]:
        """See Reporting.progress."""
        self._figures = {_PROGRESS: time.time()} | ({} if total is None else {_PLANNED: total})
        tags, ended = self._tags | {"stage": what, "unit": unit}, threading.Event()

        def publish() -> None:
            for name, value in self._figures.copy().items():
                self._gauges[name].set(value, tags)

        def publish_often() -> None:  # a stage that stands still is shown, too
            publish()
            while not ended.wait(_EVERY_SECONDS):
                publish()

        publisher = threading.Thread(target=publish_often, name="job-metrics", daemon=True)
        with self._reporting.progress(what, total, unit) as show:

            def advance(count: int, num_bytes: int) -> None:
                show(count, num_bytes)
                self._add(_DONE, count)
                self._add(_BYTES, num_bytes)
                if count:
                    self._figures[_PROGRESS] = time.time()

            publisher.start()
            try:
                yield advance
            finally:
                ended.set()
                publisher.join()
                publish()

    def _add(self, name: str, count: float) -> None:
        if count:
            self._figures[name] = self._figures.get(name, 0) + count
