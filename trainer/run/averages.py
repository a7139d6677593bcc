"""Figures of training as means over steps and ranks; and which rank holds up the others."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median_low

from trainer.checkpoint.record import UnreportedFigures
from trainer.step.ranks import World, gather
from trainer.step.step import StepResult

_TIMES_SLOWER = 2.0  # than the median of all ranks: then a rank is named; at 1.5 ranks that share two cores take turns
_LEAST_SHARE = 0.1  # of its time


class Averages:
    """Collects the figures of steps; each sample counts the same, whichever rank it was on."""

    def __init__(self, begun: UnreportedFigures | None = None) -> None:
        """Begin an interval, or go on with one.

        Args:
            begun: What this rank measured of it before, as from `share`.
        """
        self._sums = dict(begun.sums) if begun else {}
        self._num_samples = begun.num_samples if begun else 0

    def unreported(self, world: World) -> tuple[UnreportedFigures, ...]:
        """Return what every rank has measured since the last row, empty where none has; every rank must call."""
        parts = gather(world, UnreportedFigures(sums=self._sums, num_samples=self._num_samples))
        return tuple(parts) if any(part.num_samples for part in parts) else ()

    def add(self, result: StepResult, num_samples: int) -> None:
        """Take the figures of a step, means over this rank's samples."""
        for name, value in asdict(result).items():
            self._sums[name] = self._sums.get(name, 0.0) + value * num_samples
        self._num_samples += num_samples

    def take(self, world: World, wait_fraction: float) -> dict[str, float]:
        """Return the means of all figures since the last call, over all ranks; every rank must call.

        Args:
            world: This rank.
            wait_fraction: Share of its time that this rank waited for data.

        Returns:
            The means, and where a rank is far slower than the others `slowest_rank` and by which figure it is, as in
            `slowest_forward_seconds`.
        """
        parts = gather(world, (self._sums, self._num_samples, wait_fraction))
        self._sums, self._num_samples = {}, 0
        total = max(1, sum(num_samples for _, num_samples, _ in parts))
        means = {name: sum(sums.get(name, 0.0) for sums, _, _ in parts) / total for name in parts[0][0]}
        forward = [sums.get("forward_seconds", 0.0) / max(1, num_samples) for sums, num_samples, _ in parts]
        slow = {"data_wait_fraction": straggler([wait for _, _, wait in parts], _LEAST_SHARE)}
        slow |= {"forward_seconds": straggler(forward, 0.0)}
        for name, rank in slow.items():
            if rank is not None:
                value = parts[rank][2] if name == "data_wait_fraction" else forward[rank]
                means |= {"slowest_rank": rank, f"slowest_{name}": round(value, 4)}
        return means


def share(unreported: Sequence[UnreportedFigures], rank: int, num_ranks: int) -> UnreportedFigures | None:
    """Return the part of a rank that goes on with an interval: its own; where their number has changed, an equal one.

    Args:
        unreported: Of every rank that began the interval.
        rank: Of the group that goes on.
        num_ranks: Of that group.
    """
    if len(unreported) in {0, num_ranks}:
        return unreported[rank] if unreported else None
    total = sum(part.num_samples for part in unreported)
    num_samples = total // num_ranks + (rank < total % num_ranks)
    names = dict.fromkeys(name for part in unreported for name in part.sums)
    sums = {name: sum(part.sums.get(name, 0.0) for part in unreported) * num_samples / total for name in names}
    return UnreportedFigures(sums=sums, num_samples=num_samples)


def straggler(figures: Sequence[float], least: float) -> int | None:
    """Return the rank with the highest figure, if it is far above the median of all (of two, the lower); or None.

    Args:
        figures: Of every rank, such as seconds.
        least: By how much it is above it at least.
    """
    middle, highest = median_low(figures), max(figures)
    if len(figures) == 1 or highest <= max(_TIMES_SLOWER * middle, middle + least):
        return None
    return list(figures).index(highest)
