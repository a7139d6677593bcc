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
# Up to here a hash match needs little more: of 4.5 M pairs of MNIST with UCI digits, the closest were 76 bits apart,
# and
# 5 of 3.1 M pairs within MNIST at most 31 (docs/decisions/0003-sign-hash.md).
STRONG_BITS = 31
_STRONG_LOCAL_FROM, _STRONG_CORRELATION_FROM = 0.6, 0.8
# Agreement in detail. Trousers on cloth, aligned, reach 0.92; of altered copies nine in ten have more than 0.95
# (docs/audit-quality.md).
_LOCAL_FROM = 0.95
# Matched features, for copies that are partly covered; the rest of the picture must agree.
_INLIERS_FROM = 8
_COVERED_SHARE_FROM, _COVERED_LOCAL_FROM = 0.6, 0.45
# Plain pictures count when they agree as they are, or, unless very plain, nearly perfectly after alignment. Different
# UCI
# digits by one hand reach 0.967 as they are and 0.973 aligned; different ellipses 0.998 aligned.
_WHOLE_FROM = 0.975
_PERFECT_FROM = 0.98
_VERY_PLAIN_DETAIL = 0.42
_SIMILAR_FROM = 0.85


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
    up_bytes: bytes, down_bytes: bytes, up: Pixels, down: Pixels, min_quality: int, *, distance: int | None
) -> Verdict:
    """Compares two pictures.

    Args:
        up_bytes: Encoded upstream picture.
        down_bytes: Encoded downstream picture.
        up: Its pixels.
        down: Its pixels.
        min_quality: Lower of the two quality scores.
        distance: Bits between their hashes; None where an embedding put them together.
    """
    if up_bytes == down_bytes:
        return Verdict(Evidence.SAME_BYTES, 1.0, None)
    if up.shape == down.shape and np.array_equal(up, down):
        return Verdict(Evidence.SAME_PIXELS, 1.0, None)
    if min_quality < MIN_QUALITY:
        return Verdict(Evidence.REJECTED, 0.0, None)
    first, second = sorted((up, down), key=lambda pixels: (pixels.shape, pixels.tobytes()))
    agreement = align(first, second)
    return Verdict(judge(agreement, distance), round(agreement.correlation, 4), agreement)


def judge(agreement: Agreement, distance: int | None) -> Evidence:
    """Gives the class of a pair of different pictures with texture."""
    if _is_strong(agreement, distance) or _agrees(agreement) or _agrees_where_uncovered(agreement):
        return Evidence.EMBEDDED if distance is None else Evidence.NEAR
    return Evidence.SIMILAR if agreement.local >= _SIMILAR_FROM else Evidence.REJECTED


def _is_strong(agreement: Agreement, distance: int | None) -> bool:
    is_close = distance is not None and distance <= STRONG_BITS
    return is_close and agreement.local >= _STRONG_LOCAL_FROM and agreement.correlation >= _STRONG_CORRELATION_FROM


def _agrees(agreement: Agreement) -> bool:
    """Whether they agree in detail, and pictures with so much in them do so only if they are the same."""
    if agreement.local < _LOCAL_FROM:
        return False
    if agreement.detail >= PLAIN_DETAIL or agreement.inliers >= _INLIERS_FROM or agreement.whole >= _WHOLE_FROM:
        return True
    return agreement.detail >= _VERY_PLAIN_DETAIL and agreement.local >= _PERFECT_FROM


def _agrees_where_uncovered(agreement: Agreement) -> bool:
    is_mapped = agreement.inliers >= _INLIERS_FROM
    return is_mapped and agreement.share >= _COVERED_SHARE_FROM and agreement.local >= _COVERED_LOCAL_FROM
