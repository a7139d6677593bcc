"""Many fine-tunings side by side: models x tasks x shots x subsets x seeds, each in a folder of its own.

A run is repeated from its newest checkpoint when its process dies, and skipped when its result is there; so the same
command goes on wherever it was ended.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, ValidationError, field_validator

from pipeline.base.errors import ConfigError, Conflict, NotFound
from pipeline.base.html import render_page
from pipeline.base.records import Record, json_bytes
from pipeline.base.toml import read_toml
from pipeline.packing.foreign_tars.open_any import absolute_pattern, open_any
from pipeline.store.any_url import join
from pipeline.store.base import Store, put
from pipeline.store.url import open_store
from pipeline.work.pools import Pool
from pipeline.work.schedule import Attempt
from trainer.checkpoint.record import chosen
from trainer.jobs.checks import check_finetune, is_multi_label
from trainer.jobs.config import OF_EACH_RUN, SCRATCH, FinetuneConfig
from trainer.jobs.side_by_side import ERROR, run_job, run_side_by_side
from trainer.run.evaluations import run_and_step
from trainer.scores.summaries import summarise
from trainer.tasks.prepare import augmentation_of

GROUPED_BY = ("init", "task", "shots")
SWEEP_KEY = "sweep.json"
_UNSAFE = re.compile(r"[^\w.-]+")
I = TypeVar("I", bound=int)  # noqa: E741


def _without_repeats(values: tuple[I, ...]) -> tuple[I, ...]:
    if len(set(values)) < len(values):
        raise ValueError("a number is given twice")
    return values


_Different = Annotated[tuple[I, ...], Field(min_length=1), AfterValidator(_without_repeats)]


class TaskData(Record):
    """Where a task lies.

    Attributes:
        train: URL of the training set.
        test: URL of the test set.
    """

    train: str
    test: str


class SweepPlan(Record):
    """What is to be fine-tuned, on what.

    Attributes:
        inits: Runs, each RUN, RUN@STEP or RUN@best, and `scratch`, by the names that tables show.
        tasks: Datasets by name; a folder stands for `train` and `test` in it.
        model: Needed with `scratch`.
        shots: Pictures a class; 0 means the whole training set.
        subsets: Few-shot subsets for each number of shots.
        seeds: Each trains all runs once more.
        settings: Further fields of FinetuneConfig, for all runs; none of those that differ from run to run.
    """

    inits: Annotated[dict[str, str], Field(min_length=1)]
    tasks: Annotated[dict[str, TaskData], Field(min_length=1)]
    model: str | None = None
    shots: _Different[NonNegativeInt] = (0,)
    subsets: PositiveInt = 5
    seeds: _Different[int] = (0,)
    settings: dict[str, Any] = Field(default_factory=dict)

    @field_validator("settings")
    @classmethod
    def _leaves_runs_apart(cls, settings: dict[str, Any]) -> dict[str, Any]:
        for name in settings:
            if name in (*cls.model_fields, *OF_EACH_RUN):
                raise ValueError(
                    f"{name} differs from run to run: inits, tasks, shots, subsets and seeds, above, decide it"
                )
        return settings


@dataclass(frozen=True)
class PlannedRun:
    """One run of the sweep.

    Attributes:
        init: Name of where it starts.
        task: Name of its task.
        config: In JSON, so that the run can be looked up and sent away.
    """

    init: str
    task: str
    config: str


def read_plan(path: Path) -> SweepPlan:
    """Return the plan of a TOML file; its paths are relative to the working folder.

    Raises:
        NotFound: There is no such file.
        ConfigError: It is no TOML, or says what no plan has.
    """
    given = read_toml(path)
    tasks = given.get("tasks")
    if isinstance(tasks, dict):
        folders = {name: url for name, url in tasks.items() if isinstance(url, str)}
        tasks |= {name: {"train": join(url, "train"), "test": join(url, "test")} for name, url in folders.items()}
    try:
        return SweepPlan.model_validate(given)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()
        )
        raise ConfigError(f"{path}: {problems}") from error


def planned_runs(plan: SweepPlan, out: str) -> list[PlannedRun]:
    """Return all runs, those with fewer shots first, with versions and checkpoints as they are now.

    Raises:
        NotFound: A dataset or a checkpoint is missing.
        ConfigError: A model is not known, a setting is wrong, or two names lead to one folder.
    """
    starts = {name: _start(plan, url) for name, url in plan.inits.items()}
    data = {name: _data(task) for name, task in plan.tasks.items()}
    few_first = sorted(plan.shots, key=lambda count: count or float("inf"))
    runs = []
    for shots, seed, subset, init, task in itertools.product(few_first, plan.seeds, range(plan.subsets), starts, data):
        if subset and not shots:
            continue  # the whole set has no subsets
        folder = f"{_UNSAFE.sub('-', init)}/{_UNSAFE.sub('-', task)}/{shots:04d}-shots-{subset}-seed-{seed}"
        given = {"shots": (shots,), "num_subsets": plan.subsets, "only_subset": subset, "seed": seed}
        given |= {**starts[init], **data[task], "out": f"{out.rstrip('/')}/runs/{folder}", **plan.settings}
        runs.append(PlannedRun(init, task, _config(given).model_dump_json()))
    folders = Counter(FinetuneConfig.model_validate_json(run.config).out for run in runs)
    if folders and folders.most_common(1)[0][1] > 1:
        raise ConfigError(f"two runs would write to {folders.most_common(1)[0][0]}; give inits and tasks other names")
    return runs


def _config(given: Mapping[str, Any]) -> FinetuneConfig:
    try:
        return FinetuneConfig.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ConfigError(f"settings.{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error


def _start(plan: SweepPlan, url: str) -> dict[str, Any]:
    if url == SCRATCH:
        if not plan.model:
            raise ConfigError("fine-tuning from scratch needs `model`, such as model = 'R50x1'")
        return {"init": SCRATCH, "model": plan.model}
    run, step = run_and_step(url)
    record = chosen(open_store(run), step)
    return {"init": run, "init_step": record.step, "model": record.about["model"]}


def _data(task: TaskData) -> dict[str, Any]:
    train, test = absolute_pattern(task.train), absolute_pattern(task.test)
    dataset = open_any(train)
    return {
        "train": train,
        "train_version": dataset.version.version,
        "test": test,
        "test_version": open_any(test).version.version,
        "loss": "sigmoid" if is_multi_label(dataset) else "softmax",
        **augmentation_of(train),
    }


def settled_runs(store: Store, plan: SweepPlan) -> list[PlannedRun]:
    """Return the runs of the sweep at a store, as they were planned when it began.

    Raises:
        Conflict: It began with another plan.
        BitError: As `planned_runs`, and as `check_finetune` of each model and task.
    """
    try:
        stored = json.loads(store.read(SWEEP_KEY))
    except NotFound:
        runs = planned_runs(plan, store.url)
        for run in runs:
            check_finetune(FinetuneConfig.model_validate_json(run.config), 0)
        listed = [{"init": run.init, "task": run.task, "config": json.loads(run.config)} for run in runs]
        store.create(SWEEP_KEY, json_bytes({"plan": plan.model_dump(mode="json"), "runs": listed}))
        return runs
    if stored["plan"] != plan.model_dump(mode="json"):
        raise Conflict(f"{store.url} holds the sweep of another plan; choose another OUT")
    return [
        PlannedRun(run["init"], run["task"], FinetuneConfig.model_validate(run["config"]).model_dump_json())
        for run in stored["runs"]
    ]


def run_sweep(
    store: Store,
    runs: Sequence[PlannedRun],
    pool: Pool,
    on_result: Callable[[dict[str, Any]], None] = lambda row: None,
    *,
    use_gpu: bool = False,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Run what is not done yet, write the summary and its page, and return results and failures.

    A run that fails is tried once more when the others are done.

    Args:
        store: Of the sweep.
        runs: As `settled_runs` returns them.
        pool: Where they run; each takes one place.
        on_result: Called with each result or failure as it comes.
        use_gpu: Whether the pool gives each run a GPU.

    Raises:
        ServiceError: Workers kept dying over one run.
    """
    found: dict[PlannedRun, dict[str, Any]] = {}

    def take(run: PlannedRun, row: dict[str, Any]) -> None:
        found[run] = {**row, "init": run.init, "task": run.task}
        on_result(found[run])

    run_side_by_side(pool, partial(_fine_tune, use_gpu=use_gpu), runs, take)
    results = [found[run] for run in runs if "error" not in found[run]]
    failures = [found[run] for run in runs if "error" in found[run]]
    rows = summarise(results, GROUPED_BY)
    put(store, "summary.json", json_bytes({"summary": rows, "results": results, "failures": failures}))
    put(store, "index.html", summary_page(rows, failures))
    return results, failures


def summary_page(rows: Sequence[Mapping[str, Any]], failures: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the summary as a page that opens offline: tasks and shots down, starts across."""
    inits = list(dict.fromkeys(row["init"] for row in rows))
    lines = list(dict.fromkeys((row["task"], row["shots"]) for row in rows))
    cells = {(row["task"], row["shots"], row["init"]): row for row in rows}
    return render_page(
        "trainer.jobs", "sweep.html.j2", title="Fine-tunings", inits=inits, lines=lines, cells=cells, failures=failures
    )


def _fine_tune(attempt: Attempt[PlannedRun], use_gpu: bool) -> dict[str, Any]:
    """Fine-tune one run in this process; return its result, or what went wrong."""
    from trainer.jobs.finetune import read_results  # noqa: PLC0415 - torch

    config = FinetuneConfig.model_validate_json(attempt.call.config)
    row = run_job("finetune", attempt.call.config, use_gpu=use_gpu)
    if ERROR in row:
        return {"name": config.out, ERROR: row[ERROR]}
    (result,) = read_results(open_store(config.out))
    return result | {"seed": config.seed}


def summary_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the summary as lines of a table for people."""
    yield f"{'task':24}{'shots':>6}  {'from':20}{'runs':>5}{'median':>9}{'mean':>9}{'std':>7}  95 % interval"
    for row in rows:
        shots = f"{row['shots']:,}" if row["shots"] else "all"
        spread = "" if row["std"] is None else f"{row['std']:.1%}"
        yield (
            f"{row['task']:24}{shots:>6}  {row['init']:20}{row['num_runs']:5}{row['median']:9.1%}{row['mean']:9.1%}"
            f"{spread:>7}  [{row['low']:.1%}, {row['high']:.1%}]"
        )
