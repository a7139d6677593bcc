"""Codes of many crops of a downstream picture, some of them beyond its edges: to find crops and moved frames of it.

The crops lie on a lattice, close enough that most others are near one of them (docs/audit-quality.md). All codes are
computed at once: a code is the signs of products with cosines, and that of a crop is so, too, with the cosines
stretched over it. All in whole numbers, as in pipeline.image.fingerprint.
"""

from functools import cache

import numpy as np
import numpy.typing as npt

from pipeline.image.average64 import SIDE
from pipeline.image.decode import Pixels
from pipeline.image.fingerprint import FREQUENCIES, cosines

CROPS_VERSION = 1  # raised with every change of what crop_codes returns
_CELLS = 15  # of the lattice along a side; docs/decisions/0022-crops-of-test-images.md compares others
_CELL_PX = 8
_LEAST_CELLS = 9  # of a side
_MOST_OUTSIDE_CELLS = 2  # beyond an edge, which is repeated there
_LEAST_MOVED_CELLS, _MOST_MOVED_RATIO = 12, 1.1  # of the sides of a crop that is in part outside
_SHIFT_BITS = 14  # which products lose between the two multiplications, so that sums stay below 2**53, and exact
_SIDE_PX = _CELLS * _CELL_PX


def num_crops() -> int:
    """Return the number of crops of a picture."""
    return int(_crops()[1].sum())


def crop_codes(pixels: Pixels) -> npt.NDArray[np.uint8]:
    """Return the codes of all crops of a picture, shape (crops, 32), as of pipeline.image.fingerprint.

    Args:
        pixels: RGB of shape (height, width, 3).
    """
    from PIL import Image  # noqa: PLC0415 - 40 ms that the command line's help need not pay

    grey = Image.fromarray(pixels).convert("L")
    way = Image.Resampling.BOX if min(grey.size) >= _SIDE_PX else Image.Resampling.BILINEAR
    luma = np.asarray(grey.resize((_SIDE_PX, _SIDE_PX), way), np.float64)
    stretched = _stretched_cosines()
    rows = np.round(stretched @ luma / (1 << _SHIFT_BITS))
    signs = [_signs(own, stretched[used]) for own, used in zip(rows, _crops()[1], strict=True)]
    return np.packbits(np.concatenate(signs).reshape(-1, FREQUENCIES**2), axis=1)


def _signs(rows: npt.NDArray[np.float64], stretched: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Return the signs of the crops of one vertical span, shape (crops, 16, 16)."""
    products = rows @ stretched.reshape(-1, _SIDE_PX).T
    signs = products.reshape(FREQUENCIES, -1, FREQUENCIES).swapaxes(0, 1) > 0
    signs[:, 0, 0] = False
    return signs


@cache
def _crops() -> tuple[list[tuple[int, int]], npt.NDArray[np.bool_]]:
    """Return spans along a side, as first and last cell, and which vertical and horizontal ones make a crop."""
    outside = _MOST_OUTSIDE_CELLS
    spans = [
        (first, last)
        for first in range(-outside, _CELLS)
        for last in range(first + _LEAST_CELLS, min(first + _CELLS, _CELLS + outside) + 1)
    ]

    def is_used(*both: tuple[int, int]) -> bool:
        if all(first >= 0 and last <= _CELLS for first, last in both):
            return True
        shorter, longer = sorted(last - first for first, last in both)
        return shorter >= _LEAST_MOVED_CELLS and longer <= _MOST_MOVED_RATIO * shorter

    return spans, np.array([[is_used(vertical, horizontal) for horizontal in spans] for vertical in spans])


@cache
def _stretched_cosines() -> npt.NDArray[np.float64]:
    """Return the cosines of the 64-point transform over each span, in whole numbers, shape (spans, 16, side)."""
    return np.stack([cosines() @ _averages(first * _CELL_PX, last * _CELL_PX) for first, last in _crops()[0]])


def _averages(first_px: int, last_px: int) -> npt.NDArray[np.float64]:
    """Return how much of each pixel, in 64ths, is in each of 64 equal parts of a span, shape (64, side)."""
    edges = np.linspace(SIDE * first_px, SIDE * last_px, SIDE + 1)[:, None]
    pixels = SIDE * np.arange(_SIDE_PX + 1)[None, :]
    pixels[0, 0], pixels[0, -1] = min(0, edges[0, 0]), max(pixels[0, -1], edges[-1, 0])  # the edge is repeated
    shared: npt.NDArray[np.float64] = np.minimum(edges[1:], pixels[:, 1:]) - np.maximum(edges[:-1], pixels[:, :-1])
    return np.maximum(shared, 0.0)
