"""Tasks that fail wherever they run, or kill their workers, are quarantined; the others have their results."""

import multiprocessing
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.audit.base.stored_tasks import Quarantined, _run_isolated_after_losses, results_of
from pipeline.work.pools import Processes
from pipeline.work.schedule import Attempt


@dataclass(frozen=True)
class Call:
    number: int


def deadly(call: Call) -> int:
    """Kill its process for one call, fail for another."""
    if call.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if call.number == 2:
        raise ValueError("an unexpected shard")
    return call.number


def test_a_shard_that_kills_its_workers_is_quarantined_and_the_others_are_done() -> None:
    pool, events = Processes(2), list[str]()
    try:
        results = dict(
            results_of(pool, deadly, [Call(number) for number in range(4)], lambda event, **_: events.append(event))
        )
    finally:
        pool.close()
    assert results[Call(0)] == 0
    assert results[Call(3)] == 3
    assert results[Call(1)] == Quarantined("it kills the process that runs it")
    assert results[Call(2)] == Quarantined("ValueError: an unexpected shard")
    assert events.count("lost") == 2
    assert events.count("quarantined") == 2


def wait_long(pid_file: Path) -> None:
    """Write the number of the process, and stay."""
    pid_file.with_suffix(".part").write_text(str(os.getpid()))
    pid_file.with_suffix(".part").rename(pid_file)
    time.sleep(600)


def test_an_isolated_task_ends_with_the_worker_that_isolates_it_even_if_that_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    worker = multiprocessing.get_context("spawn").Process(
        target=_run_isolated_after_losses, args=(wait_long, Attempt(pid_file, num_losses=2))
    )
    worker.start()
    while not pid_file.exists():
        assert worker.is_alive()
        time.sleep(0.1)
    isolated = psutil.Process(int(pid_file.read_text()))
    worker.kill()
    worker.join()
    deadline = time.monotonic() + 60
    with suppress(psutil.NoSuchProcess):
        while isolated.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "it goes on without the worker"
            time.sleep(0.1)
