"""Figure 5: larger models and larger upstream sets belong together."""

from collections.abc import Mapping, Sequence

from trainer.studies.claims import Cell, Claim, Contrast, better
from trainer.studies.estimates import Estimate, Results, estimate
from trainer.studies.grid import Grid, Run, across_tasks, all_runs
from trainer.studies.scale import Scale
from trainer.studies.study import Study, measured

NAME = "model-and-data"


def _starts(grid: Grid) -> dict[Cell, Run]:
    return {
        (model, name): grid.pretraining(name, model=model)
        for model in grid.scale.models
        for name in grid.scale.upstream
    }


def _runs(grid: Grid, results: Results) -> list[Run]:
    starts = list(_starts(grid).values())
    return [*starts, *(run for start in starts for run in all_runs(grid.whole_set_transfers(NAME, start)))]


def _cells(grid: Grid, results: Results) -> dict[Cell, Estimate]:
    return measured(
        {
            cell: estimate(across_tasks(grid.whole_set_transfers(NAME, start)), results)
            for cell, start in _starts(grid).items()
        }
    )


def _claims(scale: Scale) -> list[Claim]:
    small, large = scale.models[0], scale.models[-1]
    few, many = next(iter(scale.upstream)), scale.largest
    return [
        Claim(f"{large} gains by more upstream data", [better((large, many), (large, few))]),
        Claim(f"{large} is ahead of {small} on the largest upstream set", [better((large, many), (small, many))]),
        Claim(
            f"more data is worth more to {large} than to {small}",
            [Contrast(((large, many), (small, few)), ((large, few), (small, many)))],
        ),
    ]


def _curves(grid: Grid, results: Results) -> Mapping[str, Sequence[tuple[float, float]]]:
    cells = _cells(grid, results)
    return {
        model: [
            (grid.num_upstream(name), cells[model, name].value)
            for name in grid.scale.upstream
            if (model, name) in cells
        ]
        for model in grid.scale.models
    }


MODEL_AND_DATA = Study(
    name=NAME,
    title="Models and upstream sets of several sizes",
    source="Figure 5",
    missing=lambda scale: (
        "it needs two models and two upstream sets" if min(len(scale.models), len(scale.upstream)) < 2 else None
    ),
    runs=_runs,
    cells=_cells,
    claims=_claims,
    paper_says="The figure has no table. Of R50x1, R101x1, R50x3, R101x3 and R152x4, the larger ones gain little on "
    "ILSVRC-2012 and much on ImageNet-21k and JFT-300M; R50x1 can be worse with JFT-300M than with ImageNet-21k.",
    curves=_curves,
    curve_axis="upstream pictures",
)
