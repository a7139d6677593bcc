"""Figure 9: random search against the HyperRule, from one start on each task [paper appendix A].

Trials are trained on one part of a task's training set and chosen on another; the chosen one and the rule are then
trained on both. Each trial's test accuracy draws the curve, and decides nothing.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from trainer.jobs.checks import recipe_for
from trainer.jobs.config import FinetuneConfig, PretrainConfig
from trainer.recipes.hyperrule import TransferRecipe
from trainer.recipes.search import Trial, best_trial, draw_trials, saturation_curve, trial_recipe
from trainer.studies.claims import Cell, Claim, better
from trainer.studies.estimates import Estimate, Results, estimate
from trainer.studies.grid import SPLITS_OF_SEARCH, Grid, Run, across_tasks, search_list_url
from trainer.studies.scale import Scale, Search
from trainer.studies.study import Study, measured

NAME = "random-search"
RULE, CHOSEN, MEAN_ROW = "HyperRule", "random search", "mean of tasks"
_RULE_FIELDS = ("shortened", "batch_size", "steps")  # of fine-tuning, which a recipe says otherwise


def _start(grid: Grid, search: Search) -> Run | None:
    return None if search.init else grid.pretraining(search.upstream or grid.scale.largest)


def _fields(grid: Grid, search: Search, task: str) -> dict[str, Any]:
    """Return the fields that all fine-tunings on a task share: on both parts, tested on its test set."""
    start = _start(grid, search)
    begins = (
        {"init": f"{grid.out}/runs/{start.name}"} if start else {"init": search.init, "init_step": search.init_step}
    )
    model = PretrainConfig.model_validate_json(start.config).model if start else grid.scale.model
    fields = {**begins, "model": model, "shots": (0,), "seed": grid.scale.seeds[0], **grid.task_fields(task)}
    if not grid.has_splits_of_search(task):
        fields["exclude_train"] = search_list_url(grid.out, task, "both")
    return fields


def _parts(grid: Grid, task: str) -> dict[str, Any]:
    """Return the fields in which a trial differs: trained on one part, tested on the other."""
    if grid.has_splits_of_search(task):
        train, test = (f"{grid.scale.tasks[task].data}/{split}" for split in SPLITS_OF_SEARCH)
        versions = {"train_version": grid.datasets[train].version, "test_version": grid.datasets[test].version}
        return {"train": train, "test": test, **versions}
    train = grid.task_fields(task)["train"]
    return {
        "test": train,
        "test_version": grid.datasets[train].version,
        "exclude_train": search_list_url(grid.out, task, "train"),
        "exclude_test": search_list_url(grid.out, task, "validation"),
        "allow_test_on_train": True,
    }


def _rule(grid: Grid, search: Search, task: str) -> TransferRecipe:
    config = FinetuneConfig.model_validate({**grid.scale.finetune, **_fields(grid, search, task), "out": grid.out})
    num_train = search.num_train + search.num_validation
    return recipe_for(config, num_train, grid.datasets[config.train].nominal_px)


def _trials(grid: Grid, search: Search, task: str) -> list[Trial]:
    return draw_trials(search.space, search.trials, grid.scale.seeds[0], task)


def _tuned(grid: Grid, search: Search, task: str, trial: Trial) -> dict[str, Any]:
    """Return the fields that a trial decides."""
    drawn = {"recipe": trial_recipe(_rule(grid, search, task), trial)}
    return drawn | {"dropout": trial.dropout, "decay_to_start": trial.decay_to_start} | dict.fromkeys(_RULE_FIELDS)


def _trial_runs(grid: Grid, search: Search, task: str) -> list[tuple[Run, Run]]:
    """Return for each trial its fine-tuning and its test."""
    start = _start(grid, search)
    fields = _fields(grid, search, task) | _parts(grid, task)
    pairs = []
    for number, trial in enumerate(_trials(grid, search, task)):
        name = f"finetune/search/{task}/trial-{number:03d}"
        run = grid.fine_tuning(name, fields | _tuned(grid, search, task, trial), start.name if start else None)
        pairs.append((run, grid.test_of(run, f"search-test/{task}/trial-{number:03d}", grid.task_fields(task)["test"])))
    return pairs


def _repeated(grid: Grid, search: Search, task: str, kind: str, fields: Mapping[str, Any]) -> list[Run]:
    """Return a fine-tuning on both parts, once for each seed."""
    start, shared = _start(grid, search), _fields(grid, search, task)
    return [
        grid.fine_tuning(
            f"finetune/search/{task}/{kind}-seed-{seed}",
            {**shared, **fields, "seed": seed},
            start.name if start else None,
        )
        for seed in grid.scale.seeds
    ]


def _chosen(grid: Grid, search: Search, task: str, results: Results) -> list[Run]:
    """Return the fine-tunings of the chosen trial; none before all trials are done."""
    names = [run.name for run, _ in _trial_runs(grid, search, task)]
    if any(name not in results for name in names):
        return []
    best = best_trial([results[name]["accuracy"] for name in names])
    fields = _tuned(grid, search, task, _trials(grid, search, task)[best])
    return _repeated(grid, search, task, f"chosen-{best:03d}", fields)


def _runs(grid: Grid, results: Results) -> list[Run]:
    search = grid.scale.search
    if search is None:
        return []
    start = _start(grid, search)
    runs = [start] if start else []
    for task in grid.scale.tasks_for(NAME):
        runs += [run for pair in _trial_runs(grid, search, task) for run in pair]
        runs += _repeated(grid, search, task, "hyperrule", {}) + _chosen(grid, search, task, results)
    return runs


def _cells(grid: Grid, results: Results) -> dict[Cell, Estimate]:
    search = grid.scale.search
    if search is None:
        return {}
    by_column = {
        RULE: {task: _repeated(grid, search, task, "hyperrule", {}) for task in grid.scale.tasks_for(NAME)},
        CHOSEN: {task: _chosen(grid, search, task, results) for task in grid.scale.tasks_for(NAME)},
    }
    cells: dict[Cell, Estimate | None] = {}
    for column, runs in by_column.items():
        for task, repeated in runs.items():
            cells[task, column] = estimate([(run.name,) for run in repeated], results)
        if all(runs.values()):
            cells[MEAN_ROW, column] = estimate(across_tasks(runs), results)
    return measured(cells)


def _curves(grid: Grid, results: Results) -> Mapping[str, Sequence[tuple[float, float]]]:
    """Return the mean over tasks of what the chosen trial is worth, by the number of trials, and what the rule is.

    The trials are trained on one part, the rule on both.
    """
    search = grid.scale.search
    if search is None:
        return {}
    curves: dict[str, list[list[float]]] = {"validation": [], "test": []}
    for task in grid.scale.tasks_for(NAME):
        pairs = _trial_runs(grid, search, task)
        done = [(run.name, test.name) for run, test in pairs if {run.name, test.name} <= results.keys()]
        if len(done) < len(pairs):
            return {}
        validation = [results[name]["accuracy"] for name, _ in done]
        curves["validation"].append(saturation_curve(validation, validation))
        curves["test"].append(saturation_curve(validation, [results[name]["accuracy"] for _, name in done]))
    drawn = {
        name: [(number, fmean(values)) for number, values in enumerate(zip(*lines, strict=True), 1)]
        for name, lines in curves.items()
    }
    rule = _cells(grid, results).get((MEAN_ROW, RULE))
    return drawn | ({RULE: [(1, rule.value), (search.trials, rule.value)]} if rule else {})


def _claims(scale: Scale) -> list[Claim]:
    return [
        Claim("random search beats the HyperRule on the mean of tasks", [better((MEAN_ROW, CHOSEN), (MEAN_ROW, RULE))])
    ]


RANDOM_SEARCH = Study(
    name=NAME,
    title="Random search and the HyperRule",
    source="Figure 9",
    missing=lambda scale: "it needs [search]" if scale.search is None else None,
    runs=_runs,
    cells=_cells,
    claims=_claims,
    paper={("VTAB-1k", RULE): "76.29", ("VTAB-1k", CHOSEN): "78.72"},
    paper_says="R152x4 on JFT-300M; 40 trials for each of the 19 tasks, trained on 800 pictures, chosen on 200, and "
    "trained again on 1000. More than about 20 trials fit the validation pictures rather than the task.",
    curves=_curves,
    curve_axis="trials (mean over all orders, and over tasks)",
)
