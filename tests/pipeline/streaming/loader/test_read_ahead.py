"""What is needed first is read first, and never more than the budget allows."""

import threading
from concurrent.futures import Future
from contextlib import closing
from typing import Any

from hypothesis import given, settings, strategies as st

from pipeline.base.errors import ConfigError
from pipeline.streaming.loader.blocks import Loaded
from pipeline.streaming.loader.read_ahead import Prefetcher
from pipeline.streaming.selection import Span
from tests.waiting import WAIT_SECONDS, wait_until


def span_of(number: int, num_bytes: int) -> Span:
    return Span(0, "tar", "digest", number, num_bytes, 0, number, 1, None)


class Reads:
    """A storage that answers once its gate is open, and remembers what was asked."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.begun: list[int] = []
        self.gate = threading.Event()
        if is_open:
            self.gate.set()

    def __call__(self, source: int, span: Span) -> Loaded:
        self.begun.append(span.offset)
        assert self.gate.wait(WAIT_SECONDS)
        return Loaded(b"", ())


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_spans_are_read_in_the_order_of_their_need_and_then_of_their_asking(needs: list[int]) -> None:
    reads = Reads(is_open=False)
    with closing(Prefetcher(reads, 10**9, 1)) as prefetcher:
        first = prefetcher.want((0, 0), span_of(-1, 1), -1)
        wait_until(lambda: reads.begun == [-1], "the thread to be busy while the others queue")
        futures = [prefetcher.want((0, number), span_of(number, 1), need) for number, need in enumerate(needs)]
        reads.gate.set()
        for future in (first, *futures):
            future.result(WAIT_SECONDS)
    assert reads.begun[1:] == sorted(range(len(needs)), key=lambda number: (needs[number], number))


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40)), min_size=1, max_size=40),
    st.integers(0, 100),
    st.randoms(use_true_random=False),
)
def test_any_spans_are_read_within_the_budget_if_lanes_release_in_order(
    wanted: list[tuple[int, int]], shared: int, chance: Any
) -> None:
    """A lane needs one span after another: each fits its own part, so none ever waits for what other lanes hold."""
    own = {(0, lane): 40 for lane in range(4)}
    budget = 160 + shared
    held: list[int] = []

    def read(source: int, span: Span) -> Loaded:
        held.append(prefetcher.held_bytes)
        return Loaded(b"", ())

    with closing(Prefetcher(read, budget, 3, own)) as prefetcher:
        lines: dict[int, list[tuple[Span, Future[Loaded]]]] = {lane: [] for lane in range(4)}
        for number, (lane, num_bytes) in enumerate(wanted):
            span = span_of(number, num_bytes)
            lines[lane].append((span, prefetcher.want((0, lane), span, len(lines[lane]))))
        while any(lines.values()):
            lane = chance.choice([lane for lane, line in lines.items() if line])
            span, future = lines[lane].pop(0)
            future.result(WAIT_SECONDS)  # without hurry
            prefetcher.release((0, lane), span)
    assert len(held) == len(wanted)
    assert max(held) <= budget
    assert prefetcher.held_bytes == 0


def test_a_span_beyond_the_budget_waits_for_a_release_but_not_when_it_is_needed_now() -> None:
    reads = Reads()
    with closing(Prefetcher(reads, 100, 2)) as prefetcher:
        fits = prefetcher.want((0, 0), span_of(0, 100), 0)
        fits.result(WAIT_SECONDS)
        waits = prefetcher.want((0, 0), span_of(1, 60), 1)
        urgent = prefetcher.want((0, 1), span_of(2, 60), 2)
        prefetcher.want((0, 2), span_of(3, 0), 3).result(WAIT_SECONDS)  # whoever read this has passed the others over
        assert reads.begun == [0, 3]
        assert prefetcher.held_bytes == 100
        prefetcher.hurry(urgent)
        urgent.result(WAIT_SECONDS)
        assert reads.begun == [0, 3, 2]
        assert prefetcher.held_bytes == 160
        prefetcher.release((0, 0), span_of(0, 100))
        prefetcher.release((0, 1), span_of(2, 60))
        waits.result(WAIT_SECONDS)
        assert prefetcher.held_bytes == 60


def test_what_a_read_raises_comes_out_of_its_future_and_the_threads_go_on() -> None:
    def read(source: int, span: Span) -> Loaded:
        if span.offset == 0:
            raise ConfigError("no")
        return Loaded(b"", ())

    with closing(Prefetcher(read, 100, 1)) as prefetcher:
        futures = [prefetcher.want((0, 0), span_of(number, 1), number) for number in range(2)]
        assert isinstance(futures[0].exception(WAIT_SECONDS), ConfigError)
        assert futures[1].result(WAIT_SECONDS) == Loaded(b"", ())


def test_close_does_not_wait_for_a_read_that_is_stuck() -> None:
    reads = Reads(is_open=False)
    threads_before = set(threading.enumerate())
    prefetcher = Prefetcher(reads, 100, 2)
    futures = [prefetcher.want((0, 0), span_of(number, 1), number) for number in range(5)]
    wait_until(lambda: len(reads.begun) == 2, "both threads to be stuck")
    prefetcher.close()  # returns while both reads are stuck
    assert not any(future.done() for future in futures)
    reads.gate.set()
    wait_until(lambda: not set(threading.enumerate()) - threads_before, "the threads to end")
    assert len(reads.begun) == 2  # nothing more was begun
    assert [future.done() for future in futures] == [True, True, False, False, False]
