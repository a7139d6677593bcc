"""Intervals and few-shot subsets are what they say."""

import numpy as np
import pytest

from pipeline.base.errors import ConfigError
from trainer.scores.intervals import paired_bootstrap, wilson_interval
from trainer.tasks.few_shot import few_shot_rows


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


def test_few_shot_subsets_are_balanced_reproducible_and_different() -> None:
    labels = np.repeat(np.arange(4), 20)
    subsets = [few_shot_rows(labels, 4, 5, seed=1, subset=number) for number in range(3)]
    for rows in subsets:
        assert np.bincount(labels[rows]).tolist() == [5, 5, 5, 5]
        assert len(set(rows.tolist())) == 20
    assert np.array_equal(subsets[0], few_shot_rows(labels, 4, 5, seed=1, subset=0))
    assert not np.array_equal(subsets[0], subsets[1])
    assert len(few_shot_rows(labels, 4, 0, seed=1, subset=0)) == 80


def test_too_few_pictures_for_the_shots_are_named() -> None:
    with pytest.raises(ConfigError, match="class 1 has 2 training pictures, fewer than 3 shots"):
        few_shot_rows(np.array([0, 0, 0, 1, 1]), 2, 3, seed=0, subset=0)
