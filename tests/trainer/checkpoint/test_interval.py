"""How often to save: more often the more often runs fail and the cheaper a save is, within bounds."""

import math

from hypothesis import given, strategies as st

from trainer.checkpoint.interval import seconds_between_failures, seconds_between_saves

seconds = st.floats(0.0, 1e4)


def test_the_interval_is_that_of_young_and_daly() -> None:
    # A save of 0.1 s, a failure in four hours, a restart of a minute: 54 s.
    assert math.isclose(seconds_between_saves(0.1, 1.0, 4 * 3600.0), 53.8, abs_tol=0.05)
    assert math.isclose(seconds_between_saves(6.8, 7.0, 4 * 3600.0), 443.5, abs_tol=0.05)


@given(seconds, seconds, seconds, st.floats(1.0, 2.0))
def test_dearer_saves_and_rarer_failures_never_make_it_shorter(
    stall: float, write: float, failure: float, factor: float
) -> None:
    interval = seconds_between_saves(stall, write, failure)
    assert 5.0 <= interval <= 3600.0
    assert seconds_between_saves(stall * factor, write, failure) >= interval
    assert seconds_between_saves(stall, write, failure * factor) >= interval
    assert interval >= min(2 * write, 3600.0)


def test_starts_of_the_last_day_decide_and_none_that_is_older() -> None:
    now = 1e9
    calm = seconds_between_failures([now - 3 * 86_400], now)
    assert calm == 86_400 + 4 * 3600
    bad = [now - 3 * 86_400, *(now - hour * 3600 for hour in range(1, 10))]
    assert math.isclose(seconds_between_failures(bad, now), (86_400 + 3600) / 9.25)
    assert seconds_between_failures([now - 9 * 86_400, now - 8 * 86_400, now - 7 * 86_400], now) == calm
    assert seconds_between_failures([now], now) == 4 * 3600


def test_a_run_that_begins_badly_saves_for_what_it_sees() -> None:
    now = 1e9
    starts = [now - 900, now - 600, now - 300]
    assert seconds_between_failures(starts, now) < 2400  # two failures in a quarter of an hour
