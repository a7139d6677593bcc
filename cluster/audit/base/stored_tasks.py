"""Results of tasks in a work folder: made once, found again after any death, and the tasks that kill their workers.

A result is named by everything it depends on, so that a rerun finds it, another audit that asks the same finds it too,
and a changed shard or setting makes another name.
"""

import hashlib
import inspect
import json
import multiprocessing
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache, partial
from types import ModuleType
from typing import Protocol, TypeVar

import pyarrow as pa

from pipeline.base.errors import BitError
from pipeline.dataset.schema import from_parquet, to_parquet
from pipeline.packing.jobs import Reporting
from pipeline.store.base import Store, commit, exists
from pipeline.work.pools import Pool
from pipeline.work.schedule import Attempt, run_calls

_CAREFUL_AFTER = 2  # workers lost over a task
_TRIES = 2  # of a task that fails with an error nobody foresaw
_KEY_DIGITS = 32
_READ_THREADS = 16  # of results that are there; boto3 gives about 400 small reads a second in one process


class Task(Hashable, Protocol):
    """A call with a stored result."""

    @property
    def result_key(self) -> str:
        """Key of its result in the work folder."""


@dataclass(frozen=True)
class AuditJob:
    """Where an audit works.

    Attributes:
        work: Folder where results of tasks are kept.
        pool: Where tasks run. The result does not depend on it.
        reporting: Progress and log.
    """

    work: Store
    pool: Pool
    reporting: Reporting


T = TypeVar("T", bound=Task)
C = TypeVar("C", bound=Hashable)
R = TypeVar("R")
OnEvent = Callable[..., None]


@dataclass(frozen=True)
class Quarantined:
    """A task that was given up.

    Attributes:
        reason: What it died of.
    """

    reason: str


def key_of(kind: str, *parts: object) -> str:
    """Return the key of a result from all that it depends on."""
    return f"{kind}/{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_KEY_DIGITS]}.parquet"


@lru_cache
def code_digest(*modules: ModuleType) -> str:
    """Return a digest of the modules' source: results of other code are other results."""
    return hashlib.sha256("".join(inspect.getsource(module) for module in modules).encode()).hexdigest()[:_KEY_DIGITS]


def stored_or_made(store: Store, key: str, make: Callable[[], pa.Table]) -> pa.Table:
    """Return the stored table, or make and store it."""
    if not exists(store, key):
        commit(store, key, to_parquet(make()))
    return from_parquet(store.read(key))


def stored_results(
    job: AuditJob, function: Callable[[T], pa.Table], tasks: Sequence[T], on_result: Callable[[T], None]
) -> Iterator[tuple[T, pa.Table | Quarantined]]:
    """Yield each task with its table: those that are stored first, then the others as they end.

    Args:
        job: Where missing results are made and kept.
        function: From a task to its table, the same wherever and whenever it runs; it stores the table.
        tasks: Hashable, and can be pickled.
        on_result: Called with each task.

    Raises:
        BitError: What a task raised for the user.
        ServiceError: Workers kept dying.
    """
    store, on_event = job.work, job.reporting.event
    kinds = {task.result_key.rpartition("/")[0] for task in tasks}
    there = {entry.key for kind in kinds for entry in store.list(f"{kind}/")}
    done = [task for task in tasks if task.result_key in there]
    with ThreadPoolExecutor(_READ_THREADS) as threads:
        for task, body in zip(done, threads.map(store.read, [task.result_key for task in done]), strict=True):
            on_result(task)
            yield task, from_parquet(body)
    missing = [task for task in tasks if task.result_key not in there]
    on_event("resumed", num_done=len(done), num_missing=len(missing))
    for task, result in results_of(job.pool, function, missing, on_event):
        on_result(task)
        yield task, result


def results_of(
    pool: Pool, function: Callable[[C], R], calls: Iterable[C], on_event: OnEvent = lambda event, **values: None
) -> Iterator[tuple[C, R | Quarantined]]:
    """Yield every call with its result, or with Quarantined where it fails wherever it runs.

    A call that lost two workers runs in a process of its own, so that its guilt is proven and no third worker dies.
    """

    def told(event: str, call: C, detail: str) -> None:
        on_event(event, task=str(call), detail=detail)

    for call, result in run_calls(pool, partial(_guarded, function), calls, told):
        if isinstance(result, Quarantined):
            on_event("quarantined", task=str(call), detail=result.reason)
        yield call, result


def _guarded(function: Callable[[C], R], attempt: Attempt[C]) -> R | Quarantined:
    if attempt.num_losses < _CAREFUL_AFTER:
        return _tried(function, attempt.call)
    for _ in range(_TRIES):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
            try:
                return executor.submit(_tried, function, attempt.call).result()
            except BrokenProcessPool:
                continue
    return Quarantined("it kills the process that runs it")


def _tried(function: Callable[[C], R], call: C) -> R | Quarantined:
    reason = ""
    for _ in range(_TRIES):
        try:
            return function(call)
        except BitError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a shard brings up is told in the report
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return Quarantined(reason)
