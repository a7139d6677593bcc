"""Intervals and few-shot subsets are what they say."""

from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, strategies as st

from trainer.scores.intervals import interval_of_runs, mean_interval, paired_bootstrap, wilson_interval


def test_wilson_interval_of_known_cases() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=2e-4)  # Newcombe 1998, table I
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)


def test_paired_bootstrap_sees_what_unpaired_intervals_hide() -> None:
    generator = np.random.default_rng(0)
    correct = generator.random(10_000) < 0.777
    kept = np.ones(10_000, bool)
    kept[:286] = False
    correct[:286] = True
    difference, low, high = paired_bootstrap(correct, kept)
    assert low < difference < high < 0
    full, dedup = wilson_interval(correct.sum(), 10_000), wilson_interval(correct[kept].sum(), 9_714)
    assert dedup[1] > full[0]


def test_paired_bootstrap_of_nothing_removed_is_zero() -> None:
    correct = np.array([True, False, True])
    assert paired_bootstrap(correct, np.ones(3, bool)) == (0.0, 0.0, 0.0)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5))
def test_runs_are_no_surer_than_their_pictures_nor_than_they_agree(counts: list[int]) -> None:
    runs = [{"accuracy": count / 40, "num_correct": count, "num_test": 40} for count in counts]
    low, high = interval_of_runs(runs)
    least, most = wilson_interval(fmean(counts), 40)
    assert low <= least <= most <= high
    if len(runs) > 1:
        least, most = mean_interval([count / 40 for count in counts])
        assert low <= least <= most <= high
    else:
        assert (low, high) == (least, most)


def test_the_interval_of_a_mean_is_students() -> None:
    low, high = mean_interval([0.70, 0.72, 0.74, 0.71, 0.73])
    assert (low + high) / 2 == pytest.approx(0.72)
    assert (high - low) / 2 == pytest.approx(2.776 * 0.0158114 / 5**0.5, rel=1e-4)
    assert mean_interval([0.1, 0.9]) == (0.0, 1.0)
    with pytest.raises(ValueError, match="two values or more"):
        mean_interval([0.5])
