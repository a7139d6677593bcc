"""The difference of a pair shows both pictures aligned, and nothing where one does not cover the other."""

import numpy as np
import pytest

from cluster.audit.report.pair_pages import difference, shown_pairs
from tests.cluster.audit.audits import ALTERED, scene


def test_the_difference_from_a_smaller_copy_covers_the_whole_picture() -> None:
    pixels = scene(1)
    apart = difference(pixels, ALTERED["small"](pixels))
    assert (apart != 128).any(axis=2).mean() > 0.99


@pytest.mark.parametrize("name", ["crop", "bordered", "rotated", "mirrored and cropped"])
def test_the_difference_shows_both_pictures_aligned(name: str) -> None:
    pixels = scene(1)
    copy = np.ascontiguousarray(ALTERED[name](pixels)).astype(np.uint8)
    apart = difference(pixels, copy)
    covered = (apart != 128).any(axis=2)
    assert covered.mean() == pytest.approx(1.0 if name == "bordered" else copy.size / pixels.size, abs=0.03)
    assert apart[covered].mean() < 6 < np.abs(pixels.astype(int) - scene(3)).mean()


def test_of_a_long_list_the_closest_and_the_most_distant_pairs_are_shown() -> None:
    assert shown_pairs(range(10), 4) == [0, 1, 8, 9]
    assert shown_pairs(range(4), 4) == [0, 1, 2, 3]
