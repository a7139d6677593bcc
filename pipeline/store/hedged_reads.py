"""Reads for training that neither fail for a transient error nor wait for one slow connection."""

import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeVar

import tenacity

from pipeline.base.errors import ConfigError, Unreachable
from pipeline.store.retry import OUTAGE_SECONDS, pause_seconds

_HEDGE_FLOOR_SECONDS = 0.5  # a choice: below it a second connection costs about as much as it saves
_HEDGE_MEDIANS = 3.0
_REMEMBERED_READS = 64
_HEDGE_BURST = 2.0  # a choice: hedges that may be saved up, so that the first slow reads need not wait for a budget

# What an attempt returned, and how long it took in seconds.
_Answer = Future[tuple[Any, float]]
T = TypeVar("T")


class RangeReader:
    """Repeats and hedges reads of about equal size, such as the blocks of a dataset. Safe for threads.

    A read that has not answered in three medians of the last 64 successful ones, and not in 0.5 s, is hedged: a
    second attempt starts beside it, and the first to succeed wins. Why three medians: a hedge should start where the
    tail begins, between the 95th percentile, so that hedges stay within their 5 %, and the 99th. Of 64 times the 99th
    percentile is the largest, and the slow connections that hedging is to overtake would raise it; the median does
    not move with them. If times are log-normal, three medians are the 95th percentile at a sigma of 0.67 and the
    99th at 0.47.

    Every attempt runs in a daemon thread of its own, so that neither the winner's caller nor the end of the
    interpreter waits for a loser; an executor would join it. That costs 0.5 ms a read, measured on a shared machine
    of two cores. A loser ends by the time-outs of its connection, and its bytes are dropped: attempts must have
    time-outs and no effects.

    Attributes:
        reads: Calls of `read`.
        retries: Attempts after a transient failure.
        hedges: Attempts started beside a slow one.
        hedges_won: How many of these returned the body.
        seconds: Time spent in `read`, pauses and failures included, summed over threads.
    """

    def __init__(self, max_hedged_fraction: float = 0.05, deadline_seconds: float = OUTAGE_SECONDS) -> None:
        """Start no thread yet.

        Args:
            max_hedged_fraction: Share of reads that may be hedged, from 0 (none) to 1, so that a service that is
                slow for all is not asked twice for everything; up to 2 unused hedges are saved up.
            deadline_seconds: How long a read may take with all its attempts, above 0.

        Raises:
            ConfigError: A value is outside its range.
        """
        if not 0 <= max_hedged_fraction <= 1:
            raise ConfigError(f"max_hedged_fraction is {max_hedged_fraction}; choose a share of reads, from 0 to 1")
        if not deadline_seconds > 0:
            raise ConfigError(f"deadline_seconds is {deadline_seconds}; choose a number of seconds above 0")
        self.reads = self.retries = self.hedges = self.hedges_won = 0
        self.seconds = 0.0
        self._fraction = max_hedged_fraction
        self._deadline_seconds = deadline_seconds
        self._hedges_saved = _HEDGE_BURST if max_hedged_fraction else 0.0
        self._recent_seconds: deque[float] = deque(maxlen=_REMEMBERED_READS)
        self._closed: _Answer = Future()
        self._lock = threading.Lock()

    def read(self, attempt: Callable[[], T]) -> T:
        """Return what `attempt` returns; call it in other threads, repeatedly if need be, and up to twice at a time.

        Args:
            attempt: Reads from storage. May be called again before an earlier call has ended.

        Raises:
            Unreachable: The last attempt's own, when the next would begin after the deadline; or none has answered
                at the deadline; or the reader was closed.
            Exception: Any other error of an attempt, at once; of a hedged pair when neither has succeeded.
        """
        started = time.monotonic()
        deadline = started + self._deadline_seconds
        with self._lock:
            self.reads += 1
            self._hedges_saved = min(self._hedges_saved + self._fraction, _HEDGE_BURST)
        retrying = tenacity.Retrying(
            stop=lambda state: self._closed.done() or time.monotonic() + state.upcoming_sleep >= deadline,
            wait=lambda state: pause_seconds(state.attempt_number),
            retry=tenacity.retry_if_exception_type(Unreachable),
            before_sleep=self._count_retry,
            sleep=self._pause,
            reraise=True,
        )
        try:
            found: T = retrying(self._raced, attempt, deadline)
            return found
        finally:
            with self._lock:
                self.seconds += time.monotonic() - started

    def close(self) -> None:
        """End the reads in progress, which raise Unreachable, and refuse new ones. Wait for nothing."""
        with self._lock:
            if not self._closed.done():
                self._closed.set_exception(_closed_error())

    def _raced(self, attempt: Callable[[], T], deadline: float) -> T:
        """Return the body of one attempt or, if it is slow, of one beside it."""
        first = self._started(attempt)
        pair, awaited = [first], [first]
        while True:
            answered = self._answered(awaited, deadline, self._hedge_seconds() if len(pair) == 1 else math.inf)
            for answer in answered:
                if not answer.exception():
                    found: T = self._won(answer, is_hedge=answer is not first)
                    return found
            awaited = [answer for answer in awaited if answer not in answered]
            if not awaited or time.monotonic() >= deadline:
                raise self._decisive_error(pair)
            if len(pair) == 1 and self._may_hedge():
                pair.append(self._started(attempt))
                awaited.append(pair[-1])

    def _started(self, attempt: Callable[[], T]) -> _Answer:
        if self._closed.done():
            raise _closed_error()
        answer: _Answer = Future()
        threading.Thread(target=_answer, args=(answer, attempt), name="range-read", daemon=True).start()
        return answer

    def _answered(self, awaited: list[_Answer], deadline: float, seconds: float) -> list[_Answer]:
        """Wait for the next answer, at most so many seconds and not beyond the deadline. Raises if closed."""
        left = max(0.0, deadline - time.monotonic())
        wait([*awaited, self._closed], timeout=min(left, seconds), return_when=FIRST_COMPLETED)
        answered = [answer for answer in awaited if answer.done()]
        if not answered and self._closed.done():
            raise _closed_error()
        return answered

    def _decisive_error(self, pair: list[_Answer]) -> BaseException:
        """Return the error that matters: a lasting one, if either is; none at all is a time-out."""
        errors = [error for answer in pair if answer.done() and (error := answer.exception())]
        lasting = [error for error in errors if not isinstance(error, Unreachable)]
        no_answer = f"no answer from storage within {self._deadline_seconds:g} s; check the service and the network"
        return [Unreachable(no_answer), *errors, *lasting][-1]

    def _hedge_seconds(self) -> float:
        with self._lock:
            median = statistics.median(self._recent_seconds) if self._recent_seconds else 0.0
        return max(_HEDGE_FLOOR_SECONDS, _HEDGE_MEDIANS * median)

    def _may_hedge(self) -> bool:
        """Take one hedge from what is saved; if there is none, a read still waiting asks again after a while."""
        with self._lock:
            if self._hedges_saved < 1:
                return False
            self._hedges_saved -= 1
            self.hedges += 1
            return True

    def _won(self, answer: _Answer, *, is_hedge: bool) -> Any:
        body, seconds = answer.result()
        with self._lock:
            self.hedges_won += is_hedge
            self._recent_seconds.append(seconds)
        return body

    def _count_retry(self, state: tenacity.RetryCallState) -> None:
        with self._lock:
            self.retries += 1

    def _pause(self, seconds: float) -> None:
        wait([self._closed], timeout=seconds)


def _answer(answer: _Answer, attempt: Callable[[], T]) -> None:
    started = time.monotonic()
    try:
        body = attempt()
    except BaseException as error:  # noqa: BLE001 - it is raised again where the answer is awaited
        answer.set_exception(error)
    else:
        answer.set_result((body, time.monotonic() - started))


def _closed_error() -> Unreachable:
    return Unreachable("the reader was closed while it read; read before closing")
