"""Which of several datasets each sample comes from: a pure function of (weights, samples per lane, lane, position).

The weights are apportioned to a cycle of `SLOTS` slots, each slot naming a source, and every lane goes round this one
cycle for ever. The slots of a source are spread so evenly that every run of n slots holds less than two away from n
times the source's share. Lane l begins l * samples_per_lane slots into the cycle, which makes the lanes' parts of a
global batch, laid end to end, one run of the cycle. So the composition of each global batch, and of each rank's part of
it, is less than two samples a source away from exact, at every step, for any number of ranks.

Each source has an order of its own with the same lanes (pipeline.streaming.order). A lane draws from the same lane of
its sources, each from position 0 on without gap or repetition; how far it is in each is counted in O(1) from the rounds
of the cycle. Lanes of one source are never more than three samples apart. A source smaller than its share asks for
starts its next epoch sooner: its epochs are its own.

A source's share differs from its weight by less than 1 / SLOTS of the whole, because slots are whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from heapq import heappop, heappush
from itertools import groupby
from math import isfinite

import numpy as np
import numpy.typing as npt

from pipeline.base.errors import ConfigError

Ints = npt.NDArray[np.int64]

SLOTS = 16_384  # a weight of 1 % is kept to 0.6 % of itself; 100 sources are laid out in 0.04 s


@dataclass(frozen=True)
class Draw:
    """Samples of one source that follow each other in a lane.

    Attributes:
        source: Index of the source's weight.
        position: Position of the first in the source's own lane, in samples over all its epochs.
        count: How many; at least one.
    """

    source: int
    position: int
    count: int


@dataclass(frozen=True)
class Mixture:
    """Several sources in fixed proportions.

    Attributes:
        weights: One a source, at any scale: only their ratios matter.
        samples_per_lane: Samples that one lane adds to each global batch, at least 1.

    Raises:
        ConfigError: There is no weight, one is not a positive number, or one is too small to get a slot.
    """

    weights: tuple[float, ...]
    samples_per_lane: int

    def __post_init__(self) -> None:
        if not self.weights:
            raise ConfigError("a mixture needs at least one weight")
        for source, weight in enumerate(self.weights):
            if not (isfinite(weight) and weight > 0):
                raise ConfigError(f"weight {weight} of source {source} is not a positive number; leave the source out")
        for source, slots in enumerate(self._slots):
            if not slots:
                raise ConfigError(
                    f"weight {self.weights[source]} of source {source} is below 1/{SLOTS} of all weights, too small "
                    f"to be drawn; raise it or leave the source out"
                )

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of each source that is drawn; less than 1 / SLOTS away from its weight's."""
        return tuple(slots / SLOTS for slots in self._slots)

    def draws(self, lane: int, position: int, count: int) -> tuple[Draw, ...]:
        """Return where the samples at positions [position, position + count) of a lane come from, in their order.

        It takes O(count), whatever the position; O(1) where there is one source.

        Args:
            lane: From 0.
            position: In samples of the lane, over all steps, from 0.
            count: At least 0.
        """
        if len(self.weights) == 1:
            return (Draw(0, position, count),) if count else ()
        positions = self.starts(lane, position)
        slots = (np.arange(count) + (lane * self.samples_per_lane + position) % SLOTS) % SLOTS
        draws = []
        for source, run in groupby(self._cycle[slots].tolist()):
            length = len(list(run))
            draws.append(Draw(source, positions[source], length))
            positions[source] += length
        return tuple(draws)

    def starts(self, lane: int, position: int) -> list[int]:
        """Return how many samples of each source a lane has drawn before a position, in O(sources)."""
        if len(self.weights) == 1:
            return [position]
        begin = lane * self.samples_per_lane
        drawn: list[int] = (self._before(begin + position) - self._before(begin)).tolist()
        return drawn

    def _before(self, slot: int) -> Ints:
        """Return each source's slots among [0, slot), counted over all rounds of the cycle, shape (sources,)."""
        rounds, rest = divmod(slot, SLOTS)
        return rounds * np.array(self._slots) + self._counts[:, rest]

    @cached_property
    def _slots(self) -> tuple[int, ...]:
        """Slot of each source, by largest remainder."""
        weights = [Fraction(weight) for weight in self.weights]
        exact = [weight * SLOTS / sum(weights) for weight in weights]
        slots = [int(quota) for quota in exact]
        by_remainder = sorted(range(len(exact)), key=lambda source: slots[source] - exact[source])
        for source in by_remainder[: SLOTS - sum(slots)]:
            slots[source] += 1
        return tuple(slots)

    @cached_property
    def _cycle(self) -> Ints:
        """Source of each slot, shape (SLOTS,)."""
        return np.fromiter(_spread(self._slots), np.int64, SLOTS)

    @cached_property
    def _counts(self) -> Ints:
        """Each source's slots before each slot, shape (sources, SLOTS)."""
        own = self._cycle == np.arange(len(self.weights))[:, None]
        counts: Ints = np.cumsum(own, axis=1, dtype=np.int64) - own
        return counts


def _spread(slots: tuple[int, ...]) -> Iterator[int]:
    """Yield the source of each slot of a cycle, so that a prefix of n slots is less than one from n shares of each.

    That holds if a source with `own` of `total` slots gets its j-th one (from 0) within [floor(j * total / own),
    ceil((j + 1) * total / own)). Earliest deadline first keeps all of these for any slots that add up to the cycle:
    it is proportionate-fair scheduling (Baruah et al., 1996) on one processor.
    """
    total = sum(slots)
    released = sorted(
        (number * total // own, source, number) for source, own in enumerate(slots) for number in range(own)
    )
    waiting: list[tuple[int, int]] = []
    following = 0
    for slot in range(total):
        while following < total and released[following][0] <= slot:
            _, source, number = released[following]
            heappush(waiting, (-(-(number + 1) * total // slots[source]), source))
            following += 1
        yield heappop(waiting)[1]
