"""Ranks that fall silent are named, once a minute, until they are back."""

import time

from trainer.run.board import Life, Watch, _State


def life(rank: int, silent_seconds: float, step: int = 7) -> Life:
    return Life(rank, f"host, process {rank}", step, silent_seconds)


def test_a_silent_rank_is_named_within_half_a_minute_with_how_long_it_is_waited_for() -> None:
    watch = Watch(300)
    assert watch.news([life(0, 10.0), life(1, 10.0)], 110.0) == []
    (line,) = watch.news([life(0, 1.0), life(1, 22.0)], 122.0)
    assert "rank 1 (host, process 1) has given no sign of life for 22 s, since step 7" in line
    assert "wait for it for 300 s" in line
    assert watch.news([life(0, 1.0), life(1, 27.0)], 127.0) == []
    (again,) = watch.news([life(0, 1.0), life(1, 86.0)], 186.0)
    assert "86 s" in again
    assert watch.news([life(0, 1.0), life(1, 1.0)], 191.0) == ["rank 1 (host, process 1) is back"]
    assert watch.news([life(0, 1.0), life(1, 1.0)], 196.0) == []


def test_a_rank_before_its_first_step_is_at_step_0() -> None:
    (line,) = Watch(300).news([life(3, 25.0, step=-1)], 25.0)
    assert "since step 0;" in line


def test_silence_is_measured_from_the_last_sign_by_the_clock_of_the_board_alone() -> None:
    board, before = _State(), time.monotonic()
    board.sign(life(0, 3600.0))  # whatever the rank's own clock may say
    (first,) = board.lives()
    assert 0 <= first.silent_seconds <= time.monotonic() - before
    (second,) = board.lives()
    assert second.silent_seconds > first.silent_seconds
