"""Whether two pictures that a search proposed are the same: by bytes, by pixels, or after alignment.

Two pictures are always aligned in the same order, so A and B get the same evidence as B and A.
"""

from dataclasses import dataclass, replace

from cluster.audit.base.tables import CLOSE_BITS, MIN_QUALITY, STRONG_BITS, Evidence
from cluster.audit.verify.align import PLAIN_DETAIL, Alignment, align
from cluster.audit.verify.measure import Agreement
from cluster.audit.verify.planar import planar_agreement
from cluster.audit.verify.prepare import Prepared
from pipeline.image.decode import Pixels

EVIDENCE_VERSION = 4  # raised with every change of what verify_pair returns, also by the alignment
_STRONG_SOFT_FROM, _STRONG_CORRELATION_FROM = 0.8, 0.5
_STRONG_PLAIN_FROM = 0.9  # `local` and correlation
_CLOSE_LOCAL_FROM, _CLOSE_BENT_LOCAL_FROM = 0.8, 0.96  # two shots of one carton, 39 bits apart and bent, reach 0.93
_CLOSE_SOFT_FROM = 0.9  # prints in dots
# Agreement in detail. A copy is contained in the other picture or contains it; two shots of a market stall overlap in
# part and reach 0.98. Trousers of which one contains the other reach 0.92.
_CONTAINED_FROM = 0.95
_CONTAINED_LOCAL_FROM, _PARTIAL_LOCAL_FROM = 0.94, 0.985
_STIFF_BEND = 0.02  # two shots of a shelf, bent onto each other by 0.05, reach 0.98
# Matched features, for copies that are covered in part. Two products in one hand before one shelf reach 0.94.
_INLIERS_FROM = 12
_FRAMED_FROM, _CORE_FROM = 0.9, 0.97
_FEATURED_LOCAL_FROM = 0.88
_BENT_LOCAL_FROM = 0.983  # two shots of one crate, bent onto each other, reach 0.98
# Under a map between planes, as of prints that were photographed. Two shots of cartons reach 0.983 where 0.947 of one
# is covered.
_PLANAR_FROM, _PLANAR_OVERLAP_FROM = 0.95, 0.95
_PLANAR_WORTH_FROM = 0.5  # `local` from which such a map is searched for
# Plain pictures count if they agree as they are, or, unless very plain, nearly perfectly after alignment. Different
# UCI digits by one hand reach 0.967 as they are and 0.973 aligned; different ellipses 0.998 aligned.
_WHOLE_FROM = 0.975
# Pictures of a few pixels lose detail when they are cut and resampled: one in four CIFAR-10 pictures cut to 85 % or
# more, toned and compressed keeps less than 0.93. Of the 500 pairs of different ones that look most alike none reaches
# 0.85. Parts of 0.84 of two pictures with a post reach 0.88, without a matched feature.
_SMALL_SIDE_PX = 40
_SMALL_OVERLAP_FROM = 0.6
_SMALL_LOCAL_FROM, _SMALL_PLAIN_LOCAL_FROM = 0.88, 0.93
_SMALL_COVERED_LOCAL_FROM, _SMALL_CORE_FROM = 0.78, 0.9
_SMALL_INLIERS_FROM = 15  # corners of two cases of 32 px have 13
_PERFECT_FROM = 0.98
_PLAIN_INLIERS_FROM = 8
_VERY_PLAIN_DETAIL = 0.42
_SIMILAR_FROM = 0.85
# Flat pictures (below MIN_QUALITY) that are not quite so are compared where their hashes, too, say that they are equal.
_FLAT_QUALITY_FROM = 12
_FLAT_FROM = 0.97  # `local` and `whole`


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
    up_bytes: bytes,
    down_bytes: bytes,
    up: Pixels | Prepared,
    down: Pixels | Prepared,
    min_quality: int,
    *,
    distance: int | None,
) -> Comparison:
    """Compare two pictures.

    Args:
        up_bytes: Encoded upstream picture.
        down_bytes: Encoded downstream picture.
        up: Its pixels, prepared for several pairs or not.
        down: Likewise.
        min_quality: Lower of the two quality scores.
        distance: Bits between their hashes; None if an embedding proposed the pair.
    """
    if up_bytes == down_bytes:
        return Comparison(Evidence.SAME_BYTES, 1.0, None)
    first, second = (each if isinstance(each, Prepared) else Prepared(each) for each in (up, down))
    if first.order == second.order:
        return Comparison(Evidence.SAME_PIXELS, 1.0, None)
    if min_quality < (_FLAT_QUALITY_FROM if _is_strong(distance) else MIN_QUALITY):
        return Comparison(Evidence.REJECTED, 0.0, None)
    alignment = align_pair(first, second)
    agreement = alignment.agreement
    evidence = judge(agreement, distance, min_quality)
    if not evidence.is_copy_upstream and _is_worth_a_planar_map(agreement):
        planar, overlap = planar_agreement(*sorted((first, second), key=lambda each: each.order))
        agreement = replace(agreement, planar=planar, planar_overlap=overlap)
        evidence, alignment = judge(agreement, distance, min_quality), replace(alignment, agreement=agreement)
    return Comparison(evidence, round(agreement.correlation, 4), alignment)


def align_pair(up: Pixels | Prepared, down: Pixels | Prepared) -> Alignment:
    """Align the upstream picture to the downstream one; the result does not depend on which is which."""
    first, second = (each if isinstance(each, Prepared) else Prepared(each) for each in (up, down))
    return align(first, second) if first.order <= second.order else align(second, first).inverse


def _is_worth_a_planar_map(agreement: Agreement) -> bool:
    return agreement.side_px > _SMALL_SIDE_PX and agreement.local >= _PLANAR_WORTH_FROM


def judge(agreement: Agreement, distance: int | None, min_quality: int = MIN_QUALITY) -> Evidence:
    """Return the class of a pair of different pictures.

    Args:
        agreement: See align.
        distance: Bits between the hashes; None if an embedding proposed the pair.
        min_quality: Lower of the two quality scores.
    """
    if min_quality < MIN_QUALITY:
        return Evidence.NEAR if _is_strong(distance) and _flat_agree(agreement) else Evidence.REJECTED
    if (
        _confirms_hash(agreement, distance)
        or _agrees(agreement)
        or _features_agree(agreement)
        or _planes_agree(agreement)
        or (agreement.side_px <= _SMALL_SIDE_PX and _small_agree(agreement))
    ):
        return Evidence.EMBEDDED if distance is None else Evidence.NEAR
    return Evidence.SIMILAR if agreement.local >= _SIMILAR_FROM else Evidence.REJECTED


def _is_strong(distance: int | None) -> bool:
    return distance is not None and distance <= STRONG_BITS


def _flat_agree(agreement: Agreement) -> bool:
    is_same = agreement.local >= _FLAT_FROM and agreement.whole >= _FLAT_FROM
    return is_same and (agreement.detail >= _VERY_PLAIN_DETAIL or agreement.inliers >= _PLAIN_INLIERS_FROM)


def _confirms_hash(agreement: Agreement, distance: int | None) -> bool:
    """Whether the pictures confirm close hashes."""
    if distance is None:
        return False
    if agreement.detail < _VERY_PLAIN_DETAIL:
        agrees = min(agreement.local, agreement.correlation) >= _STRONG_PLAIN_FROM
        return _is_strong(distance) and agrees
    if _is_strong(distance):
        return agreement.soft >= _STRONG_SOFT_FROM and agreement.correlation >= _STRONG_CORRELATION_FROM
    if distance > CLOSE_BITS:
        return False
    if agreement.bend > _STIFF_BEND:
        return agreement.local >= _CLOSE_BENT_LOCAL_FROM
    is_print = agreement.soft >= _CLOSE_SOFT_FROM and agreement.overlap >= _CONTAINED_FROM
    return agreement.local >= _CLOSE_LOCAL_FROM or is_print


def _agrees(agreement: Agreement) -> bool:
    """Whether they agree so well in detail that pictures with as much detail must be the same."""
    is_contained = agreement.overlap >= _CONTAINED_FROM
    if agreement.side_px <= _SMALL_SIDE_PX or agreement.bend > _STIFF_BEND:
        return False
    if agreement.local < (_CONTAINED_LOCAL_FROM if is_contained else _PARTIAL_LOCAL_FROM):
        return False
    if agreement.detail >= PLAIN_DETAIL or agreement.inliers >= _PLAIN_INLIERS_FROM:
        return True
    is_perfect = agreement.local >= _PERFECT_FROM or agreement.whole >= _WHOLE_FROM
    return agreement.detail >= _VERY_PLAIN_DETAIL and is_perfect


def _planes_agree(agreement: Agreement) -> bool:
    """Whether one picture shows the whole other one from aside."""
    is_contained = agreement.planar_overlap >= _PLANAR_OVERLAP_FROM
    return is_contained and agreement.planar >= _PLANAR_FROM and agreement.detail >= _VERY_PLAIN_DETAIL


def _small_agree(agreement: Agreement) -> bool:
    """Whether pictures of a few pixels agree, wholly or where nothing covers them."""
    if agreement.detail < _VERY_PLAIN_DETAIL or agreement.overlap < _SMALL_OVERLAP_FROM:
        return False
    if agreement.local >= _SMALL_PLAIN_LOCAL_FROM:
        return True
    has_features = agreement.inliers >= _SMALL_INLIERS_FROM
    is_certain = has_features or (agreement.detail >= PLAIN_DETAIL and agreement.overlap >= _FRAMED_FROM)
    is_core = agreement.local >= _SMALL_COVERED_LOCAL_FROM and agreement.core >= _SMALL_CORE_FROM
    return is_certain and (is_core or (agreement.detail >= PLAIN_DETAIL and agreement.local >= _SMALL_LOCAL_FROM))


def _features_agree(agreement: Agreement) -> bool:
    """Whether features match, and the pictures agree in detail where nothing covers them."""
    if agreement.inliers < _INLIERS_FROM:
        return False
    if agreement.bend > _STIFF_BEND:
        return agreement.overlap >= _CONTAINED_FROM and agreement.local >= _BENT_LOCAL_FROM
    if agreement.detail >= _VERY_PLAIN_DETAIL and agreement.overlap >= _FRAMED_FROM and agreement.core >= _CORE_FROM:
        return True
    return agreement.overlap >= _CONTAINED_FROM and agreement.local >= _FEATURED_LOCAL_FROM
