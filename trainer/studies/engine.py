"""Runs what studies lack: each run once, whichever of them ask for it, after those that it starts from."""

import json
import time
from collections.abc import Callable, Iterator, Sequence, Set
from functools import partial
from typing import Any, NamedTuple

from pipeline.base.errors import Conflict, Interrupted, NonFinite, ServiceError, TrainError
from pipeline.base.records import json_bytes
from pipeline.packing.foreign_tars.open_any import open_any
from pipeline.store.base import Store, exists
from pipeline.store.url import open_store
from pipeline.streaming.choose import listed_rows
from pipeline.work.pools import Pool
from pipeline.work.schedule import Attempt
from trainer.jobs.side_by_side import ERROR, Row, run_job, run_side_by_side
from trainer.studies.grid import Grid, Run
from trainer.studies.study import Study

RESULTS = "results/"
DIVERGED = "diverged"  # in the row of a fine-tuning that has no result of its own
_COSTS = ("seconds", "cpu_seconds")


class Counted(NamedTuple):
    """How far studies are.

    Attributes:
        done: Runs with a result.
        total: Runs that are known by now.
    """

    done: int
    total: int


Work = Callable[[str, Attempt[Run]], Row]


def read_results(store: Store) -> dict[str, Row]:
    """Return the rows of all runs of a folder of studies that are done, by name."""
    return {
        entry.key.removeprefix(RESULTS).removesuffix(".json"): json.loads(store.read(entry.key))
        for entry in store.list(RESULTS)
    }


def planned(studies: Sequence[Study], grid: Grid, results: dict[str, Row]) -> dict[str, Run]:
    """Return all runs of some studies by name, as far as they are known with these results.

    Raises:
        Conflict: Two studies give different runs one name.
    """
    runs: dict[str, Run] = {}
    for study in studies:
        for run in study.runs(grid, results):
            if runs.setdefault(run.name, run) != run:
                raise Conflict(f"two studies call different runs {run.name}; run them with different OUT")
    return runs


def run_studies(
    store: Store,
    studies: Sequence[Study],
    grid: Grid,
    pool: Pool,
    on_row: Callable[[Run, Row, Counted], None] = lambda run, row, counted: None,
    work: Work | None = None,
) -> tuple[dict[str, Row], dict[str, Row]]:
    """Run what has no result yet, and return results and failures by name; what needs a failed run is left out.

    Args:
        store: Of the folder of studies.
        studies: Whose runs are wanted.
        grid: Of the folder.
        pool: Where runs go; each takes one place.
        on_row: Called with each result or failure as it comes.
        work: What is run with the folder's URL and each attempt; `execute` by default.
    """
    failures: dict[str, Row] = {}
    while True:
        results = read_results(store)
        runs = planned(studies, grid, results)
        done = set(results)
        open_runs = [run for run in runs.values() if run.name not in done and run.name not in failures]
        if not any(not run.needs or run.needs in done for run in open_runs):
            return results, failures

        def take(run: Run, row: Row, done: set[str] = done, names: Set[str] = runs.keys()) -> None:
            if ERROR in row:
                failures[run.name] = row
            else:
                done.add(run.name)
            on_row(run, row, Counted(len(done & names), len(names)))

        run_side_by_side(pool, partial(work or execute, store.url), _Ready(open_runs, done), take)


class _Ready:
    """Hands out runs whose start is there, in their order; each result may make more of them ready."""

    def __init__(self, runs: Sequence[Run], done: Set[str]) -> None:
        self._waiting, self._done = list(runs), done

    def __iter__(self) -> Iterator[Run]:
        return self

    def __next__(self) -> Run:
        for place, run in enumerate(self._waiting):
            if not run.needs or run.needs in self._done:
                return self._waiting.pop(place)
        raise StopIteration


def execute(url: str, attempt: Attempt[Run], *, use_gpu: bool = False) -> Row:
    """Run one run in this process, on its GPU if it is given one, and store its result; return it, or what went wrong.

    A fine-tuning that diverges has a result, too: the same run would do so again, and whoever used it had a model that
    is never right. So have the tests of that model.
    """
    run = attempt.call
    if run.needs and _result(url, run.needs).get(DIVERGED):
        return _stored(url, run, _never_right(run))
    row = run_job(run.job, run.config, use_gpu=use_gpu)
    if ERROR not in row:
        return _stored(url, run, _result_of(run) | {name: row[name] for name in _COSTS})
    if run.job == "finetune" and row[ERROR].startswith(NonFinite.__name__):
        return _stored(url, run, _never_right(run) | {"why": row[ERROR]})
    return row


def execute_in_group(num_workers: int, use_gpu: bool, url: str, attempt: Attempt[Run]) -> Row:
    """Run one run on a group of Ray Train workers and store its result, as `execute` does."""
    from trainer.jobs.table import JOBS  # noqa: PLC0415 - torch
    from trainer.run.launch import run as launch  # noqa: PLC0415

    run, began = attempt.call, time.monotonic()
    if run.needs and _result(url, run.needs).get(DIVERGED):
        return _stored(url, run, _never_right(run))
    job = JOBS[run.job]
    config = job.config_type.model_validate_json(run.config)
    try:
        launch(job, config, num_workers=(num_workers, num_workers), use_gpu=use_gpu, max_failures=-1, wait=True)
    except (ServiceError, TrainError) as error:
        if isinstance(error, Interrupted):
            raise
        if run.job == "finetune" and isinstance(error, NonFinite):
            return _stored(url, run, _never_right(run) | {"why": f"{NonFinite.__name__}: {error}"})
        return {ERROR: str(error)}
    return _stored(url, run, _result_of(run) | {"seconds": time.monotonic() - began})


def _result(url: str, name: str) -> Row:
    return dict(json.loads(open_store(url).read(f"{RESULTS}{name}.json")))


def _stored(url: str, run: Run, row: Row) -> Row:
    store, key = open_store(url), f"{RESULTS}{run.name}.json"
    if not exists(store, key):
        store.create(key, json_bytes(row))
    return row


def _never_right(run: Run) -> Row:
    config = json.loads(run.config)
    kind, left_out = ("data", "exclude") if run.job == "evaluate" else ("test", "exclude_test")
    num_test = open_any(config[kind], config[f"{kind}_version"]).version.num_samples
    if config[left_out]:
        num_test -= sum(map(len, listed_rows(config[left_out]).values()))
    return {"accuracy": 0.0, "num_correct": 0, "num_test": num_test, DIVERGED: True}


def _result_of(run: Run) -> dict[str, Any]:
    """Return what a finished run left in its folder."""
    folder = open_store(json.loads(run.config)["out"])
    if run.job == "evaluate":
        return dict(json.loads(folder.read("result.json")))
    if run.job == "finetune":
        return dict(json.loads(next(folder.read(entry.key) for entry in folder.list("results/"))))
    return {}
