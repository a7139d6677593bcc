"""Whether two pictures that a search put together are the same: by bytes, by pixels, or one laid over the other.

Pictures are compared in an order of their own, so the verdict on A and B is that on B and A.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from cluster.audit.align import PLAIN_DETAIL, Agreement, align
from pipeline.image import Pixels

# Below this gradient score a code says little: a plain sky of CIFAR-10 scores 6, an ellipse on white 18. Of CIFAR-10
# 2.2 % are below, of six other sets of real pictures 0 to 0.2 %.
MIN_QUALITY = 20
# Plain pictures count when they agree as they are, or in as many features, or, unless very plain, nearly perfectly
# after alignment. Different UCI digits by one hand reach 0.967 as they are and 0.973 aligned; ellipses 0.998 aligned.
_WHOLE_FROM = 0.975
_INLIERS_FROM = 12
_VERY_PLAIN_DETAIL = 0.42
_PERFECT_FROM = 0.985


class Evidence(StrEnum):
    """Why a pair is in the report."""

    SAME_BYTES = "same bytes"
    SAME_PIXELS = "same pixels"
    NEAR = "near-duplicate"
    EMBEDDED = "verified embedding"
    SIMILAR = "very similar"
    REJECTED = "rejected"

    @property
    def is_duplicate(self) -> bool:
        """Whether it counts as a duplicate in the accuracy table."""
        return self not in (Evidence.SIMILAR, Evidence.REJECTED)


@dataclass(frozen=True)
class Verdict:
    """What was found out about one pair.

    Attributes:
        evidence: The class of the pair.
        correlation: Of the grey pictures where they overlap, -1..1, 4 digits; 1 for equal pixels.
        agreement: All measures of the overlap; None for equal bytes or pixels.
    """

    evidence: Evidence
    correlation: float
    agreement: Agreement | None


def verify_pair(
    up_bytes: bytes, down_bytes: bytes, up: Pixels, down: Pixels, min_quality: int, *, hashed: bool = True
) -> Verdict:
    """Compares two pictures.

    Args:
        up_bytes: Encoded upstream picture.
        down_bytes: Encoded downstream picture.
        up: Its pixels.
        down: Its pixels.
        min_quality: Lower of the two quality scores.
        hashed: Whether the hashes put them together; otherwise an embedding did, which asks for more.
    """
    if up_bytes == down_bytes:
        return Verdict(Evidence.SAME_BYTES, 1.0, None)
    if up.shape == down.shape and np.array_equal(up, down):
        return Verdict(Evidence.SAME_PIXELS, 1.0, None)
    if min_quality < MIN_QUALITY:
        return Verdict(Evidence.REJECTED, 0.0, None)
    first, second = sorted((up, down), key=lambda pixels: (pixels.shape, pixels.tobytes()))
    agreement = align(first, second)
    return Verdict(judge(agreement, hashed=hashed), round(agreement.correlation, 4), agreement)


def judge(agreement: Agreement, *, hashed: bool) -> Evidence:
    """Gives the class of a pair of different pictures with texture."""
    if agreement.correlation >= 0.9 and agreement.local >= 0.6 and _tells(agreement):
        return Evidence.NEAR if hashed else Evidence.EMBEDDED
    return Evidence.SIMILAR if agreement.correlation >= 0.75 else Evidence.REJECTED


def _tells(agreement: Agreement) -> bool:
    """Whether pictures with so much in them agree so well only if they are the same."""
    if agreement.detail >= PLAIN_DETAIL or agreement.inliers >= _INLIERS_FROM or agreement.whole >= _WHOLE_FROM:
        return True
    return agreement.detail >= _VERY_PLAIN_DETAIL and agreement.local >= _PERFECT_FROM
