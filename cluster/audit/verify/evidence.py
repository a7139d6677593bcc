"""Whether two pictures that a search proposed are the same: by bytes, by pixels, or after alignment.

Two pictures are always aligned in the same order, so A and B get the same evidence as B and A.
"""

from dataclasses import dataclass

import numpy as np

from cluster.audit.base.tables import MIN_QUALITY, Evidence
from cluster.audit.verify.align import PLAIN_DETAIL, Agreement, Alignment, align
from pipeline.image.decode import Pixels

EVIDENCE_VERSION = 1  # raised with every change of what verify_pair returns, also by align.py and affine.py
# Up to this distance a match of hashes needs little more: of 4.5 M pairs of MNIST with UCI digits, the closest were 76
# bits apart, and 5 of 3.1 M pairs within MNIST at most 31 (docs/decisions/0003-sign-hash.md).
STRONG_BITS = 31
_STRONG_LOCAL_FROM, _STRONG_CORRELATION_FROM = 0.6, 0.8
# The closest hashes of different pictures with texture are 46 bits apart: trousers on cloth (docs/audit-quality.md).
_CLOSE_BITS = 44
_CLOSE_LOCAL_FROM = 0.8
# Agreement in detail. A copy is contained in the other picture or contains it; two shots of a market stall overlap in
# part and reach 0.96. Trousers of which one contains the other reach 0.92.
_CONTAINED_FROM = 0.95
_CONTAINED_LOCAL_FROM, _PARTIAL_LOCAL_FROM = 0.94, 0.975
# Matched features, for copies that are covered in part. Two hands with cartons before one shelf share 0.67.
_INLIERS_FROM = 12
_FRAMED_FROM, _FRAMED_SHARE_FROM = 0.9, 0.7
_FEATURED_LOCAL_FROM = 0.88
# Plain pictures count if they agree as they are, or, unless very plain, nearly perfectly after alignment. Different
# UCI digits by one hand reach 0.967 as they are and 0.973 aligned; different ellipses 0.998 aligned.
_WHOLE_FROM = 0.975
# Pictures of a few pixels lose detail when they are cut and resampled: one in four CIFAR-10 pictures cut to 85 % or
# more, toned and compressed keeps less than 0.93, while of 1.25 M pairs of different ones none reaches 0.80.
_SMALL_SIDE_PX = 40
_SMALL_LOCAL_FROM, _SMALL_PLAIN_LOCAL_FROM = 0.88, 0.93
_PERFECT_FROM = 0.98
_PLAIN_INLIERS_FROM = 8
_VERY_PLAIN_DETAIL = 0.42
_SIMILAR_FROM = 0.85


@dataclass(frozen=True)
class Comparison:
    """The result of comparing two pictures.

    Attributes:
        evidence: The class of the pair.
        correlation: Of the grey pictures where they overlap, -1..1, 4 digits; 1 for equal pixels.
        alignment: From the upstream picture to the downstream one; None for equal bytes or pixels, and if one is flat.
    """

    evidence: Evidence
    correlation: float
    alignment: Alignment | None


def verify_pair(
    up_bytes: bytes, down_bytes: bytes, up: Pixels, down: Pixels, min_quality: int, *, distance: int | None
) -> Comparison:
    """Compare two pictures.

    Args:
        up_bytes: Encoded upstream picture.
        down_bytes: Encoded downstream picture.
        up: Its pixels.
        down: Its pixels.
        min_quality: Lower of the two quality scores.
        distance: Bits between their hashes; None if an embedding proposed the pair.
    """
    if up_bytes == down_bytes:
        return Comparison(Evidence.SAME_BYTES, 1.0, None)
    if up.shape == down.shape and np.array_equal(up, down):
        return Comparison(Evidence.SAME_PIXELS, 1.0, None)
    if min_quality < MIN_QUALITY:
        return Comparison(Evidence.REJECTED, 0.0, None)
    alignment = align_pair(up, down)
    agreement = alignment.agreement
    return Comparison(judge(agreement, distance), round(agreement.correlation, 4), alignment)


def align_pair(up: Pixels, down: Pixels) -> Alignment:
    """Align the upstream picture to the downstream one; the result does not depend on which is which."""
    if (up.shape, up.tobytes()) <= (down.shape, down.tobytes()):
        return align(up, down)
    return align(down, up).inverse


def judge(agreement: Agreement, distance: int | None) -> Evidence:
    """Return the class of a pair of different pictures with texture.

    Args:
        agreement: See align.
        distance: Bits between the hashes; None if an embedding proposed the pair.
    """
    by_hash = distance is not None and _confirms_hash(agreement, distance)
    if by_hash or _agrees(agreement) or _features_agree(agreement):
        return Evidence.EMBEDDED if distance is None else Evidence.NEAR
    return Evidence.SIMILAR if agreement.local >= _SIMILAR_FROM else Evidence.REJECTED


def _confirms_hash(agreement: Agreement, distance: int) -> bool:
    """Whether the pictures confirm close hashes, or features the frame of a copy that is covered in part."""
    if distance <= STRONG_BITS:
        return agreement.local >= _STRONG_LOCAL_FROM and agreement.correlation >= _STRONG_CORRELATION_FROM
    if distance <= _CLOSE_BITS and agreement.detail >= _VERY_PLAIN_DETAIL and agreement.local >= _CLOSE_LOCAL_FROM:
        return True
    is_framed = agreement.inliers >= _INLIERS_FROM and agreement.overlap >= _FRAMED_FROM
    return is_framed and agreement.share >= _FRAMED_SHARE_FROM


def _agrees(agreement: Agreement) -> bool:
    """Whether they agree so well in detail that pictures with as much detail must be the same."""
    is_contained = agreement.overlap >= _CONTAINED_FROM
    if agreement.side_px <= _SMALL_SIDE_PX and agreement.detail >= _VERY_PLAIN_DETAIL:
        is_plain = agreement.detail < PLAIN_DETAIL
        return agreement.local >= (_SMALL_PLAIN_LOCAL_FROM if is_plain else _SMALL_LOCAL_FROM)
    if agreement.local < (_CONTAINED_LOCAL_FROM if is_contained else _PARTIAL_LOCAL_FROM):
        return False
    if agreement.detail >= PLAIN_DETAIL or agreement.inliers >= _PLAIN_INLIERS_FROM:
        return True
    is_perfect = agreement.local >= _PERFECT_FROM or agreement.whole >= _WHOLE_FROM
    return agreement.detail >= _VERY_PLAIN_DETAIL and is_perfect


def _features_agree(agreement: Agreement) -> bool:
    is_contained = agreement.inliers >= _INLIERS_FROM and agreement.overlap >= _CONTAINED_FROM
    return is_contained and agreement.local >= _FEATURED_LOCAL_FROM
