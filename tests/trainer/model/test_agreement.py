"""What the benchmarks of the network call equal: outputs of several contenders against a reference."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))
from side_by_side import deviation, strays

REFERENCE = [3.0, -4.0, 0.0]


def test_the_deviation_is_the_root_mean_square_as_a_share_of_the_reference() -> None:
    assert deviation(REFERENCE, REFERENCE) == 0.0
    assert deviation([3.0, -4.0, 1.0], REFERENCE) == pytest.approx(0.2)
    assert deviation([0.0, 0.0, 0.0], REFERENCE) == 1.0


def test_roundings_to_both_sides_of_the_reference_are_within_the_bound_though_further_from_each_other() -> None:
    one, other = [3.0, -4.0, 1.5], [3.0, -4.0, -1.5]
    assert deviation(one, other) > 0.4
    assert strays({"one": one, "other": other}, REFERENCE, 0.4) == {}


def test_whoever_is_off_by_more_than_the_bound_or_not_a_number_is_named() -> None:
    wrong = {"ours": [3.0, -4.0, 0.1], "swapped": [-4.0, 3.0, 0.0], "broken": [3.0, -4.0, float("nan")]}
    assert strays(wrong, REFERENCE, 0.4).keys() == {"swapped", "broken"}
