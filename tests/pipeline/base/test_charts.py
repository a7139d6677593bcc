"""Axes are marked at few round numbers, all within what is shown."""

import math

import pytest
from hypothesis import example, given, strategies as st

from pipeline.base.charts import ticks

ENDS = st.floats(-1e6, 1e6).map(lambda value: round(value, 3))


@example(low=1.0, span=400_001.0, count=2)
@given(ENDS, st.floats(1e-3, 1e6), st.integers(2, 10))
def test_ticks_are_few_round_evenly_spaced_and_within_the_axis(low: float, span: float, count: int) -> None:
    high = low + span
    found = ticks(low, high, count)
    assert 1 <= len(found) <= count + 1
    assert low - 1e-6 * span <= found[0]
    assert found[-1] <= high + 1e-6 * span
    if len(found) > 1:
        step = found[1] - found[0]
        assert found == pytest.approx([found[0] + number * step for number in range(len(found))], abs=1e-6 * span)
        leading = step / 10 ** math.floor(math.log10(step * (1 + 1e-9)))
        assert min(abs(leading - factor) for factor in (1, 2, 5, 10)) < 1e-3


def test_ticks_of_known_axes() -> None:
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(3, 98) == [20, 40, 60, 80]
    assert ticks(7, 7)[0] == 7  # an axis of one value has a mark, too
