"""Jobs side by side in a pool, each in one process: resumed when its process dies, tried again when it fails."""

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

from pipeline.base.errors import BitError
from pipeline.work.pools import Pool
from pipeline.work.schedule import Attempt, run_calls

logger = logging.getLogger(__name__)

C = TypeVar("C")
T = TypeVar("T")
Row = dict[str, Any]
ERROR = "error"  # in the row of a job that failed


def run_side_by_side(
    pool: Pool,
    function: Callable[[Attempt[C]], Row],
    calls: Iterable[C],
    on_row: Callable[[C, Row], None] = lambda call, row: None,
) -> dict[C, Row]:
    """Return the row of every call; one that fails is tried once more when the others are done.

    Args:
        pool: Where they run; each takes one place.
        function: What is run with each attempt; it goes on from where an attempt before it was ended.
        calls: Hashable; taken one by one as places get free. An iterator that has no more for now is asked again after
            each result.
        on_row: Called with each result, or failure that stays one, as it comes.
    """
    found: dict[C, Row] = {}
    for is_last in (False, True):
        failed = [call for call, row in found.items() if ERROR in row]
        wanted = failed if is_last else calls
        for call, row in run_calls(_WithoutCopies(pool), function, wanted, on_hopeless=_failure):
            found[call] = row
            if ERROR not in row or is_last:
                on_row(call, row)
    return found


def _failure(_: Any, why: str) -> Row:
    return {ERROR: why}


def run_job(name: str, config: str, *, use_gpu: bool = False) -> Row:
    """Run one of `trainer.jobs.table` in this process, on one core; return its last row, or what went wrong.

    The row says how long it took, too: `seconds`, and `cpu_seconds`.

    Args:
        name: Of the job.
        config: In JSON.
        use_gpu: Whether this process has a GPU of its own. Those of the machine are left alone otherwise: Ray and
            processes show them to all.
    """
    import torch  # noqa: PLC0415 - only workers need it

    from trainer.jobs.table import JOBS  # noqa: PLC0415
    from trainer.run.controls import Controls  # noqa: PLC0415
    from trainer.step.ranks import World, alone  # noqa: PLC0415

    job = JOBS[name]
    torch.set_num_threads(1)  # those side by side share the cores
    rows: list[Row] = []
    began = time.monotonic(), time.process_time()
    try:
        world = alone(use_gpu=True) if use_gpu else World(0, 1, torch.device("cpu"))
        job.run(job.config_type.model_validate_json(config), world, rows.append, Controls())
    except Exception as error:  # whatever one run ends with, the others go on, and it is told
        if not isinstance(error, BitError):
            logger.exception("%s failed", name)
        return {ERROR: f"{type(error).__name__}: {error}"}
    took = {"seconds": time.monotonic() - began[0], "cpu_seconds": time.process_time() - began[1]}
    return (rows[-1] if rows else {}) | took


class _WithoutCopies:
    """A pool that starts no second copy of slow calls: jobs differ in length, and a copy would fence the first."""

    may_lose_workers = False

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.num_slots = pool.num_slots

    @property
    def num_reported(self) -> int:
        """See Pool.num_reported."""
        return self._pool.num_reported

    def submit(self, function: Callable[..., T], *arguments: Any) -> "Future[T]":
        """See Pool.submit."""
        return self._pool.submit(function, *arguments)

    def cancel(self, future: "Future[Any]") -> None:
        """See Pool.cancel."""
        self._pool.cancel(future)

    def close(self) -> None:
        """See Pool.close."""
        self._pool.close()
