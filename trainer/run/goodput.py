"""Where the time of a run went: the share of its steps that it kept, and what the rest was lost to; pure.

Every second between the first start and the last sign of life is in exactly one class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Facts = Mapping[str, Any]


@dataclass
class TimeClasses:
    """Seconds of a run, by what they were spent on.

    Attributes:
        steps: Steps that were kept.
        data_wait: Waiting for batches of steps that were kept, on rank 0.
        rework: Steps that were lost with the state behind them, and made again.
        saving: Waiting for saves.
        evaluation: Measurements on held-out pictures and probes.
        startup: From the start of the workers to the first step: loading, compiling.
        down: From a failure to the next start, and where nobody knows what happened.
    """

    steps: float = 0.0
    data_wait: float = 0.0
    rework: float = 0.0
    saving: float = 0.0
    evaluation: float = 0.0
    startup: float = 0.0
    down: float = 0.0

    @property
    def wall(self) -> float:
        """All of them together."""
        return float(sum(vars(self).values()))

    @property
    def goodput(self) -> float:
        """Share of the time that went into steps that were kept, waiting for their data included; 0 without time."""
        return (self.steps + self.data_wait) / self.wall if self.wall else 0.0


class _Clock:
    """Goes forward only, and gives every second to one class."""

    def __init__(self, begin: float) -> None:
        self.now, self.classes = begin, TimeClasses()

    def spend(self, name: str, until: float) -> None:
        if until > self.now:
            setattr(self.classes, name, getattr(self.classes, name) + until - self.now)
            self.now = until


def time_classes(
    attempts: Sequence[Facts],
    rows: Sequence[Facts],
    failures: Sequence[float] = (),
    starts: Sequence[float] = (),
    until: float | None = None,
) -> TimeClasses:
    """Return where the time of a run went.

    What happened between two rows is known by their figures; that steps take equally long is assumed only where a start
    went on from a step between two rows, and for the time before the first row of a start.

    Args:
        attempts: Starts of the run with `attempt`, `first_step` and `time`; those of old releases have no time, and are
            left out.
        rows: All rows of metrics, those of lost steps too.
        failures: When ranks failed, in seconds since 1970.
        starts: When groups of workers started.
        until: What follows the last sign of life counts as down until then; None for nothing.
    """
    timed = sorted((each for each in attempts if "time" in each), key=lambda each: each["time"])
    if not timed:
        return TimeClasses()
    by_attempt: dict[str, list[Facts]] = {}
    for row in rows:
        by_attempt.setdefault(row.get("attempt", ""), []).append(row)
    clock = _Clock(min([timed[0]["time"], *starts]))
    last_step, step_seconds = timed[0]["first_step"], 0.0
    for place, attempt in enumerate(timed):
        later = timed[place + 1 :]
        own = sorted(by_attempt.get(attempt["attempt"], ()), key=lambda row: row["step"])
        if place:
            kept_until = clock.now + max(0, attempt["first_step"] - last_step) * step_seconds
            _spend_gap(clock, kept_until, attempt["time"], failures, starts)
        clock.spend("startup", attempt["time"])
        end = later[0]["time"] if later else float("inf")
        keeps_to = min([each["first_step"] for each in later], default=None)
        step_seconds = _seconds_of_a_step(attempt, own)
        _spend_rows(clock, attempt["first_step"], own, step_seconds, keeps_to, end)
        last_step = own[-1]["step"] if own else attempt["first_step"]
    clock.spend("rework", min([at for at in failures if at > clock.now], default=clock.now))
    if until is not None:
        clock.spend("down", until)
    return clock.classes


def _spend_gap(
    clock: _Clock, kept_until: float, until: float, failures: Sequence[float], starts: Sequence[float]
) -> None:
    """Give out the time from the last row of a start to the beginning of the next one."""
    start = max([at for at in starts if clock.now < at <= until], default=until)
    failure = min([at for at in failures if clock.now < at <= start], default=None)
    clock.spend("steps", min(kept_until, start if failure is None else failure))
    clock.spend("rework", clock.now if failure is None else failure)
    clock.spend("down", start)


def _spend_rows(
    clock: _Clock, first_step: int, rows: Sequence[Facts], step_seconds: float, keeps_to: int | None, end: float
) -> None:
    """Give out the time of the steps of a start, row by row."""
    before = first_step
    for place, row in enumerate(rows):
        row_end = min(row["time"], end)
        num_steps = max(1, row["step"] - before)
        if place == 0 and len(rows) > 1:
            known = row.get("evaluation_seconds", 0.0) + row.get("checkpoint_stall_seconds", 0.0)
            clock.spend("startup", row_end - known - num_steps * step_seconds)
        spent = max(0.0, row_end - clock.now)
        clock.spend("evaluation", min(row_end, clock.now + row.get("evaluation_seconds", 0.0)))
        clock.spend("saving", min(row_end, clock.now + row.get("checkpoint_stall_seconds", 0.0)))
        wait = min(row_end - clock.now, row.get("data_wait_fraction", 0.0) * spent)
        kept = 1.0 if keeps_to is None else min(1.0, max(0.0, (keeps_to - before) / num_steps))
        left = row_end - clock.now - wait
        clock.spend("data_wait", clock.now + wait * kept)
        clock.spend("steps", clock.now + left * kept)
        clock.spend("rework", row_end)
        before = row["step"]


def _seconds_of_a_step(attempt: Facts, rows: Sequence[Facts]) -> float:
    """Return the median time of a step of a start between its rows; 0 where it has none."""
    points = [(attempt["time"], attempt["first_step"]), *((row["time"], row["step"]) for row in rows)]
    if len(points) > 2:  # the first stretch holds the start-up
        points = points[1:]
    lengths = [
        (time - time_before - row.get("evaluation_seconds", 0.0) - row.get("checkpoint_stall_seconds", 0.0))
        / max(1, step - step_before)
        for (time_before, step_before), (time, step), row in zip(
            points, points[1:], rows[-(len(points) - 1) :], strict=False
        )
    ]
    return max(0.0, median(lengths)) if lengths else 0.0
