"""Tables 4 and 5: BatchNorm or GroupNorm, plain or standardised kernels, at a large and a small micro-batch."""

from trainer.studies.claims import Cell, Claim, better
from trainer.studies.estimates import Estimate, Results, estimate
from trainer.studies.grid import Grid, Run, across_tasks, all_runs
from trainer.studies.scale import Scale
from trainer.studies.study import Study, measured

NAME = "norms"
SUFFIXES = {"BN": "-BN", "BN + WS": "-BN-WS", "GN": "-GN", "GN + WS": ""}
UPSTREAM_ROW, TASKS_ROW = "upstream", "mean of tasks"


def _starts(grid: Grid) -> dict[Cell, Run]:
    """Return the pretrainings by row of the micro-batch and column of the norm."""
    norms = grid.scale.norms
    if norms is None:
        return {}
    return {
        (str(microbatch), column): grid.pretraining(
            norms.upstream,
            model=f"{norms.model or grid.scale.model}{suffix}",
            variant=f"microbatch-{microbatch}",
            microbatch_size=microbatch,
        )
        for microbatch in norms.microbatches
        for column, suffix in SUFFIXES.items()
    }


def _runs(grid: Grid, results: Results) -> list[Run]:
    starts = _starts(grid)
    tests = [_upstream_test(grid, start) for start in starts.values()]
    return [
        *starts.values(),
        *tests,
        *(run for start in starts.values() for run in all_runs(grid.whole_set_transfers(NAME, start))),
    ]


def _upstream_test(grid: Grid, start: Run) -> Run:
    norms = grid.scale.norms
    return grid.upstream_test(start, norms.upstream if norms else "")


def _cells(grid: Grid, results: Results) -> dict[Cell, Estimate]:
    cells: dict[Cell, Estimate | None] = {}
    for (microbatch, column), start in _starts(grid).items():
        cells[_row(UPSTREAM_ROW, microbatch), column] = estimate([(_upstream_test(grid, start).name,)], results)
        transfers = grid.whole_set_transfers(NAME, start)
        cells[_row(TASKS_ROW, microbatch), column] = estimate(across_tasks(transfers), results)
    return measured(cells)


def _row(what: str, microbatch: int | str) -> str:
    return f"{what}, pretrained at micro-batch {microbatch}"


def _claims(scale: Scale) -> list[Claim]:
    if scale.norms is None:
        return []
    large, small = scale.norms.microbatches
    best, others = "GN + WS", [column for column in SUFFIXES if column != "GN + WS"]
    upstream, tasks = _row(UPSTREAM_ROW, large), _row(TASKS_ROW, large)
    return [
        Claim(
            "GN + WS is the best of the four upstream", [better((upstream, best), (upstream, each)) for each in others]
        ),
        Claim(
            "GN + WS is the best of the four on the tasks", [better((tasks, best), (tasks, each)) for each in others]
        ),
        Claim("GN with plain kernels is behind BN upstream", [better((upstream, "BN"), (upstream, "GN"))]),
        Claim(
            f"pretrained at micro-batch {small}, GN + WS is ahead of BN, upstream and on the tasks",
            [better((_row(what, small), best), (_row(what, small), "BN")) for what in (UPSTREAM_ROW, TASKS_ROW)],
        ),
    ]


NORMS = Study(
    name=NAME,
    title="BatchNorm, GroupNorm and standardised kernels",
    source="Tables 4 and 5",
    missing=lambda scale: (
        "the study of norms needs [norms] and a test set of its upstream set"
        if scale.norms is None or scale.upstream[scale.norms.upstream].test is None
        else None
    ),
    runs=_runs,
    cells=_cells,
    claims=_claims,
    paper={
        ("ILSVRC-2012", "BN"): "75.6",
        ("ILSVRC-2012", "BN + WS"): "75.8",
        ("ILSVRC-2012", "GN"): "70.2",
        ("ILSVRC-2012", "GN + WS"): "76.0",
        ("VTAB-1k", "BN"): "67.72",
        ("VTAB-1k", "BN + WS"): "66.78",
        ("VTAB-1k", "GN"): "68.77",
        ("VTAB-1k", "GN + WS"): "70.39",
    },
    paper_says="R50x1 pretrained on ILSVRC-2012 in batches of 4096, 32 on each of 128 chips. That BatchNorm suffers "
    "where a device holds few pictures is the paper's reason for leaving it; it shows no figures of that.",
)
