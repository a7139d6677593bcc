"""What may pass is tried five times, anything else once, with pauses that stay short."""

from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st

import pipeline.store.retry
from pipeline.base.errors import NotFound, Unreachable
from pipeline.store.retry import ATTEMPTS, pause_seconds, retried, through_outages, waiting_for_outages


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.store.retry, "LONGEST_PAUSE_SECONDS", 0.0)


def failing(*errors: Exception) -> tuple[Callable[[], int], list[int]]:
    """Return an attempt that fails with each of the errors, then succeeds, and its calls."""
    calls: list[int] = []

    def attempt() -> int:
        calls.append(len(calls))
        if len(calls) <= len(errors):
            raise errors[len(calls) - 1]
        return len(calls)

    return attempt, calls


def is_transient(error: BaseException) -> bool:
    return isinstance(error, Unreachable)


def test_errors_that_pass_are_repeated_until_an_answer_comes() -> None:
    attempt, _ = failing(*[Unreachable("not now")] * (ATTEMPTS - 1))
    assert retried(is_transient, attempt) == ATTEMPTS


def test_the_last_error_goes_up_when_all_attempts_fail() -> None:
    attempt, calls = failing(*(Unreachable(f"attempt {number}") for number in range(100)))
    with pytest.raises(Unreachable, match=f"attempt {ATTEMPTS - 1}"):
        retried(is_transient, attempt)
    assert len(calls) == ATTEMPTS


def test_an_error_that_stays_goes_up_at_once() -> None:
    attempt, calls = failing(Unreachable("not now"), NotFound("gone"))
    with pytest.raises(NotFound):
        retried(is_transient, attempt)
    assert len(calls) == 2


@given(st.integers(1, 10**6))
def test_pauses_double_up_to_the_longest(num_failures: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.store.retry, "LONGEST_PAUSE_SECONDS", 10.0)
        patch.setattr(pipeline.store.retry.random, "uniform", lambda low, high: (low, high))
        assert pause_seconds(num_failures) == (0.0, min(10.0, 0.2 * 2 ** min(num_failures - 1, 60)))


def test_an_outage_is_waited_for_only_where_that_is_asked_for() -> None:
    attempt, calls = failing(*[Unreachable("not now")] * 3)
    with pytest.raises(Unreachable):
        through_outages(attempt)
    with waiting_for_outages(60.0):
        assert through_outages(attempt) == 4
    attempt, calls = failing(NotFound("no"))
    with waiting_for_outages(60.0), pytest.raises(NotFound):
        through_outages(attempt)
    assert len(calls) == 1
