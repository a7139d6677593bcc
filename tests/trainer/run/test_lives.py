"""Ranks that fall silent are named; a run whose ranks are stuck is ended, and one that is only slow is not."""

import pytest
from hypothesis import given, strategies as st

from trainer.run.lives import (
    ALL_PHASES,
    LEAST_STEP_SECONDS,
    STEADY_PHASES,
    Life,
    Watch,
    collective_seconds,
    limit_seconds,
    stuck,
)


def life(rank: int, silent_seconds: float, step: int = 7) -> Life:
    return Life(rank, f"host, process {rank}", step, silent_seconds=silent_seconds)


def test_a_silent_rank_is_named_within_half_a_minute_with_how_long_it_is_waited_for() -> None:
    watch = Watch(60)
    assert watch.news([life(0, 10.0), life(1, 10.0)], 110.0) == []
    (line,) = watch.news([life(0, 1.0), life(1, 22.0)], 122.0)
    assert "rank 1 (host, process 1) has given no sign of life for 22 s, since step 7" in line
    assert "wait for it for 60 s or more" in line
    assert watch.news([life(0, 1.0), life(1, 27.0)], 127.0) == []
    (again,) = watch.news([life(0, 1.0), life(1, 86.0)], 186.0)
    assert "86 s" in again
    assert watch.news([life(0, 1.0), life(1, 1.0)], 191.0) == ["rank 1 (host, process 1) is back"]
    assert watch.news([life(0, 1.0), life(1, 1.0)], 196.0) == []


def test_a_rank_before_its_first_step_is_at_step_0() -> None:
    (line,) = Watch(60).news([life(3, 25.0, step=-1)], 25.0)
    assert "since step 0;" in line


def step_of(rank: int, seconds: float, step: int = 9, step_seconds: float = 0.5) -> Life:
    return Life(rank, f"h{rank}", step, "step", seconds, step_seconds)


@given(st.lists(st.floats(0, 60), min_size=1, max_size=5), st.floats(0, 3))
def test_no_run_is_stuck_within_the_limit(seconds: list[float], step_seconds: float) -> None:
    assert not stuck([step_of(rank, each, step_seconds=step_seconds) for rank, each in enumerate(seconds)])


def test_the_limit_follows_the_time_of_a_step() -> None:
    assert limit_seconds("step", 0.1) == LEAST_STEP_SECONDS
    assert limit_seconds("step", 30.0) == 600.0
    assert not stuck([step_of(0, 599.0, step_seconds=30.0)])
    assert stuck([step_of(0, 601.0, step_seconds=30.0)])


def test_a_rank_that_is_busy_with_something_else_holds_all_up_as_long_as_it_may() -> None:
    waiting = [step_of(0, 100.0), step_of(2, 100.0)]
    for phase in ("start", "data", "evaluation", "save", ""):
        assert not stuck([*waiting, Life(1, "h1", 9, phase, 101.0, 0.5)])
    late = stuck([*waiting, Life(1, "h1", 9, "data", 400.0, 0.5)])
    assert late == "rank 1 (h1) is stuck in phase data for 400 s, since step 9"


def test_a_stopped_process_is_named_and_not_the_ranks_that_wait_for_it() -> None:
    stopped = Life(1, "h1", 9, "data", 0.0, 0.5, silent_seconds=62.0)
    assert stuck([step_of(0, 61.0), stopped, step_of(2, 61.0)]) == (
        "rank 1 (h1) is silent in phase data for 62 s, since step 9"
    )


@pytest.mark.parametrize("phase", ["start", "data", "evaluation", "store", "save", ""])
def test_nobody_waits_longer_for_a_stopped_process_in_whatever_phase_all_are(phase: str) -> None:
    def lives(silent_seconds: float, others_seconds: float) -> list[Life]:
        stopped = Life(1, "h1", 0, phase, 3.0, silent_seconds=silent_seconds)
        return [Life(0, "h0", 0, phase, others_seconds), stopped, Life(2, "h2", 0, phase, others_seconds)]

    assert stuck(lives(121.0, 61.0)) == f"rank 1 (h1) is silent in phase {phase} for 124 s, since step 0"
    assert not stuck(lives(119.0, 61.0))
    assert not stuck(lives(121.0, 59.0))  # they get on: it is the signs that do not arrive


def test_of_ranks_in_a_step_those_that_are_behind_are_named() -> None:
    assert stuck([step_of(0, 70.0, step=10), step_of(1, 70.0, step=9)]).startswith("rank 1 (h1) is stuck in phase step")
    everyone = stuck([step_of(rank, 70.0) for rank in range(9)])
    assert everyone.count("is stuck") == 4
    assert everyone.endswith("and 5 more")


@given(st.sampled_from([ALL_PHASES, STEADY_PHASES]), st.floats(0.0, 3600.0), st.floats(1.0, 3600.0))
def test_a_stuck_run_is_found_by_signs_of_life_before_a_collective_fails(
    phases: tuple[str, ...], step_seconds: float, least_seconds: float
) -> None:
    assert set(STEADY_PHASES) < set(ALL_PHASES)
    for phase in phases:
        limit = limit_seconds(phase, step_seconds, least_seconds)
        assert limit + 30.0 <= collective_seconds(phases, step_seconds, least_seconds)
