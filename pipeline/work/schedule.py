"""Keeps a pool busy with calls until each has one result: bounded, repeated after losses, copied when slow."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from statistics import quantiles
from typing import Any, Generic, TypeVar

from pipeline.base.errors import ServiceError, Unreachable
from pipeline.store.retry import OUTAGE_SECONDS, pause_seconds
from pipeline.work.pools import Pool, WorkerLost

C = TypeVar("C")
T = TypeVar("T")
# A call that takes longer than this many times the 95th percentile is started a second time elsewhere.
SLOW_FACTOR = 3.0
_LEAST_DURATIONS = 8  # to know a percentile from
_LEAST_SLOW_SECONDS = 10.0
MOST_LOSSES = 6  # of workers over one call, before it is called the cause
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Attempt(Generic[C]):
    """One try at a call.

    Attributes:
        call: What is to be done.
        num_losses: Workers that were lost over it before.
    """

    call: C
    num_losses: int = 0


@dataclass
class _Running(Generic[C]):
    attempt: Attempt[C]
    started: float


class Count:
    """Makes one count, which only grows, of what calls report on their way and of what they are known to have done."""

    def __init__(self, pool: Pool, total: int, advance: Callable[[int, int], None]) -> None:
        """Begin at 0.

        Args:
            pool: Where the calls run.
            total: Is not exceeded, though a call that is repeated reports twice.
            advance: Called with the number, and the bytes of calls that have ended, since the last call.
        """
        self._pool, self._total, self._advance = pool, total, advance
        self._before = pool.num_reported
        self._shown = self._done = self._num_bytes = 0

    def poll(self) -> None:
        """Look at what the calls reported; the last one counts when its call has ended."""
        reported = min(self._total - 1, self._pool.num_reported - self._before)
        now = min(self._total, max(self._done, reported))
        if now > self._shown:
            self._advance(now - self._shown, self._num_bytes)
            self._shown, self._num_bytes = now, 0

    def add(self, count: int, num_bytes: int = 0) -> None:
        """Add what a call that has ended has done, and the bytes it wrote."""
        self._done += count
        self._num_bytes += num_bytes
        self.poll()


def slow_after(durations: list[float]) -> float:
    """Return the age in seconds from which a call is slow, from the durations of those that ended."""
    if len(durations) < _LEAST_DURATIONS:
        return float("inf")
    return max(_LEAST_SLOW_SECONDS, SLOW_FACTOR * quantiles(durations, n=20)[-1])


def run_calls(
    pool: Pool,
    function: Callable[[Attempt[C]], T],
    calls: Iterable[C],
    on_event: Callable[[str, C, str], None] = lambda event, call, detail: None,
    on_wait: Callable[[], None] = lambda: None,
    on_hopeless: Callable[[C, str], T] | None = None,
) -> Iterator[tuple[C, T]]:
    """Yield each call with its result, in the order they end.

    Args:
        pool: Where they run; at most its `num_slots` at a time.
        function: What is run with each attempt; repeating it must be harmless.
        calls: Hashable; taken one by one as places get free.
        on_event: Called with `lost`, `outage` or `copied`, the call and a detail.
        on_wait: Called about twice a second.
        on_hopeless: From a call over which workers kept dying, and a sentence that says so, to its result; None to end.

    Raises:
        ServiceError: Workers kept dying over one call.
        Exception: What a call raised; a store that does not answer only after OUTAGE_SECONDS without any result.
    """
    state: _State[C, T] = _State(pool, function, calls, on_event, on_hopeless)
    try:
        while state.fill():
            yield from state.collect()
            on_wait()
    finally:
        for future in state.running:
            pool.cancel(future)


class _State(Generic[C, T]):
    def __init__(
        self,
        pool: Pool,
        function: Callable[[Attempt[C]], T],
        calls: Iterable[C],
        on_event: Any,
        on_hopeless: Callable[[C, str], T] | None,
    ) -> None:
        self._pool, self._function, self._on_event, self._on_hopeless = pool, function, on_event, on_hopeless
        self._fresh, self._is_exhausted = iter(calls), False
        self._again: deque[Attempt[C]] = deque()
        self.running: dict[Future[T], _Running[C]] = {}
        self._done: set[C] = set()
        self._durations: deque[float] = deque(maxlen=500)
        self._outage_since: float | None = None
        self._outages = 0
        self._not_before = 0.0

    def fill(self) -> bool:
        """Start calls while there are places; return whether anything is running or waiting."""
        while len(self.running) < self._pool.num_slots and time.monotonic() >= self._not_before:
            attempt = self._next()
            if attempt is None:
                break
            self.running[self._pool.submit(self._function, attempt)] = _Running(attempt, time.monotonic())
        # A call whose copy has ended is not waited for: it may hang.
        waiting = (*self._again, *(running.attempt for running in self.running.values()))
        return not self._is_exhausted or any(attempt.call not in self._done for attempt in waiting)

    def _next(self) -> Attempt[C] | None:
        while self._again:
            attempt = self._again.popleft()
            if attempt.call not in self._done:
                return attempt
        for call in self._fresh:
            return Attempt(call)
        self._is_exhausted = True
        return self._copy_of_slow()

    def _copy_of_slow(self) -> Attempt[C] | None:
        if not self._pool.may_lose_workers:
            return None
        limit, now = slow_after(list(self._durations)), time.monotonic()
        copied = [running.attempt.call for running in self.running.values()]
        for running in self.running.values():
            call = running.attempt.call
            if now - running.started > limit and copied.count(call) == 1 and call not in self._done:
                self._on_event("copied", call, f"{now - running.started:.0f} s so far")
                return running.attempt
        return None

    def collect(self) -> Iterator[tuple[C, T]]:
        """Wait for a moment and yield what ended."""
        if not self.running:
            time.sleep(min(_POLL_SECONDS, max(0.0, self._not_before - time.monotonic())))
            return
        ended, _ = wait(self.running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
        for future in ended:
            running = self.running.pop(future)
            attempt = running.attempt
            if attempt.call in self._done:
                continue  # its copy was faster, and has the same result
            try:
                result = future.result()
            except WorkerLost as error:
                hopeless = self._lost(attempt, error)
                if hopeless and self._on_hopeless:
                    self._done.add(attempt.call)
                    self._cancel_copies(attempt.call)
                    yield attempt.call, self._on_hopeless(attempt.call, hopeless)
                elif hopeless:
                    raise ServiceError(f"{attempt.call}: {hopeless}") from error
            except Unreachable as error:
                self._outage(attempt, error)
            else:
                self._outage_since, self._outages, self._not_before = None, 0, 0.0
                self._durations.append(time.monotonic() - running.started)
                self._done.add(attempt.call)
                self._cancel_copies(attempt.call)
                yield attempt.call, result

    def _cancel_copies(self, call: C) -> None:
        for future, running in self.running.items():
            if running.attempt.call == call:
                self._pool.cancel(future)

    def _lost(self, attempt: Attempt[C], error: WorkerLost) -> str | None:
        """Try a call again, or where that has no sense, return why."""
        losses = attempt.num_losses + 1
        self._on_event("lost", attempt.call, f"{error} ({losses})")
        if losses >= MOST_LOSSES:
            return (
                f"{losses} workers died over it, the last one: {error}; if their memory is short, lower --workers, or "
                f"what each has to do at once"
            )
        if not any(other.attempt.call == attempt.call for other in self.running.values()):  # else its copy goes on
            self._again.append(Attempt(attempt.call, losses))
        return None

    def _outage(self, attempt: Attempt[C], error: Unreachable) -> None:
        now = time.monotonic()
        self._outage_since = self._outage_since or now
        self._outages += 1
        self._on_event("outage", attempt.call, str(error))
        if now - self._outage_since > OUTAGE_SECONDS:
            raise error
        self._not_before = now + pause_seconds(self._outages)
        self._again.append(attempt)
