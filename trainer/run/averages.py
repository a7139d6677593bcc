"""Figures of training as means: over the steps of an interval and over the ranks."""

from dataclasses import asdict

from trainer.step.ranks import World, gather
from trainer.step.step import StepResult


class Averages:
    """Collects the figures of steps; each sample counts the same, whichever rank it was on."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._num_samples = 0

    def add(self, result: StepResult, num_samples: int) -> None:
        """Take the figures of a step, means over this rank's samples."""
        for name, value in asdict(result).items():
            self._sums[name] = self._sums.get(name, 0.0) + value * num_samples
        self._num_samples += num_samples

    def take(self, world: World) -> dict[str, float]:
        """Return the means of all figures since the last call, over all ranks; every rank must call."""
        parts = gather(world, (self._sums, self._num_samples))
        self._sums, self._num_samples = {}, 0
        total = max(1, sum(num_samples for _, num_samples in parts))
        names = parts[0][0]
        return {name: sum(sums.get(name, 0.0) for sums, _ in parts) / total for name in names}
