"""What the ranks of a run show of themselves, and what follows: who is silent, and whether the run is stuck."""

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.store.retry import OUTAGE_SECONDS

SILENT_SECONDS = 20.0  # four signs missed: then the rank is stopped, swapped out, or cut off
STALL_SECONDS_VARIABLE = "BIT_STALL_SECONDS"
LEAST_STEP_SECONDS = 60.0  # without a step, before a run is stuck; a choice: longer than any pause of a healthy one
_STEPS_MISSED = 20.0  # or this many steps' time
_SILENCES = 2.0  # times that, without a sign: a process that only works gives signs, in whatever phase
_NAMED = 4  # ranks in a message
_AGAIN_SECONDS = 60.0  # between two lines on one rank
# How long a rank may be in a phase without a further sign. Other ranks wait for it meanwhile.
_LIMIT_SECONDS = {
    "start": 1800.0,  # reading a checkpoint, compiling, a first step
    "data": OUTAGE_SECONDS + 60.0,  # reads give up by themselves, and say why
    "evaluation": 600.0,  # for one batch of it
    "store": OUTAGE_SECONDS + 60.0,  # so do other requests
    "save": 1900.0,  # a save waits for that of the slowest rank for half an hour, and says which one
}
ALL_PHASES = ("step", *_LIMIT_SECONDS)
STEADY_PHASES = ("step", "data", "store")  # of ranks that have taken a step together, until one saves or measures


class Life(NamedTuple):
    """The last sign of life of a rank.

    Attributes:
        rank: Its number.
        place: Host and process.
        step: Steps done; -1 before the first one.
        phase: What it does: start, data, step, evaluation, store or save; nothing where it cannot be told.
        phase_seconds: For how long, by its own clock, when it gave the sign.
        step_seconds: Median time of its last steps; 0 before there are some.
        group: Which group of workers it belongs to: a later one has a higher number.
        silent_seconds: For how long it has given none, by the clock of the board: those of hosts may differ.
    """

    rank: int
    place: str
    step: int
    phase: str = ""
    phase_seconds: float = 0.0
    step_seconds: float = 0.0
    group: int = 0
    silent_seconds: float = 0.0

    @property
    def is_silent(self) -> bool:
        """Whether its process cannot even give signs."""
        return self.silent_seconds >= SILENT_SECONDS

    @property
    def seconds_in_phase(self) -> float:
        """For how long it has been in its phase."""
        return self.phase_seconds + self.silent_seconds


def least_step_seconds() -> float:
    """Return for how long ranks may be in a step, however fast their steps are: a minute, or what the user set."""
    return float(os.environ.get(STALL_SECONDS_VARIABLE, LEAST_STEP_SECONDS))


def limit_seconds(phase: str, step_seconds: float, least_seconds: float = LEAST_STEP_SECONDS) -> float:
    """Return for how long a rank may be in a phase before it is stuck.

    Args:
        phase: Of the rank.
        step_seconds: Median time of a step.
        least_seconds: For steps, however fast they are.
    """
    if phase == "step":
        return max(least_seconds, _STEPS_MISSED * step_seconds)
    return _LIMIT_SECONDS.get(phase, math.inf)


def collective_seconds(
    phases: Sequence[str], step_seconds: float = 0.0, least_seconds: float = LEAST_STEP_SECONDS
) -> float:
    """Return for how long a rank may wait in a collective: twice as long as the slowest one may be in its phase.

    So a run that is stuck ends by its signs of life, which say who is to blame, where they work at all.

    Args:
        phases: Those that other ranks may be in.
        step_seconds: Time of a step.
        least_seconds: See `limit_seconds`.
    """
    return 2 * max(limit_seconds(phase, step_seconds, least_seconds) for phase in phases)


def stuck(lives: Sequence[Life], least_seconds: float = LEAST_STEP_SECONDS) -> str:
    """Return why a run cannot go on, naming the ranks that hold it up; nothing where it goes on or may.

    Ranks step together, so a rank that is busy with anything else holds up all others, and may, up to its limit. One
    that is silent may not: it is stopped, swapped out, or cut off. As long as others get on, it may yet come back.

    Args:
        lives: The last sign of every rank.
        least_seconds: See `limit_seconds`.
    """
    step_seconds = max((life.step_seconds for life in lives), default=0.0)

    def is_late(life: Life) -> bool:
        return life.seconds_in_phase > limit_seconds(life.phase, step_seconds, least_seconds)

    gone = [life for life in lives if life.silent_seconds > max(SILENT_SECONDS, _SILENCES * least_seconds)]
    if gone and all(life.is_silent or life.seconds_in_phase > least_seconds for life in lives):
        return _named(gone)
    if any(life.phase != "step" and not life.is_silent and not is_late(life) for life in lives):
        return ""
    late = [life for life in lives if is_late(life)]
    if not late:
        return ""
    behind = min(life.step for life in lives)
    named = (
        [life for life in lives if life.is_silent]
        or [life for life in late if life.phase != "step"]
        or [life for life in lives if life.step == behind]
    )
    return _named(named)


def _named(lives: Sequence[Life]) -> str:
    return "; ".join(
        f"rank {life.rank} ({life.place}) is {'silent' if life.is_silent else 'stuck'} in phase {life.phase} for "
        f"{life.seconds_in_phase:.0f} s, since step {max(life.step, 0):,}"
        for life in lives[:_NAMED]
    ) + (f"; and {len(lives) - _NAMED} more" if len(lives) > _NAMED else "")


class Watch:
    """Finds ranks that give no sign of life, and says so."""

    def __init__(self, limit_seconds: float) -> None:
        """Begin to watch.

        Args:
            limit_seconds: For how long the other ranks wait for one that takes no step, at least; for the message.
        """
        self._limit_seconds = limit_seconds
        self._said: dict[int, float] = {}

    def news(self, lives: list[Life], now: float) -> list[str]:
        """Return lines on ranks that have fallen silent, or came back."""
        lines = []
        for life in sorted(lives):
            if not life.is_silent:
                if self._said.pop(life.rank, None):
                    lines.append(f"rank {life.rank} ({life.place}) is back")
                continue
            if now - self._said.get(life.rank, -math.inf) >= _AGAIN_SECONDS:
                self._said[life.rank] = now
                lines.append(
                    f"rank {life.rank} ({life.place}) has given no sign of life for {life.silent_seconds:.0f} s, "
                    f"since step {max(life.step, 0):,}; the other ranks wait for it for {self._limit_seconds:.0f} s "
                    f"or more, then the group starts again from the last checkpoint"
                )
        return lines
