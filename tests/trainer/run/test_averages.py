"""Which rank holds up the others is named, and none where all are alike."""

import math

from hypothesis import given, strategies as st

from trainer.checkpoint.record import UnreportedFigures
from trainer.run.averages import Averages, share, straggler
from trainer.step.ranks import alone
from trainer.step.step import StepResult


@given(st.lists(st.floats(0.9, 1.1), min_size=1, max_size=9), st.data())
def test_a_rank_far_above_the_others_is_named_and_none_of_those_that_are_alike(
    figures: list[float], data: st.DataObject
) -> None:
    assert straggler(figures, 0.0) is None
    if len(figures) > 1:
        rank = data.draw(st.integers(0, len(figures) - 1))
        figures[rank] = 3.0
        assert straggler(figures, 0.0) == rank


def test_a_little_waiting_is_no_reason_to_name_a_rank() -> None:
    assert straggler([0.0, 0.0, 0.06], 0.1) is None
    assert straggler([0.0, 0.0, 0.2], 0.1) == 2


def test_each_sample_counts_the_same() -> None:
    averages = Averages()
    averages.add(StepResult(1.0, 0.0, 2.0, 0.5), 3)
    averages.add(StepResult(5.0, 1.0, 2.0, 0.5), 1)
    found = averages.take(alone(), 0.0)
    assert math.isclose(found["loss"], 2.0)
    assert math.isclose(found["accuracy"], 0.25)
    assert "slowest_rank" not in found


@given(st.lists(st.tuples(st.floats(-9, 9), st.integers(1, 4)), min_size=1, max_size=9), st.data())
def test_an_interval_in_which_a_run_was_interrupted_has_the_bits_of_one_without(
    measured: list[tuple[float, int]], data: st.DataObject
) -> None:
    whole, before = Averages(), Averages()
    num_before = data.draw(st.integers(0, len(measured)))
    for value, num_samples in measured:
        whole.add(StepResult(value, 0.5, 1.0), num_samples)
    for value, num_samples in measured[:num_before]:
        before.add(StepResult(value, 0.5, 1.0), num_samples)
    after = Averages(share(before.unreported(alone()), 0, 1))
    for value, num_samples in measured[num_before:]:
        after.add(StepResult(value, 0.5, 1.0), num_samples)
    assert after.take(alone(), 0.0) == whole.take(alone(), 0.0)
    assert after.unreported(alone()) == ()


def test_what_ranks_measured_goes_on_with_as_many_ranks_or_in_equal_parts_with_others() -> None:
    two = (UnreportedFigures(sums={"loss": 3.0}, num_samples=2), UnreportedFigures(sums={"loss": 1.0}, num_samples=2))
    assert [share(two, rank, 2) for rank in range(2)] == list(two)
    three = [share(two, rank, 3) for rank in range(3)]
    assert [part.num_samples for part in three] == [2, 1, 1]
    assert [part.sums for part in three] == [{"loss": 2.0}, {"loss": 1.0}, {"loss": 1.0}]
    assert share((), 0, 1) is None
