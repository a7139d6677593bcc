"""Reading ahead: what is needed first is read first, and never more than the budget allows."""

import threading
from bisect import insort
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count

from pipeline.streaming.loader.blocks import Loaded
from pipeline.streaming.selection import Span

NEEDED_NOW = float("-inf")
Lane = tuple[int, int]  # source, lane


@dataclass(order=True)
class _Wanted:
    need: float
    number: int
    lane: Lane = field(compare=False)
    span: Span = field(compare=False)
    future: "Future[Loaded]" = field(compare=False)


class Prefetcher:
    """A few threads that read spans in the order in which they are needed. Close it.

    A span holds `held_bytes` of the budget from the start of its read until `release`. A lane may always hold the bytes
    of its open window, so what others have read ahead never takes the room of what is needed now. Beyond the budget is
    read only what takes the place of damaged samples where it was not read yet.
    """

    def __init__(
        self,
        read: Callable[[int, Span], Loaded],
        budget_bytes: int,
        num_threads: int,
        lane_bytes: Mapping[Lane, int] | None = None,
    ) -> None:
        """Start the threads.

        Args:
            read: Returns the samples of a span of a source.
            budget_bytes: Most bytes held by spans that are being read or were not released.
            num_threads: Concurrent reads.
            lane_bytes: Part of the budget that is each lane's own; the rest is for whoever needs it first.
        """
        self._read = read
        self._lane_bytes = dict(lane_bytes or {})
        self._shared_bytes = budget_bytes - sum(self._lane_bytes.values())
        self._held: Counter[Lane] = Counter()
        self._queue: list[_Wanted] = []
        self._numbers = count()
        self._changed = threading.Condition()
        self._closed = False
        for number in range(num_threads):
            threading.Thread(target=self._work, name=f"read-{number}", daemon=True).start()

    def want(self, lane: Lane, span: Span, need: float) -> "Future[Loaded]":
        """Queue a span. Lower `need` (a step) is read earlier; those of one lane come in this order."""
        future: Future[Loaded] = Future()
        with self._changed:
            insort(self._queue, _Wanted(need, next(self._numbers), lane, span, future))
            self._changed.notify()
        return future

    def hurry(self, future: "Future[Loaded]") -> None:
        """Put a span first, budget or not: the caller cannot go on without it."""
        with self._changed:
            for wanted in self._queue:
                if wanted.future is future:
                    wanted.need = NEEDED_NOW
            self._queue.sort()
            self._changed.notify_all()

    def release(self, lane: Lane, span: Span) -> None:
        """Return the bytes of a span to the budget."""
        with self._changed:
            self._held[lane] -= span.held_bytes
            self._changed.notify()

    def close(self) -> None:
        """End the threads; each finishes the read it is at."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def held_bytes(self) -> int:
        """Bytes of the spans that are being read or were not released."""
        with self._changed:
            return self._held.total()

    def _next_allowed(self) -> _Wanted | None:
        """Return the first span that may be read; one that waits for room keeps the later ones of its lane waiting."""
        shared_left = self._shared_bytes - sum(self._beyond_own(lane, held) for lane, held in self._held.items())
        waiting: set[Lane] = set()
        for wanted in self._queue:
            if wanted.need == NEEDED_NOW:
                return wanted
            if wanted.lane not in waiting:
                held = self._held[wanted.lane]
                then = held + wanted.span.held_bytes
                more = self._beyond_own(wanted.lane, then) - self._beyond_own(wanted.lane, held)
                if more == 0 or (more <= shared_left and not waiting):
                    return wanted
                waiting.add(wanted.lane)
        return None

    def _beyond_own(self, lane: Lane, held: int) -> int:
        return max(0, held - self._lane_bytes.get(lane, 0))

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._next_allowed())
                wanted = self._next_allowed()
                if self._closed or not wanted:
                    return
                self._queue.remove(wanted)
                self._held[wanted.lane] += wanted.span.held_bytes
                self._changed.notify()  # the next one may be allowed, too
            try:
                wanted.future.set_result(self._read(wanted.lane[0], wanted.span))
            except BaseException as error:  # noqa: BLE001 - is raised where the samples are asked for
                wanted.future.set_exception(error)
