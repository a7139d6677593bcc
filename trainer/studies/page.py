"""What a study found, as a page and as lines: its table beside the paper's, and a verdict on each claim."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from pipeline.base.charts import Series, line_chart
from pipeline.base.html import render_page
from pipeline.base.quantities import human_seconds, quantity
from trainer.studies.claims import Cell, Claim, Verdict
from trainer.studies.estimates import Estimate, Results
from trainer.studies.grid import Grid, Run
from trainer.studies.study import Study


def findings(study: Study, grid: Grid, results: Results) -> dict[str, Any]:
    """Return what a study measured, as plain values: cells, verdicts, and how many of its runs are done."""
    cells = study.cells(grid, results)
    names = {run.name for run in study.runs(grid, results)}
    return {
        "study": study.name,
        "num_runs": len(names),
        "num_done": len(names & results.keys()),
        "seconds": sum(results[name].get("seconds", 0.0) for name in names & results.keys()),
        "cells": [{"row": row, "column": column, **found._asdict()} for (row, column), found in cells.items()],
        "claims": [
            {
                "sentence": claim.sentence,
                "verdict": claim.judge(cells),
                "contrasts": [_contrast(claim, number, cells) for number in range(len(claim.contrasts))],
            }
            for claim in study.claims(grid.scale)
        ],
    }


def _contrast(claim: Claim, number: int, cells: Mapping[Cell, Estimate]) -> dict[str, Any]:
    contrast = claim.contrasts[number]
    found = contrast.measured(cells)
    measured = found._asdict() if found else None
    return {"contrast": str(contrast), "verdict": contrast.judge(cells), "measured": measured}


def study_page(study: Study, grid: Grid, results: Results, failures: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Return the page of a study; it opens offline."""
    found, cells = findings(study, grid, results), study.cells(grid, results)
    curves = study.curves(grid, results)
    series = [Series(name, [(x, 100 * y) for x, y in points], has_dots=True) for name, points in curves.items()]
    return render_page(
        "trainer.studies",
        "study.html.j2",
        title=f"{study.source}: {study.title}",
        study=study,
        scale=grid.scale,
        found=found,
        took=human_seconds(found["seconds"]),
        rows=_names(cells, 0),
        columns=_names(cells, 1),
        cells=cells,
        paper_rows=_names(study.paper, 0),
        paper_columns=_names(study.paper, 1),
        chart=line_chart(series, study.title, study.curve_axis, "accuracy, %") if series else Markup(""),
        failures=failures,
        diverged={
            run.name: results[run.name]["why"] for run in study.runs(grid, results) if _has_diverged(run, results)
        },
        colours={Verdict.HOLDS: "holds", Verdict.FAILS: "fails", Verdict.OPEN: "open"},
    )


def _has_diverged(run: Run, results: Results) -> bool:
    return "why" in results.get(run.name, ())


def study_lines(study: Study, grid: Grid, results: Results) -> Iterator[str]:
    """Yield the table and the verdicts of a study, as Markdown."""
    cells = study.cells(grid, results)
    rows, columns = _names(cells, 0), _names(cells, 1)
    yield f"{study.source}: {study.title}"
    yield ""
    if cells:
        yield f"| | {' | '.join(columns)} |"
        yield f"| --- |{' ---: |' * len(columns)}"
    for row in rows:
        yield f"| {row} | {' | '.join(_text(cells.get((row, column))) for column in columns)} |"
    yield ""
    for claim in study.claims(grid.scale):
        yield f"- {claim.sentence}: **{claim.judge(cells)}**"
    found = findings(study, grid, results)
    yield ""
    yield (
        f"{found['num_done']:,} of {quantity(found['num_runs'], 'run')} done, "
        f"{human_seconds(found['seconds'])} in all; percent, with 95 % intervals"
    )


def _text(found: Estimate | None) -> str:
    if found is None:
        return "–"
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _names(cells: Mapping[Cell, Any], place: int) -> Sequence[str]:
    return list(dict.fromkeys(cell[place] for cell in cells))
