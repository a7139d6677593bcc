"""Whether two pictures that hash alike are the same picture: aligned correlation, then one rule."""

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pipeline.fingerprint import apply_dihedral
from pipeline.image import Pixels

_SIDE = 48  # pixels; ciFAIR's duplicates were told apart at this size (spec dedup 3.3)
_DUPLICATE_FROM = 0.90  # correlation; finds 91 % of ciFAIR's labelled near-duplicates
_SIMILAR_FROM = 0.75
# Below this gradient score a code says little: a plain sky of CIFAR-10 scores 6, an ellipse on white 18. Of CIFAR-10
# 2.2 % are below, of six other sets of real pictures 0 to 0.2 %.
MIN_QUALITY = 20
# Share of the side that a trial crop keeps; with five positions each, in both directions.
_CROPS = (0.95, 0.90)

Grey = npt.NDArray[np.float32]


class Evidence(StrEnum):
    """Why a pair is in the report."""

    SAME_BYTES = "same bytes"
    SAME_PIXELS = "same pixels"
    NEAR = "near-duplicate"
    SIMILAR = "very similar"
    REJECTED = "rejected"

    @property
    def is_duplicate(self) -> bool:
        """Whether it counts as a duplicate in the accuracy table."""
        return self in (Evidence.SAME_BYTES, Evidence.SAME_PIXELS, Evidence.NEAR)


@dataclass(frozen=True)
class Verdict:
    """What was found out about one pair.

    Attributes:
        evidence: The class of the pair.
        correlation: Best aligned correlation of the grey pictures, -1..1.
    """

    evidence: Evidence
    correlation: float


def verify_pair(
    up_bytes: bytes, down_bytes: bytes, up: Pixels, down: Pixels, element: int, min_quality: int
) -> Verdict:
    """Compares two pictures.

    Args:
        up_bytes: Encoded upstream picture.
        down_bytes: Encoded downstream picture.
        up: Its pixels.
        down: Its pixels.
        element: Flip or turn of fingerprint.DIHEDRAL to apply to the downstream picture.
        min_quality: Lower of the two quality scores.
    """
    correlation = aligned_correlation(up, np.ascontiguousarray(apply_dihedral(down, element)))
    same_pixels = up.shape == down.shape and bool(np.array_equal(up, down))
    return Verdict(judge(up_bytes == down_bytes, same_pixels, min_quality, correlation), correlation)


def judge(same_bytes: bool, same_pixels: bool, min_quality: int, correlation: float) -> Evidence:
    """Gives the class of a pair. Flat pictures count only when they are identical."""
    if same_bytes:
        return Evidence.SAME_BYTES
    if same_pixels:
        return Evidence.SAME_PIXELS
    if min_quality < MIN_QUALITY or correlation < _SIMILAR_FROM:
        return Evidence.REJECTED
    return Evidence.NEAR if correlation >= _DUPLICATE_FROM else Evidence.SIMILAR


def aligned_correlation(up: Pixels, down: Pixels) -> float:
    """Gives the best correlation of the grey pictures over small crops of either, rounded to 4 digits."""
    whole_up, whole_down = _grey(up, None), _grey(down, None)
    best = _correlation(whole_up, whole_down)
    for box in _boxes():
        best = max(best, _correlation(_grey(up, box), whole_down), _correlation(whole_up, _grey(down, box)))
    return round(float(best), 4)


@lru_cache
def _boxes() -> tuple[tuple[float, float, float, float], ...]:
    """Crops as shares of width and height: centre and corners at each size."""
    boxes = []
    for kept in _CROPS:
        spare = 1.0 - kept
        for x, y in ((0.5, 0.5), (0, 0), (1, 0), (0, 1), (1, 1)):
            boxes.append((x * spare, y * spare, x * spare + kept, y * spare + kept))
    return tuple(boxes)


def _grey(pixels: Pixels, box: tuple[float, float, float, float] | None) -> Grey:
    from PIL import Image  # noqa: PLC0415 - 40 ms that the command line's help need not pay

    image = Image.fromarray(pixels).convert("L")
    width, height = image.size
    area = None if box is None else (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, box=area), np.float32)


def _correlation(one: Grey, other: Grey) -> float:
    one, other = one - one.mean(), other - other.mean()
    scale = float(np.sqrt((one * one).sum() * (other * other).sum()))
    return float((one * other).sum()) / scale if scale > 0 else 0.0
