"""Figure 2: few pictures a class, by the set that was pretrained on."""

from collections.abc import Mapping, Sequence

from trainer.studies.claims import Cell, Claim, better
from trainer.studies.estimates import Estimate, Results, estimate
from trainer.studies.grid import Grid, Run, across_tasks, all_runs
from trainer.studies.scale import Scale
from trainer.studies.study import Study, measured

NAME = "few-shot"
SCRATCH_COLUMN = "from scratch"


def _starts(grid: Grid) -> dict[str, Run | None]:
    return {SCRATCH_COLUMN: None} | {name: grid.pretraining(name) for name in grid.scale.upstream}


def _runs(grid: Grid, results: Results) -> list[Run]:
    starts = _starts(grid)
    transfers = [
        run
        for shots in sorted(grid.scale.shots, key=lambda count: count or float("inf"))
        for start in starts.values()
        for run in all_runs(grid.transfers(start, shots, tasks=grid.scale.tasks_for(NAME)))
    ]
    return [*(start for start in starts.values() if start), *transfers]


def _cells(grid: Grid, results: Results) -> dict[Cell, Estimate]:
    return measured(
        {
            (_row(task, shots), column): estimate([(run.name,) for run in runs], results)
            for column, start in _starts(grid).items()
            for shots in grid.scale.shots
            for task, runs in grid.transfers(start, shots, tasks=grid.scale.tasks_for(NAME)).items()
        }
    )


def _row(task: str, shots: int) -> str:
    return f"{task}, {shots} a class" if shots else f"{task}, all"


def _claims(scale: Scale) -> list[Claim]:
    smallest, largest = next(iter(scale.upstream)), scale.largest
    tasks = scale.tasks_for(NAME)
    needed = max(1, round(0.8 * len(tasks)))
    claims = [
        Claim(
            f"pretraining beats training from scratch {f'at {shots} a class' if shots else 'on whole training sets'}, "
            f"on at least {needed} of {len(tasks)} sets",
            [better((_row(task, shots), largest), (_row(task, shots), SCRATCH_COLUMN)) for task in tasks],
            needed,
        )
        for shots in scale.shots
    ]
    if smallest != largest:
        few = min((shots for shots in scale.shots if shots), default=0)
        claims.append(
            Claim(
                f"with {f'{few} a class' if few else 'all pictures'} the larger upstream set is better on every task",
                [better((_row(task, few), largest), (_row(task, few), smallest)) for task in tasks],
            )
        )
    return claims


def _curves(grid: Grid, results: Results) -> Mapping[str, Sequence[tuple[float, float]]]:
    """Return the mean over tasks by shots, as the paper draws each task."""
    few = sorted(shots for shots in grid.scale.shots if shots)
    if len(few) < 2:
        return {}
    lines: dict[str, list[tuple[float, float]]] = {}
    for column, start in _starts(grid).items():
        for shots in few:
            runs = grid.transfers(start, shots, tasks=grid.scale.tasks_for(NAME))
            found = estimate(across_tasks(runs), results)
            if found:
                lines.setdefault(column, []).append((shots, found.value))
    return lines


FEW_SHOT = Study(
    name=NAME,
    title="Few pictures a class",
    source="Figure 2",
    missing=lambda scale: None if scale.upstream else "it needs an upstream set",
    runs=_runs,
    cells=_cells,
    claims=_claims,
    paper={
        ("ILSVRC-2012, 5 a class", "L"): "72.0",
        ("ILSVRC-2012, 10 a class", "L"): "76.8",
        ("ILSVRC-2012, 100 a class", "L"): "84.1",
        ("CIFAR-10, 10 a class", "L"): "97.0",
        ("CIFAR-100, 10 a class", "L"): "82.6",
    },
    paper_says="The figure has no table; these are the numbers in its text. The paper's pretrained networks are ahead "
    "of those of smaller upstream sets at every number of shots.",
    curves=_curves,
    curve_axis="pictures a class (mean over tasks)",
)
