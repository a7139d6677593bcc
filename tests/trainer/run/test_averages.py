"""Which rank holds up the others is named, and none where all are alike."""

import math

from hypothesis import given, strategies as st

from trainer.run.averages import Averages, straggler
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
