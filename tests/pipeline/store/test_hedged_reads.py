"""Range reads: an error that passes is repeated, a slow connection is overtaken, and neither hides what is wrong."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, strategies as st

import pipeline.store.hedged_reads
import pipeline.store.retry
from pipeline.base.errors import ConfigError, CorruptShard, Denied, NotFound, StorageError, Unreachable
from pipeline.store.hedged_reads import RangeReader
from tests.waiting import WAIT_SECONDS, wait_until


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here needs the pauses to be long."""
    monkeypatch.setattr(pipeline.store.hedged_reads, "_HEDGE_FLOOR_SECONDS", 0.02)
    monkeypatch.setattr(pipeline.store.retry, "LONGEST_PAUSE_SECONDS", 0.01)


@pytest.fixture
def never_hedged(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a machine so busy that a thread does not run within the short floor."""
    monkeypatch.setattr(pipeline.store.hedged_reads, "_HEDGE_FLOOR_SECONDS", 10 * WAIT_SECONDS)


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Hold attempts back until the test ends."""
    event = threading.Event()
    yield event
    event.set()


class Script:
    """An attempt that does at each call the next of its steps: returns bytes, raises, or calls."""

    def __init__(self, *steps: bytes | Exception | Callable[[], bytes]) -> None:
        self._steps = iter(steps)
        self._lock = threading.Lock()
        self.calls = 0

    def __call__(self) -> bytes:
        with self._lock:
            self.calls += 1
            step = next(self._steps)
        if isinstance(step, Exception):
            raise step
        return step if isinstance(step, bytes) else step()


def held(release: threading.Event, then: bytes | Exception = b"late") -> Callable[[], bytes]:
    def attempt() -> bytes:
        assert release.wait(WAIT_SECONDS)
        if isinstance(then, Exception):
            raise then
        return then

    return attempt


def counters(reader: RangeReader) -> tuple[int, int, int, int]:
    return reader.reads, reader.retries, reader.hedges, reader.hedges_won


@pytest.mark.usefixtures("never_hedged")
def test_a_read_that_succeeds_is_one_attempt() -> None:
    reader, attempt = RangeReader(), Script(b"body")
    assert reader.read(attempt) == b"body"
    assert attempt.calls == 1
    assert counters(reader) == (1, 0, 0, 0)
    assert reader.seconds > 0


@pytest.mark.usefixtures("never_hedged")
def test_errors_that_pass_are_repeated() -> None:
    reader = RangeReader()
    attempt = Script(Unreachable("one"), Unreachable("two"), Unreachable("three"), b"body")
    assert reader.read(attempt) == b"body"
    assert counters(reader) == (1, 3, 0, 0)


@pytest.mark.parametrize("kind", [NotFound, CorruptShard, Denied, StorageError, ValueError])
@pytest.mark.usefixtures("never_hedged")
def test_errors_that_do_not_pass_go_up_at_once(kind: type[Exception]) -> None:
    reader, attempt = RangeReader(), Script(Unreachable("passes"), kind("stays"))
    with pytest.raises(kind, match="stays"):
        reader.read(attempt)
    assert attempt.calls == 2
    assert reader.retries == 1


def test_the_last_error_goes_up_at_the_deadline() -> None:
    reader, numbers = RangeReader(deadline_seconds=1.0), iter(range(10**9))

    def attempt() -> bytes:
        raise Unreachable(f"attempt {next(numbers)}")

    with pytest.raises(Unreachable, match=r"attempt \d+") as raised:
        reader.read(attempt)
    assert str(raised.value) == f"attempt {next(numbers) - 1}"
    assert reader.retries == int(str(raised.value).split()[1]) > 0


def test_an_attempt_that_never_answers_ends_at_the_deadline(release: threading.Event) -> None:
    reader = RangeReader(deadline_seconds=0.2)
    with pytest.raises(Unreachable, match=r"no answer from storage within 0\.2 s"):
        reader.read(Script(held(release), held(release)))
    assert (reader.hedges_won, reader.retries) == (0, 0)


def test_a_stuck_attempt_is_overtaken(release: threading.Event) -> None:
    reader = RangeReader()
    assert reader.read(Script(held(release), b"second")) == b"second"
    assert counters(reader) == (1, 0, 1, 1)


def test_the_first_attempt_may_still_win() -> None:
    reader, second_runs, end = RangeReader(), threading.Event(), threading.Event()

    def second() -> bytes:
        second_runs.set()
        return held(end)()

    assert reader.read(Script(held(second_runs, b"first"), second)) == b"first"
    assert counters(reader) == (1, 0, 1, 0)
    end.set()


@pytest.mark.parametrize("error", [Unreachable("again"), NotFound("gone"), OSError("broken")])
def test_the_error_of_one_waits_for_the_other_of_the_pair(error: Exception) -> None:
    reader, second_failed = RangeReader(), threading.Event()

    def second() -> bytes:
        second_failed.set()
        raise error

    assert reader.read(Script(held(second_failed, b"first"), second)) == b"first"
    assert counters(reader) == (1, 0, 1, 0)


@pytest.mark.parametrize("is_hedge_gone", [True, False])
def test_a_hedge_does_not_hide_that_an_object_is_gone(is_hedge_gone: bool) -> None:
    reader, second_failed = RangeReader(), threading.Event()
    errors: list[StorageError] = [Unreachable("slow"), NotFound("gone")]
    of_first, of_second = errors if is_hedge_gone else reversed(errors)

    def second() -> bytes:
        second_failed.set()
        raise of_second

    attempt = Script(held(second_failed, of_first), second)
    with pytest.raises(NotFound, match="gone"):
        reader.read(attempt)
    assert (attempt.calls, reader.retries) == (2, 0)


def test_that_an_object_is_gone_is_told_at_the_deadline_of_a_stuck_pair(release: threading.Event) -> None:
    reader = RangeReader(deadline_seconds=2.0)
    with pytest.raises(NotFound, match="gone"):
        reader.read(Script(held(release), NotFound("gone")))


def test_a_pair_that_fails_is_repeated_and_hedged_again(release: threading.Event) -> None:
    reader, second_failed = RangeReader(), threading.Event()

    def second() -> bytes:
        second_failed.set()
        raise Unreachable("second")

    steps = (held(second_failed, Unreachable("first")), second, held(release), b"fourth")
    assert reader.read(Script(*steps)) == b"fourth"
    assert counters(reader) == (1, 1, 2, 1)


class Asked(RangeReader):
    """Remembers which reads, by their threads, asked for a hedge."""

    def __init__(self, max_hedged_fraction: float) -> None:
        super().__init__(max_hedged_fraction=max_hedged_fraction)
        self.askers: set[int] = set()

    def _may_hedge(self) -> bool:
        self.askers.add(threading.get_ident())
        return super()._may_hedge()


def test_no_more_than_the_budget_of_hedges_is_started() -> None:
    reader = Asked(max_hedged_fraction=0.25)
    slow, num_reads = threading.Event(), 20

    def attempt() -> bytes:
        assert slow.wait(WAIT_SECONDS)
        return b"body"

    with ThreadPoolExecutor(num_reads) as threads:
        reads = [threads.submit(reader.read, attempt) for _ in range(num_reads)]
        wait_until(lambda: len(reader.askers) == num_reads, "every read to ask for a hedge")
        slow.set()
        assert [read.result() for read in reads] == [b"body"] * num_reads
    assert 2 <= reader.hedges <= 2 + num_reads * 0.25


def test_saved_hedges_do_not_pile_up(release: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = RangeReader(max_hedged_fraction=1.0, deadline_seconds=WAIT_SECONDS)
    monkeypatch.setattr(pipeline.store.hedged_reads, "_HEDGE_FLOOR_SECONDS", WAIT_SECONDS)
    for _ in range(50):
        reader.read(lambda: b"quick")
    monkeypatch.setattr(pipeline.store.hedged_reads, "_HEDGE_FLOOR_SECONDS", 0.02)
    assert [reader._may_hedge() for _ in range(4)] == [True, True, False, False]


def test_a_read_without_a_hedge_gets_one_when_others_have_saved_it(release: threading.Event) -> None:
    reader = RangeReader(max_hedged_fraction=0.5)
    assert [reader._may_hedge() for _ in range(3)] == [True, True, False]
    with ThreadPoolExecutor(1) as threads:
        stuck = threads.submit(reader.read, Script(held(release), b"second"))
        while not stuck.done():
            reader.read(lambda: b"quick")
        assert stuck.result() == b"second"


def test_a_share_of_0_never_hedges(release: threading.Event) -> None:
    reader, attempt = RangeReader(max_hedged_fraction=0.0, deadline_seconds=0.3), Script(held(release), b"second")
    with pytest.raises(Unreachable, match="no answer"):
        reader.read(attempt)
    assert (attempt.calls, reader.hedges) == (1, 0)


@given(st.lists(st.floats(0.0, 100.0), max_size=200))
def test_a_hedge_is_due_after_three_medians_of_the_last_64(seconds: list[float]) -> None:
    reader = RangeReader()
    reader._recent_seconds.extend(seconds)
    last = sorted(seconds[-64:])
    median = (last[(len(last) - 1) // 2] + last[len(last) // 2]) / 2 if last else 0.0
    assert reader._hedge_seconds() == pytest.approx(max(pipeline.store.hedged_reads._HEDGE_FLOOR_SECONDS, 3 * median))


def test_what_overtook_counts_with_its_own_time_only(release: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.store.hedged_reads, "_HEDGE_FLOOR_SECONDS", 1.0)
    reader = RangeReader()
    reader.read(Script(held(release), b"second"))
    assert len(reader._recent_seconds) == 1
    assert reader._recent_seconds[0] < reader.seconds - 0.9


def test_many_threads_count_right() -> None:
    reader, lock, calls = RangeReader(), threading.Lock(), [0]

    def attempt() -> bytes:
        with lock:
            calls[0] += 1
            number = calls[0]
        if number % 3 == 0:
            raise Unreachable(str(number))
        return b"body"

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(lambda _: reader.read(attempt), range(400))) == [b"body"] * 400
    assert reader.reads == 400
    assert calls[0] == reader.reads + reader.retries + reader.hedges
    assert reader.hedges <= 2 + 400 * 0.05


@pytest.mark.usefixtures("never_hedged")
def test_closing_ends_a_read_that_is_stuck(release: threading.Event) -> None:
    reader, is_running = RangeReader(), threading.Event()

    def attempt() -> bytes:
        is_running.set()
        return held(release)()

    with ThreadPoolExecutor(1) as threads:
        stuck = threads.submit(reader.read, attempt)
        assert is_running.wait(WAIT_SECONDS)
        reader.close()
        with pytest.raises(Unreachable, match="closed"):
            stuck.result(WAIT_SECONDS)


def test_closing_ends_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.store.retry, "LONGEST_PAUSE_SECONDS", 10 * WAIT_SECONDS)
    monkeypatch.setattr(pipeline.store.retry, "FIRST_PAUSE_SECONDS", 10 * WAIT_SECONDS)
    reader = RangeReader(deadline_seconds=1e6)
    with ThreadPoolExecutor(1) as threads:
        paused = threads.submit(reader.read, Script(Unreachable("passes")))
        wait_until(lambda: reader.retries or paused.done(), "the pause after the first error")
        reader.close()
        with pytest.raises(Unreachable):
            paused.result(WAIT_SECONDS)


def test_a_closed_reader_starts_nothing() -> None:
    reader, attempt = RangeReader(), Script(b"body")
    reader.close()
    reader.close()
    with pytest.raises(Unreachable, match="closed"):
        reader.read(attempt)
    assert attempt.calls == 0


def test_the_interpreter_exits_while_losers_are_stuck() -> None:
    program = (
        "import threading\n"
        "from pipeline.store.hedged_reads import RangeReader\n"
        "calls = []\n"
        "def attempt():\n"
        "    calls.append(1)\n"
        "    if len(calls) == 1: threading.Event().wait()\n"
        "    return b'second'\n"
        "print(RangeReader().read(attempt).decode(), any(t.name == 'range-read' for t in threading.enumerate()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT_SECONDS, check=True
    )  # the time-out is the assertion: an interpreter that joins the loser never ends
    assert done.stdout.split() == ["second", "True"]
    assert done.stderr == ""


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_refused(fraction: float) -> None:
    with pytest.raises(ConfigError, match="max_hedged_fraction"):
        RangeReader(max_hedged_fraction=fraction)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_deadline_that_is_not_above_0_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match="deadline_seconds"):
        RangeReader(deadline_seconds=seconds)
