"""The paper's claims as tests on what was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from trainer.studies.estimates import Estimate

Cell = tuple[str, str]  # row and column of a table


class Verdict(StrEnum):
    """What measurements say of a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "cannot be told at this scale"


@dataclass(frozen=True)
class Contrast:
    """Sums of cells against each other.

    Attributes:
        plus: Cells that are added.
        minus: Cells that are taken off.
        within: How far from 0 it may be; None where it is to be above a value.
        above: That value; a negative one allows the other side so much of a lead.
    """

    plus: tuple[Cell, ...]
    minus: tuple[Cell, ...] = ()
    within: float | None = None
    above: float = 0.0

    def judge(self, cells: Mapping[Cell, Estimate]) -> Verdict:
        """Return whether it is as it is to be, by its interval; open where a cell was not measured."""
        found = self.measured(cells)
        if found is None:
            return Verdict.OPEN
        least, most = (self.above, float("inf")) if self.within is None else (-self.within, self.within)
        if found.low > least and found.high < most:
            return Verdict.HOLDS
        return Verdict.FAILS if found.high < least or found.low > most else Verdict.OPEN

    def measured(self, cells: Mapping[Cell, Estimate]) -> Estimate | None:
        """Return the contrast; None where a cell was not measured.

        Its interval goes from the lower ends to the upper ends of the cells', so that for two cells it is above 0 just
        where their intervals do not overlap.
        """
        if any(cell not in cells for cell in (*self.plus, *self.minus)):
            return None
        plus, minus = [cells[cell] for cell in self.plus], [cells[cell] for cell in self.minus]
        return Estimate(
            sum(each.value for each in plus) - sum(each.value for each in minus),
            sum(each.low for each in plus) - sum(each.high for each in minus),
            sum(each.high for each in plus) - sum(each.low for each in minus),
            min(each.num_replicates for each in (*plus, *minus)),
        )

    def __str__(self) -> str:
        sides = [" + ".join(" ".join(cell) for cell in side) for side in (self.plus, self.minus)]
        if self.within is None:
            lead = f" - {-100 * self.above:g} points" if self.above else ""
            return " > ".join(side for side in sides if side) + lead
        return f"{' - '.join(side for side in sides if side)} within {100 * self.within:g} points of 0"


def better(one: Cell, other: Cell) -> Contrast:
    """Return the contrast that is above 0 where the accuracy of one cell is above that of the other."""
    return Contrast((one,), (other,))


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper and what has to be measured for it to hold.

    Attributes:
        sentence: For people.
        contrasts: What it comes down to.
        num_needed: Contrasts that have to hold; None for all of them.
    """

    sentence: str
    contrasts: Sequence[Contrast]
    num_needed: int | None = None

    def judge(self, cells: Mapping[Cell, Estimate]) -> Verdict:
        """Return the verdict: open as long as the open contrasts could turn it either way."""
        found = [contrast.judge(cells) for contrast in self.contrasts]
        needed = len(found) if self.num_needed is None else min(self.num_needed, len(found))
        if not found:
            return Verdict.OPEN
        if found.count(Verdict.HOLDS) >= needed:
            return Verdict.HOLDS
        return Verdict.FAILS if len(found) - found.count(Verdict.FAILS) < needed else Verdict.OPEN
