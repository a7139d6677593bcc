"""Tasks that fail wherever they run, or kill their workers, are quarantined; the others have their results."""

import os
import signal
from dataclasses import dataclass

from cluster.audit.base.stored_tasks import Quarantined, results_of
from pipeline.work.pools import Processes


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
