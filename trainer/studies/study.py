"""What a study is: pure functions from a grid of runs to what is to be run, and from results to cells of a table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from trainer.studies.claims import Cell, Claim
from trainer.studies.estimates import Estimate, Results
from trainer.studies.grid import Grid, Run
from trainer.studies.scale import Scale


@dataclass(frozen=True, kw_only=True)
class Study:
    """A table or figure of the paper.

    Attributes:
        name: On the command line.
        title: For people.
        source: Where the paper has it.
        missing: What a scale lacks for it; nothing where it can run.
        runs: All runs that can be named with the results so far.
        cells: What is measured: an estimate for each cell whose runs are there.
        claims: What the paper says of it, as tests on the cells.
        paper: The paper's own figures, as text, by row and column.
        paper_says: What the paper says where it gives no figures, and what to know of them.
        curves: Lines of a chart, by name: points (x, accuracy).
        curve_axis: What x is.
    """

    name: str
    title: str
    source: str
    missing: Callable[[Scale], str | None] = lambda scale: None
    runs: Callable[[Grid, Results], Sequence[Run]]
    cells: Callable[[Grid, Results], Mapping[Cell, Estimate]]
    claims: Callable[[Scale], Sequence[Claim]]
    paper: Mapping[Cell, str] = field(default_factory=dict)
    paper_says: str = ""
    curves: Callable[[Grid, Results], Mapping[str, Sequence[tuple[float, float]]]] = lambda grid, results: {}
    curve_axis: str = ""


def measured(cells: Mapping[Cell, Estimate | None]) -> dict[Cell, Estimate]:
    """Return the cells that have an estimate."""
    return {cell: found for cell, found in cells.items() if found is not None}
