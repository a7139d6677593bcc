"""Calls on a pool: bounded, each with one result, repeated after losses, copied when slow."""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import pipeline.store.retry
import pipeline.work.schedule
from pipeline.base.errors import ServiceError, Unreachable
from pipeline.work.pools import InProcess, Processes, WorkerLost
from pipeline.work.schedule import MOST_LOSSES, Attempt, run_calls, slow_after
from tests.waiting import WAIT_SECONDS, wait_until


class Outcome(NamedTuple):
    """How an attempt ends.

    Attributes:
        error: What it raises; None for a result.
        after: What it waits for: an event, or seconds.
    """

    error: Exception | None = None
    after: threading.Event | float = 0.0


SUCCESS = Outcome()
LOST = Outcome(WorkerLost("gone"))


class Scripted:
    """A pool whose calls end as scripted: each attempt of a call takes the next of its outcomes."""

    may_lose_workers = True

    def __init__(self, num_slots: int, outcomes: dict[int, list[Outcome]]) -> None:
        self.num_slots, self._outcomes = num_slots, outcomes
        self.started: Counter[int] = Counter()
        self.most_under_way = 0
        self._under_way = 0
        self._lock = threading.Lock()

    def submit(self, function: Callable[..., Any], attempt: Attempt[int]) -> "Future[Any]":
        future: Future[Any] = Future()
        with self._lock:
            outcome = self._outcomes[attempt.call][self.started[attempt.call]]
            self.started[attempt.call] += 1
            self._under_way += 1
            self.most_under_way = max(self.most_under_way, self._under_way)

        def end() -> None:
            if isinstance(outcome.after, threading.Event):
                outcome.after.wait(WAIT_SECONDS)
            else:
                time.sleep(outcome.after)  # the point: a call that takes this long
            with self._lock:
                self._under_way -= 1
            if outcome.error:
                future.set_exception(outcome.error)
            else:
                future.set_result((attempt.call, attempt.num_losses))

        threading.Thread(target=end, daemon=True).start()
        return future

    def cancel(self, future: "Future[Any]") -> None:
        pass

    def close(self) -> None:
        pass


def test_every_call_has_one_result_within_the_bound() -> None:
    pool = Scripted(3, {number: [Outcome(after=0.002)] for number in range(40)})
    results = list(run_calls(pool, lambda attempt: None, range(40)))
    assert sorted(call for call, _ in results) == list(range(40))
    assert pool.most_under_way == 3


def test_lost_calls_are_repeated_and_reported() -> None:
    events = []
    pool = Scripted(2, {0: [LOST, LOST, SUCCESS], 1: [SUCCESS]})
    results = dict(run_calls(pool, lambda attempt: None, [0, 1], lambda *event: events.append(event[:2])))
    assert results == {0: (0, 2), 1: (1, 0)}  # the function learns how many workers it cost
    assert events == [("lost", 0), ("lost", 0)]


def test_a_call_that_keeps_killing_workers_ends_the_run() -> None:
    pool = Scripted(1, {0: [LOST] * MOST_LOSSES})
    with pytest.raises(ServiceError, match=f"0: {MOST_LOSSES} workers died over it"):
        list(run_calls(pool, lambda attempt: None, [0]))


def test_a_call_that_keeps_killing_workers_may_have_a_result_of_its_own() -> None:
    pool = Scripted(1, {0: [LOST] * MOST_LOSSES, 1: [SUCCESS]})
    results = dict(run_calls(pool, lambda attempt: None, [0, 1], on_hopeless=lambda call, why: (why, call)))
    assert results[1] == (1, 0)
    assert f"{MOST_LOSSES} workers died over it" in str(results[0][0])


def test_an_outage_is_waited_for_and_ends_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.store.retry, "LONGEST_PAUSE_SECONDS", 0.02)
    down = Outcome(Unreachable("no answer"))
    assert dict(run_calls(Scripted(1, {0: [down, down, SUCCESS]}), lambda attempt: None, [0])) == {0: (0, 0)}
    monkeypatch.setattr(pipeline.work.schedule, "OUTAGE_SECONDS", 0.05)
    with pytest.raises(Unreachable):
        list(run_calls(Scripted(1, {0: [down] * 1000}), lambda attempt: None, [0]))


class Reported:
    """The events of one call, each to be waited for; on a busy machine others may be slow, too."""

    def __init__(self, call: int) -> None:
        self.copied, self.outage, self._call = threading.Event(), threading.Event(), call

    def __call__(self, event: str, call: int, detail: str) -> None:
        if call == self._call:
            getattr(self, event).set()


def test_a_straggler_is_started_again_elsewhere_and_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.work.schedule, "_LEAST_SLOW_SECONDS", 0.05)
    monkeypatch.setattr(pipeline.work.schedule, "_POLL_SECONDS", 0.01)
    is_over, events = threading.Event(), Reported(3)
    outcomes = {number: [SUCCESS, SUCCESS] for number in range(20)}
    outcomes[3] = [Outcome(after=is_over), SUCCESS]
    pool = Scripted(2, outcomes)
    results = [call for call, _ in run_calls(pool, lambda attempt: None, range(20), events)]
    is_over.set()
    assert sorted(results) == list(range(20))
    assert events.copied.is_set()
    assert pool.started[3] == 2


def test_a_call_whose_copy_succeeds_while_it_waits_for_an_outage_has_one_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline.work.schedule, "_LEAST_SLOW_SECONDS", 0.05)
    monkeypatch.setattr(pipeline.work.schedule, "_POLL_SECONDS", 0.01)
    events = Reported(3)
    outcomes = {number: [SUCCESS, SUCCESS] for number in range(20)}
    outcomes[3] = [Outcome(Unreachable("gone"), events.copied), Outcome(after=events.outage), SUCCESS]
    results = [call for call, _ in run_calls(Scripted(2, outcomes), lambda attempt: None, range(20), events)]
    assert sorted(results) == list(range(20))


def test_an_outage_with_calls_left_to_start_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.work.schedule, "_LEAST_SLOW_SECONDS", 0.01)
    monkeypatch.setattr(pipeline.work.schedule, "_POLL_SECONDS", 0.005)
    monkeypatch.setattr(pipeline.store.retry, "LONGEST_PAUSE_SECONDS", 0.02)
    for seed in range(5):
        chance = random.Random(seed)
        outcomes = {}
        for number in range(30):
            failures = [Outcome(Unreachable("gone"), after=0.02)] * chance.choice([0, 0, 1, 2])
            outcomes[number] = [*failures, *[Outcome(after=0.002)] * 3]
        results = [call for call, _ in run_calls(Scripted(2, outcomes), lambda attempt: None, range(30))]
        assert sorted(results) == list(range(30))


def test_a_worker_that_died_while_idle_is_replaced(tmp_path: Path) -> None:
    pool = Processes(1)
    first = pool.submit(os.getpid).result()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: pool._idle[0].executor._broken, "its executor to notice")
    assert dict(run_calls(pool, os_getpid, [1]))[1] != first
    pool.close()


def os_getpid(attempt: Attempt[int]) -> int:
    return os.getpid()


def hang_at_first(attempt: Attempt[str]) -> str:
    try:
        Path(attempt.call).touch(exist_ok=False)
    except FileExistsError:
        return attempt.call
    if attempt.call.endswith("hangs"):
        threading.Event().wait()
    return attempt.call


def test_a_call_that_hangs_holds_up_neither_the_run_nor_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.work.schedule, "_LEAST_SLOW_SECONDS", 1.0)
    pool = Processes(2)
    calls = [str(tmp_path / f"{number}") for number in range(10)] + [str(tmp_path / "hangs")]
    assert {call for call, _ in run_calls(pool, hang_at_first, calls)} == set(calls)
    pool.close()


def test_slow_is_what_takes_longer_than_was_usual() -> None:
    assert slow_after([1.0] * 3) == float("inf")
    assert slow_after([0.1] * 100) == pipeline.work.schedule._LEAST_SLOW_SECONDS
    assert slow_after([10.0] * 100) == 30.0


def test_errors_of_a_call_reach_the_caller() -> None:
    def fail(attempt: Attempt[int]) -> None:
        raise KeyError(attempt.call)

    with pytest.raises(KeyError):
        list(run_calls(InProcess(), fail, [1, 2]))


def die_at_first(attempt: Attempt[str]) -> int:
    if not Path(attempt.call).exists():
        Path(attempt.call).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def test_the_death_of_one_process_leaves_the_others_alone(tmp_path: Path) -> None:
    pool = Processes(2)
    calls = [str(tmp_path / f"{number}") for number in range(6)]
    for call in calls[1:]:
        Path(call).touch()
    results = dict(run_calls(pool, die_at_first, calls))
    pool.close()
    assert set(results) == set(calls)
    assert len(set(results.values())) <= 3
