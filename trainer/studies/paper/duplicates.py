"""Table 7: near-duplicates between upstream sets and test sets, out of either, by the lists of `cluster audit`."""

from collections.abc import Iterator

from trainer.jobs.config import FinetuneConfig
from trainer.studies.claims import Cell, Claim, Contrast
from trainer.studies.estimates import Estimate, Results, effect_of_leaving_out, estimate
from trainer.studies.grid import Grid, Run, test_list_url
from trainer.studies.scale import Scale
from trainer.studies.study import Study, measured

CLOSE = 0.01  # the largest change of the paper's table: 80.3 to 81.3
_FULL, _CLEAN_TEST, _EFFECT, _CLEAN_UPSTREAM = "full", "clean test", "change by the clean test", "clean upstream"
_PAPER = {  # full and deduplicated accuracy, and duplicates in the test set, for JFT-300M, ImageNet-21k and ILSVRC-2012
    "ILSVRC-2012": ("87.8 / 87.9 / 6,470", "84.5 / 85.3 / 3,834", "80.3 / 81.3 / 879"),
    "CIFAR-10": ("99.4 / 99.3 / 435", "98.5 / 98.4 / 687", "97.2 / 97.2 / 82"),
    "CIFAR-100": ("93.6 / 93.4 / 491", "91.2 / 90.7 / 890", "85.3 / 85.2 / 136"),
    "Pets": ("96.8 / 96.4 / 600", "94.6 / 94.5 / 80", "93.7 / 93.6 / 58"),
    "Flowers": ("99.7 / 99.7 / 412", "99.5 / 99.5 / 335", "91.0 / 91.0 / 0"),
}


def _audited(scale: Scale) -> Iterator[tuple[str, str]]:
    """Yield task and upstream set, as far as there are lists of test duplicates."""
    for task, given in scale.tasks.items():
        for upstream in given.duplicates:
            yield task, upstream


def _full(grid: Grid, task: str, upstream: str) -> list[Run]:
    return grid.transfers(grid.pretraining(upstream), 0, tasks=[task])[task]


def _without(grid: Grid, run: Run, task: str, upstream: str) -> Run:
    """Return the test of a fine-tuned model without the test pictures that have duplicates in the upstream set."""
    test = FinetuneConfig.model_validate_json(run.config).test
    excluded = test_list_url(grid.out, task, upstream)
    return grid.test_of(run, run.name.replace("finetune/", "clean-test/", 1), test, excluded)


def _clean_upstream(grid: Grid, task: str, upstream: str) -> list[Run]:
    if not grid.scale.upstream[upstream].duplicates:
        return []
    return grid.transfers(grid.pretraining(upstream, deduplicated=True), 0, tasks=[task])[task]


def _runs(grid: Grid, results: Results) -> list[Run]:
    runs: list[Run] = []
    for task, upstream in _audited(grid.scale):
        full, clean = _full(grid, task, upstream), _clean_upstream(grid, task, upstream)
        runs += [grid.pretraining(upstream), *full, *(_without(grid, run, task, upstream) for run in full)]
        runs += [grid.pretraining(upstream, deduplicated=True), *clean] if clean else []
    return list({run.name: run for run in runs}.values())


def _cells(grid: Grid, results: Results) -> dict[Cell, Estimate]:
    cells: dict[Cell, Estimate | None] = {}
    for task, upstream in _audited(grid.scale):
        row, full = _row(task, upstream), _full(grid, task, upstream)
        tests = [(run.name, _without(grid, run, task, upstream).name) for run in full]
        cells[row, _FULL] = estimate([(whole,) for whole, _ in tests], results)
        cells[row, _CLEAN_TEST] = estimate([(kept,) for _, kept in tests], results)
        done = [(results[whole], results[kept]) for whole, kept in tests if whole in results and kept in results]
        if done:
            cells[row, _EFFECT] = effect_of_leaving_out([whole for whole, _ in done], [kept for _, kept in done])
        cells[row, _CLEAN_UPSTREAM] = estimate([(run.name,) for run in _clean_upstream(grid, task, upstream)], results)
    return measured(cells)


def _row(task: str, upstream: str) -> str:
    return f"{task}, from {upstream}"


def _claims(scale: Scale) -> list[Claim]:
    rows = [_row(task, upstream) for task, upstream in _audited(scale)]
    cleaned = [_row(task, upstream) for task, upstream in _audited(scale) if scale.upstream[upstream].duplicates]
    claims = [
        Claim(
            "leaving near-duplicates out of the test set changes accuracy by a point at most",
            [Contrast(((row, _EFFECT),), within=CLOSE) for row in rows],
        )
    ]
    if cleaned:
        claims.append(
            Claim(
                "leaving them out of the upstream set changes accuracy by a point at most",
                [Contrast(((row, _FULL),), ((row, _CLEAN_UPSTREAM),), within=CLOSE) for row in cleaned],
            )
        )
    return claims


DUPLICATES = Study(
    name="duplicates",
    title="Near-duplicates of test pictures",
    source="Table 7",
    missing=lambda scale: (
        None
        if any(_audited(scale))
        else "it needs lists of duplicates: run `cluster audit` of each task's test set against the upstream set, and "
        "name its lists in the scale (tasks.NAME.duplicates, upstream.NAME.duplicates)"
    ),
    runs=_runs,
    cells=_cells,
    claims=_claims,
    paper={
        (task, column): figure
        for task, figures in _PAPER.items()
        for column, figure in zip(("JFT-300M", "ImageNet-21k", "ILSVRC-2012"), figures, strict=True)
    },
    paper_says="Full / without near-duplicates in the test set / their number, by the upstream set, which is whole. In "
    "the other experiment, the paper trained BiT-L without the fewer than 50,000 of 300 M pictures that are "
    "near-duplicates of test pictures: 87.54, 99.37, 93.51, 96.62 and 99.63 (Table 1).",
)
