"""Ranks that fall silent are named, once a minute, until they are back."""

from trainer.run.board import Life, Watch


def life(rank: int, time: float, step: int = 7) -> Life:
    return Life(rank, f"host, process {rank}", step, time)


def test_a_silent_rank_is_named_within_half_a_minute_with_how_long_it_is_waited_for() -> None:
    watch = Watch(300)
    assert watch.news([life(0, 100.0), life(1, 100.0)], 110.0) == []
    (line,) = watch.news([life(0, 121.0), life(1, 100.0)], 122.0)
    assert "rank 1 (host, process 1) has given no sign of life for 22 s, since step 7" in line
    assert "wait for it for 300 s" in line
    assert watch.news([life(0, 126.0), life(1, 100.0)], 127.0) == []
    (again,) = watch.news([life(0, 185.0), life(1, 100.0)], 186.0)
    assert "86 s" in again
    assert watch.news([life(0, 190.0), life(1, 190.0)], 191.0) == ["rank 1 (host, process 1) is back"]
    assert watch.news([life(0, 195.0), life(1, 195.0)], 196.0) == []


def test_a_rank_before_its_first_step_is_at_step_0() -> None:
    (line,) = Watch(300).news([life(3, 0.0, step=-1)], 25.0)
    assert "since step 0;" in line
