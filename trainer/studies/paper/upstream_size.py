"""Tables 1 and 2: transfer with the HyperRule from three sizes of upstream sets."""

from collections.abc import Collection
from itertools import pairwise

from trainer.studies.claims import Cell, Claim, better
from trainer.studies.estimates import Estimate, Results, estimate
from trainer.studies.grid import Grid, Run, across_tasks, all_runs
from trainer.studies.scale import Scale
from trainer.studies.study import Study, measured
from trainer.tasks.vtab import VTAB

NAME = "upstream-size"
MEAN_ROW = "mean of tasks"
VTAB_ROW = "VTAB-1k"  # the mean of its 19 tasks
_PAPER = {  # S and M of Table 2, L of Table 1
    "ILSVRC-2012": ("81.30", "85.39", "87.54"),
    "CIFAR-10": ("97.51", "98.91", "99.37"),
    "CIFAR-100": ("86.21", "92.17", "93.51"),
    "Pets": ("93.97", "94.46", "96.62"),
    "Flowers": ("89.89", "99.30", "99.63"),
    VTAB_ROW: ("66.87", "70.64", "76.29"),
}


def _runs(grid: Grid, results: Results) -> list[Run]:
    starts = [grid.pretraining(name) for name in grid.scale.upstream]
    return [*starts, *(run for start in starts for run in all_runs(grid.whole_set_transfers(NAME, start)))]


def _cells(grid: Grid, results: Results) -> dict[Cell, Estimate]:
    cells: dict[Cell, Estimate | None] = {}
    for name in grid.scale.upstream:
        by_task = grid.whole_set_transfers(NAME, grid.pretraining(name))
        for task, runs in by_task.items():
            cells[task, name] = estimate([(run.name,) for run in runs], results)
        cells[MEAN_ROW, name] = estimate(across_tasks(by_task), results)
        if _has_vtab(by_task):
            cells[VTAB_ROW, name] = estimate(across_tasks({task.name: by_task[task.name] for task in VTAB}), results)
    return measured(cells)


def _has_vtab(tasks: Collection[str]) -> bool:
    return all(task.name in tasks for task in VTAB)


def _claims(scale: Scale) -> list[Claim]:
    tasks = scale.tasks_for(NAME)
    if _has_vtab(tasks):  # of its tasks the paper compares the mean
        tasks = [VTAB_ROW, *(task for task in tasks if task not in {each.name for each in VTAB})]
    return [
        Claim(
            f"{larger} transfers better than {smaller}, on the mean and on every task",
            [better((row, larger), (row, smaller)) for row in (MEAN_ROW, *tasks)],
        )
        for smaller, larger in pairwise(scale.upstream)
    ]


UPSTREAM_SIZE = Study(
    name=NAME,
    title="Transfer from small, medium and large upstream sets",
    source="Tables 1 and 2",
    missing=lambda scale: "it needs two upstream sets" if len(scale.upstream) < 2 else None,
    runs=_runs,
    cells=_cells,
    claims=_claims,
    paper={
        (task, column): figure
        for task, figures in _PAPER.items()
        for column, figure in zip(("S", "M", "L"), figures, strict=True)
    },
    paper_says="R152x4 on ILSVRC-2012 (S), ImageNet-21k (M) and JFT-300M (L); medians of three fine-tunings.",
)
