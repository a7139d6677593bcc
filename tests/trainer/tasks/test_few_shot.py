"""Class-balanced subsets."""

import numpy as np
import pytest

from pipeline.base.errors import ConfigError
from trainer.tasks.few_shot import few_shot_rows


def test_few_shot_subsets_are_balanced_reproducible_and_different() -> None:
    labels = np.repeat(np.arange(4), 20)
    subsets = [few_shot_rows(labels[:, None].tolist(), "abcd", 5, seed=1, subset=number) for number in range(3)]
    for rows in subsets:
        assert np.bincount(labels[rows]).tolist() == [5, 5, 5, 5]
        assert len(set(rows.tolist())) == 20
    assert np.array_equal(subsets[0], few_shot_rows(labels[:, None].tolist(), "abcd", 5, seed=1, subset=0))
    assert not np.array_equal(subsets[0], subsets[1])
    assert len(few_shot_rows(labels[:, None].tolist(), "abcd", 0, seed=1, subset=0)) == 80


def test_too_few_pictures_for_the_shots_are_named() -> None:
    with pytest.raises(
        ConfigError, match=r"1 classes have fewer training pictures than 3 shots: 'dog' .2.; take fewer shots"
    ):
        few_shot_rows([[0], [0], [0], [1], [1]], ["cat", "dog"], 3, seed=0, subset=0)


def test_a_class_with_too_few_pictures_gives_all_it_has_if_asked() -> None:
    rows = few_shot_rows([[0], [0], [0], [1], [1], [0]], ["cat", "dog"], 3, seed=0, subset=0, allow_fewer=True)
    assert len(rows) == 5
    assert {3, 4} <= set(rows.tolist())


def test_a_picture_counts_for_each_of_its_labels() -> None:
    labels = [[number % 3, 3] for number in range(30)]
    rows = few_shot_rows(labels, "abcd", 2, seed=0, subset=0)
    assert [labels[row][0] for row in rows].count(0) == 2
    assert len(rows) == 6  # two of each of the first three classes are six of the last
    only_last = few_shot_rows([[3, 0], [3, 1], [3], [3], [2, 2]], "abcd", 1, seed=0, subset=0)
    assert only_last.tolist() == [0, 1, 4]
