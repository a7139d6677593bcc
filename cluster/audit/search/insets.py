"""Codes of the pictures within an upstream picture: parts of a collage or a screenshot, or pasted into another one.

What was put together has straight lines along the sides of its parts: there the luma jumps over a long way, and more
than beside it. Rectangles of such lines and of the picture's own sides are the insets. All sums are of halves of grey
levels, and so are exact: a picture has the same insets on any machine.
"""

import numpy as np
import numpy.typing as npt

from cluster.audit.base.tables import MIN_QUALITY
from pipeline.image.decode import Pixels
from pipeline.image.fingerprint import fingerprint

INSETS_VERSION = 1  # raised with every change of what inset_codes returns
# What finds most of 67 collages, screenshots and pasted pictures (docs/decisions/0023-insets-of-upstream-images.md).
_SIDE_PX = 256  # longer side of the picture in which lines are searched
_JUMP_CAP = 32.0  # grey levels: what a jump counts at most
_BESIDE_PX = 2
_LEAST_JUMP = 3.0  # grey levels more than beside it, on average over a side
_OWN_SIDE = 11.0  # what a side of the picture itself counts as
_NUM_LINES = 18  # upright ones, and level ones
_NUM_CROSSING = 5  # between two upright lines, or two level ones
_APART_PX = 3
_LEAST_SHARE = 0.3  # of each side of the picture
_MOST_OVERLAP = 0.93  # of two insets, of what they cover together
_MOST_INSETS = 16

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def inset_codes(pixels: Pixels) -> list[bytes]:
    """Return the codes of at most 16 pictures within a picture, as of pipeline.image.fingerprint; flat ones have none.

    Args:
        pixels: RGB of shape (height, width, 3).
    """
    from PIL import Image  # noqa: PLC0415 - 40 ms that the command line's help need not pay

    grey = Image.fromarray(pixels).convert("L")
    grey.thumbnail((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX)
    luma = np.asarray(grey)
    parts = (np.ascontiguousarray(luma[top:bottom, left:right]) for top, bottom, left, right in insets(luma).tolist())
    return [code for code, quality in map(fingerprint, parts) if quality >= MIN_QUALITY]


def insets(luma: Pixels) -> Ints:
    """Return the first and last row and column of the pictures within a picture, shape (insets, 4), the surest first.

    Args:
        luma: Shape (height, width).
    """
    if min(luma.shape) < 4 * _BESIDE_PX:
        return np.zeros((0, 4), np.int64)
    upright, level = _lines_in(luma.astype(np.float64)), _lines_in(luma.T.astype(np.float64))
    boxes, scores = _bounded(upright, level)
    turned, more = _bounded(level, upright)
    boxes, scores = np.concatenate([boxes, turned[:, [2, 3, 0, 1]]]), np.concatenate([scores, more])
    return _distinct(boxes[np.argsort(-scores, kind="stable")])


def _lines_in(values: Floats) -> Floats:
    """Return how much more the luma jumps between two columns than beside them, shape (height, width + 1)."""
    jumps = np.zeros((len(values), values.shape[1] + 1))
    jumps[:, 1:-1] = np.minimum(np.abs(np.diff(values)), _JUMP_CAP)
    more = jumps.copy()
    more[:, _BESIDE_PX:] -= jumps[:, :-_BESIDE_PX] / 2
    more[:, :-_BESIDE_PX] -= jumps[:, _BESIDE_PX:] / 2
    return more


def _bounded(upright: Floats, level: Floats) -> tuple[Ints, Floats]:
    """Return rectangles between two of the strongest upright lines, and how sure they are.

    Args:
        upright: As of _lines_in.
        level: That of the transposed picture.
    """
    height, width = len(upright), len(level)
    columns = _pairs(_longest(upright))
    columns = columns[columns[:, 1] - columns[:, 0] >= _LEAST_SHARE * width]
    sums = _sums(level)
    across = (sums[columns[:, 1]] - sums[columns[:, 0]]) / (columns[:, 1] - columns[:, 0])[:, None]
    across[:, [0, height]] = np.inf
    rows = _pairs(_strongest(across))
    boxes = np.concatenate([rows, np.broadcast_to(columns[:, None], rows.shape)], axis=2).reshape(-1, 4)
    number = np.repeat(np.arange(len(columns)), rows.shape[1])
    tall = (boxes[:, 1] - boxes[:, 0] >= _LEAST_SHARE * height) & ~np.all(boxes == [0, height, 0, width], axis=1)
    boxes, number = boxes[tall], number[tall]
    top, bottom, ends = boxes[:, 0], boxes[:, 1], boxes[:, 2:]
    sums = _sums(upright)
    along = (sums[bottom[:, None], ends] - sums[top[:, None], ends]) / (bottom - top)[:, None]
    along[(ends == 0) | (ends == width)] = np.inf
    sides = np.column_stack([across[number, top], across[number, bottom], along])
    is_sure = sides.min(axis=1) >= _LEAST_JUMP
    sides = np.where(np.isinf(sides), _OWN_SIDE, sides)[is_sure]
    return boxes[is_sure], (sides.min(axis=1) + sides.mean(axis=1)) / 2


def _sums(lines: Floats) -> Floats:
    return np.concatenate([np.zeros_like(lines[:1]), np.cumsum(lines, axis=0)])


def _pairs(places: Ints) -> Ints:
    """Return all pairs of the last axis, shape (..., pairs, 2)."""
    first, last = np.triu_indices(places.shape[-1], 1)
    return np.stack([places[..., first], places[..., last]], axis=-1)


def _longest(lines: Floats) -> Ints:
    """Return the places of the strongest upright lines, however long, and both ends."""
    sums = _sums(lines - _LEAST_JUMP)
    strength = (sums - np.minimum.accumulate(sums, axis=0)).max(axis=0)
    end = len(strength) - 1
    strength[[0, end]] = 0
    order = np.argsort(-strength, kind="stable")
    chosen: list[int] = []
    for place in order[strength[order] > 0].tolist():
        if all(abs(place - other) >= _APART_PX for other in chosen):
            chosen.append(place)
        if len(chosen) == _NUM_LINES:
            break
    return np.array(sorted([0, *chosen, end]))


def _strongest(across: Floats) -> Ints:
    """Return the places of the strongest lines that cross each of several spans, shape (spans, lines), in order."""
    left, spans, end = across.copy(), np.arange(len(across)), across.shape[1] - 1
    left[:, [0, end]] = -np.inf
    chosen = [np.zeros(len(left), np.int64), np.full(len(left), end)]
    for _ in range(_NUM_CROSSING):
        chosen.append(left.argmax(axis=1))
        for shift in range(1 - _APART_PX, _APART_PX):
            left[spans, (chosen[-1] + shift).clip(0, end)] = -np.inf
    return np.sort(np.column_stack(chosen), axis=1)


def _distinct(boxes: Ints) -> Ints:
    """Return the first boxes that do not cover nearly the same as one before them."""
    kept: list[Ints] = []
    while len(boxes) and len(kept) < _MOST_INSETS:
        kept.append(boxes[0])
        first, last = boxes[:, ::2], boxes[:, 1::2]
        both = np.maximum(np.minimum(last, last[0]) - np.maximum(first, first[0]), 0).prod(axis=1)
        areas = (last - first).prod(axis=1)
        boxes = boxes[both <= _MOST_OVERLAP * (areas + areas[0] - both)]
    return np.stack(kept) if kept else boxes
