"""Averages are exact, so that a picture has the same fingerprint on every machine."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pipeline.image.average64 import MOST_PX, SIDE, UNITS, average64

SIDES = st.integers(SIDE, 150)


def exact(grey: np.ndarray) -> np.ndarray:
    """Each pixel 64 x 64 times: then parts hold whole numbers of them."""
    height, width = grey.shape
    parts = grey.repeat(SIDE, 0).repeat(SIDE, 1).reshape(SIDE, height, SIDE, width)
    total = parts.sum(axis=(1, 3), dtype=np.int64)
    return (2 * UNITS * total + height * width) // (2 * height * width)


@settings(max_examples=30)
@given(SIDES, SIDES, st.integers(0, 2**32 - 1))
def test_averages_are_those_of_whole_numbers(height: int, width: int, seed: int) -> None:
    grey = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    assert np.array_equal(average64(grey), exact(grey))


@pytest.mark.parametrize("shape", [(MOST_PX, SIDE), (SIDE, MOST_PX)])
def test_nothing_overflows_in_the_largest_picture(shape: tuple[int, int]) -> None:
    assert (average64(np.full(shape, 255, np.uint8)) == 255 * UNITS).all()


def test_a_view_with_gaps_is_averaged_as_its_copy() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (200, 300), np.uint8)[::2, ::-1]
    assert np.array_equal(average64(grey), average64(grey.copy()))


@pytest.mark.parametrize("shape", [(63, 100), (100, 63), (64, MOST_PX + 1)])
def test_sides_out_of_range_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="64 to 65535"):
        average64(np.zeros(shape, np.uint8))
