"""What the board tells the ranks: how long others are silent, by its own clock, and whether all are stuck."""

import time

from trainer.run.board import BoardState
from trainer.run.lives import Life


def test_silence_is_measured_from_the_last_sign_by_the_clock_of_the_board_alone() -> None:
    board, before = BoardState(60.0), time.monotonic()
    board.sign(Life(0, "host", 7, silent_seconds=3600.0))  # whatever the rank's own clock may say
    (first,) = board.lives()
    assert 0 <= first.silent_seconds <= time.monotonic() - before
    (second,) = board.lives()
    assert second.silent_seconds > first.silent_seconds


def test_a_rank_learns_with_its_sign_that_the_run_is_stuck() -> None:
    board = BoardState(60.0)
    assert board.sign(Life(0, "host a", 7, "step", 61.0)).stuck.startswith("rank 0 (host a) is stuck in phase step")
    assert board.sign(Life(1, "host b", 7, "evaluation", 3.0)).stuck == ""
    board.end(1)
    assert board.sign(Life(0, "host a", 7, "step", 66.0)).stuck


def test_ranks_of_a_group_that_is_over_hold_nobody_up() -> None:
    board = BoardState(60.0)
    for rank in range(3):
        board.sign(Life(rank, f"host {rank}", 7, "step", 1.0, group=1))
    # Rank 2 is killed, and the next group has two ranks.
    assert not board.sign(Life(0, "host 0", 8, "step", 1.0, group=2)).stuck
    board.sign(Life(1, "host 1", 8, "step", 1.0, group=2))
    assert [life.rank for life in board.lives()] == [0, 1]
    # What is left of the first group says no more, and ends nobody of the second.
    board.sign(Life(2, "host 2", 7, "step", 100.0, group=1))
    board.end(1, group=1)
    assert [life.rank for life in board.lives()] == [0, 1]
