"""Tasks whose results are stored in a work folder, computed once, and quarantine of tasks that kill their workers.

The key of a result is a digest of everything it depends on: a rerun finds it, so does another audit that needs the same
one, and a changed shard, setting or algorithm leads to another key. Algorithms carry a version beside them, which is
raised by hand when one returns something else; tests/cluster/audit/base/test_algorithm_versions.py tells when.
"""

import hashlib
import json
import multiprocessing
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol, TypeVar, cast

import pyarrow as pa

from pipeline.base.console import Reporting
from pipeline.base.errors import BitError
from pipeline.dataset.schema import to_parquet
from pipeline.dataset.tables import from_parquet, read_table
from pipeline.image import average64
from pipeline.store.base import Store, commit, exists
from pipeline.work.pools import Pool, end_with_parent
from pipeline.work.schedule import Attempt, run_calls

_ISOLATE_FROM_LOSSES = 2  # workers lost over one task
_NUM_TRIES = 2  # of a task that raises anything but a BitError, and of an isolated one
_KEY_DIGITS = 32
# Sets of few shards would leave cores idle, so tasks on their shards are divided. Choices.
_FEW_SHARDS, _PICTURES_PER_PART = 64, 1024
_NUM_READ_THREADS = 16  # for stored results; boto3 reaches about 400 small reads a second in one process


class Task(Hashable, Protocol):
    """A call whose result is stored."""

    @property
    def result_key(self) -> str:
        """Key of its result in the work folder."""


class ShardTask(Task, Protocol):
    """A task on a shard, which may be divided."""

    @property
    def rows(self) -> range:
        """Pictures of the shard that it is about."""

    @property
    def parts(self) -> Sequence["ShardTask"]:
        """Tasks from whose results its own is made; none where it is done at once."""


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
S = TypeVar("S", bound=ShardTask)
C = TypeVar("C", bound=Hashable)
R = TypeVar("R")
OnEvent = Callable[..., None]


@dataclass(frozen=True)
class Quarantined:
    """The outcome of a task that fails wherever it runs.

    Attributes:
        reason: Its last error.
    """

    reason: str


def key_of(kind: str, *parts: object) -> str:
    """Return the key of a result, from all that it depends on; each part must be JSON."""
    return f"{kind}/{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_KEY_DIGITS]}.parquet"


@lru_cache
def compiled_digest() -> str:
    """Return a digest of the C code on which results of an audit depend."""
    sources = [*sorted(Path(__file__).parents[1].rglob("*.c")), Path(average64.__file__).with_name("average64.c")]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:_KEY_DIGITS]


def parts_of(shard_samples: int, num_shards: int) -> list[range]:
    """Return the rows of the parts that the task on a shard is divided into; none where it is not."""
    if num_shards >= _FEW_SHARDS or shard_samples <= _PICTURES_PER_PART:
        return []
    rows = range(shard_samples)
    return [rows[start : start + _PICTURES_PER_PART] for start in rows[::_PICTURES_PER_PART]]


def load_or_compute(store: Store, key: str, compute: Callable[[], pa.Table]) -> pa.Table:
    """Return the stored table; compute and store it first if it is missing."""
    if not exists(store, key):
        commit(store, key, to_parquet(compute()))
    return read_table(store, key)


def stored_results(
    job: AuditJob, function: Callable[[T], pa.Table], tasks: Sequence[T], on_result: Callable[[T], None]
) -> Iterator[tuple[T, pa.Table | Quarantined]]:
    """Yield each task with its table: stored ones first, then the others in the order they end.

    Args:
        job: Where missing results are computed and stored.
        function: Maps a task to its table, the same wherever and whenever it runs, and stores the table.
        tasks: Hashable, and can be pickled.
        on_result: Called with each task that has its result.

    Raises:
        BitError: A task raised it.
        ServiceError: Workers kept dying.
    """
    store, on_event = job.work, job.reporting.event
    kinds = {task.result_key.rpartition("/")[0] for task in tasks}
    stored = {entry.key for kind in kinds for entry in store.list(f"{kind}/")}
    done = [task for task in tasks if task.result_key in stored]
    with ThreadPoolExecutor(_NUM_READ_THREADS) as threads:
        for task, body in zip(done, threads.map(store.read, [task.result_key for task in done]), strict=True):
            on_result(task)
            yield task, from_parquet(body, f"{store.url}/{task.result_key}")
    missing = [task for task in tasks if task.result_key not in stored]
    on_event("resumed", num_done=len(done), num_missing=len(missing))
    for task, result in results_of(job.pool, function, missing, on_event):
        on_result(task)
        yield task, result


def shard_results(
    job: AuditJob, function: Callable[[S], pa.Table], tasks: Sequence[S], advance: Callable[[int, int], None]
) -> Iterator[tuple[S, pa.Table | Quarantined]]:
    """Do as `stored_results`, where tasks may be divided: missing ones have their parts computed first, side by side.

    Args:
        job: See stored_results.
        function: See stored_results; that of a divided task takes what is stored of its parts.
        tasks: See stored_results.
        advance: Called with the number of pictures that were done.
    """
    divided = {task.result_key for task in tasks if task.parts and not exists(job.work, task.result_key)}
    parts = [cast(S, part) for task in tasks if task.result_key in divided for part in task.parts]
    # A part that fails wherever it runs is met again with its shard, whose outcome counts.
    deque(stored_results(job, function, parts, lambda part: advance(len(part.rows), 0)), maxlen=0)
    yield from stored_results(
        job, function, tasks, lambda task: advance(0 if task.result_key in divided else len(task.rows), 0)
    )


def results_of(
    pool: Pool, function: Callable[[C], R], calls: Iterable[C], on_event: OnEvent = lambda event, **values: None
) -> Iterator[tuple[C, R | Quarantined]]:
    """Yield every call with its result, or with Quarantined if it fails wherever it runs.

    A call over which two workers were lost runs in a process of its own: if it kills that too, it is the cause, and no
    third worker dies.
    """

    def report(event: str, call: C, detail: str) -> None:
        on_event(event, task=str(call), detail=detail)

    for call, result in run_calls(pool, partial(_run_isolated_after_losses, function), calls, report):
        if isinstance(result, Quarantined):
            on_event("quarantined", task=str(call), detail=result.reason)
        yield call, result


def _run_isolated_after_losses(function: Callable[[C], R], attempt: Attempt[C]) -> R | Quarantined:
    if attempt.num_losses < _ISOLATE_FROM_LOSSES:
        return _run_with_retry(function, attempt.call)
    for _ in range(_NUM_TRIES):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=end_with_parent) as executor:
            try:
                return executor.submit(_run_with_retry, function, attempt.call).result()
            except BrokenProcessPool:
                continue
    return Quarantined("it kills the process that runs it")


def _run_with_retry(function: Callable[[C], R], call: C) -> R | Quarantined:
    reason = ""
    for _ in range(_NUM_TRIES):
        try:
            return function(call)
        except BitError:
            raise
        except Exception as error:  # noqa: BLE001 - the report names whatever a shard raises
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return Quarantined(reason)
