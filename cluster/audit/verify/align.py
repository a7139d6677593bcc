"""Alignment of two pictures: by a flip or turn, scale, shift and shear, and a little bending.

From coarse to fine: maps are proposed by windows that look alike, and improved at a small scale; then by features. The
best is improved further by maximizing the correlation (Evangelidis and Psarakis 2008).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from cluster.audit.verify.affine import Affine, Grey, chain, opencv, stretch, turn_back
from cluster.audit.verify.measure import NO_AGREEMENT, Agreement, Overlay, agreement, bent, overlay, softly
from cluster.audit.verify.prepare import Prepared
from cluster.audit.verify.propose import (
    MIRRORED,
    PLAIN,
    Proposal,
    by_features,
    by_windows,
    in_pixels,
    roughly_improved,
    whole_on_whole,
)
from pipeline.image.decode import Pixels
from pipeline.image.fingerprint import DIHEDRAL, apply_dihedral

# Below this detail a picture is plain: other pictures may fit it. UCI digits, 8x8, have 0.35 to 0.6, a quarter of
# clothing photos less than 0.5.
PLAIN_DETAIL = 0.6
_IMPROVED_SIDE_PX = 96  # at which the best maps are improved
_IMPROVED_STEPS, _IMPROVED_PRECISION = 40, 1e-4
_GOOD_WHOLE = 0.98
_GOOD_OVERLAP = 0.9
_SAME_LOCAL = 0.05  # largest difference in `local` of maps that are taken for the same
_GOOD_CORRELATION = 0.97  # from which no better map is searched for
# Correlation of small versions from which a map is measured: of the whole pictures, and after it was roughly improved.
_PLAIN_FROM, _ROUGH_FROM = 0.5, 0.5
_NUM_LIKELY = 2  # maps that are roughly improved
_ROUGH_STEPS = 15  # of that, at SMALL_SIDE_PX
# Pairs of tiny pictures are many (CIFAR), and windows find their maps. The 106 accepted copies of 32 px in the tuned
# half of benchmarks/audit_quality.py all have a window with a correlation of 0.72 or more, and after three steps the
# score of fifteen; features were of use from a `local` of 0.65 on.
_TINY_SIDE_PX = 48  # longer side
_TINY_LIKELY_FROM, _TINY_ROUGH_STEPS, _TINY_FEATURES_FROM = 0.6, 3, 0.5
_WORTH_FROM, _WORTH_LOCAL_FROM = 0.3, 0.2  # correlation and `local` from which a map is worth improving
_BENT_FROM, _BENT_UP_TO = 0.45, 0.97  # `local` of maps that are worth bending


@dataclass(frozen=True)
class Alignment:
    """The best map between two pictures, and how they agree under it.

    Attributes:
        agreement: Under the map, bent a little if `agreement.bend` says so.
        affine: Maps pixels (x, y) of the first picture to pixels of the second, shape (2, 3), before it is bent.
    """

    agreement: Agreement
    affine: Affine

    @property
    def inverse(self) -> "Alignment":
        """The alignment from the second picture to the first."""
        return replace(self, affine=opencv().invertAffineTransform(self.affine).astype(np.float32))

    @property
    def element(self) -> int:
        """The element of DIHEDRAL that turns the second picture most nearly into the first."""
        (a, b), (c, d) = self.affine[:, :2]
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return DIHEDRAL.index((False, bool(a < 0), bool(d < 0)))
        return DIHEDRAL.index((True, bool(c < 0), bool(b < 0)))


@dataclass(frozen=True)
class _Fit:
    """A map between the grey pictures that was measured."""

    agreement: Agreement
    affine: Affine
    element: int
    pair: Overlay | None = None


def align(one: Pixels | Prepared, other: Pixels | Prepared) -> Alignment:
    """Find the best map between two pictures and measure the agreement under it.

    The result depends on which picture is the first: evidence.align_pair puts them in a fixed order.
    """
    first, second = (each if isinstance(each, Prepared) else Prepared(each) for each in (one, other))
    side_px = min(*first.shape[:2], *second.shape[:2])
    whole, fits = -1.0, [_Fit(NO_AGREEMENT, np.eye(2, 3, dtype=np.float32), PLAIN)]
    for fit in _fits(first, second):
        whole = max(whole, fit.agreement.whole)
        fits.append(fit)
        if _is_good(fit.agreement, whole):
            break
    best = max(fits, key=lambda fit: fit.agreement)
    # A map from features that agrees as well is the same one, and its features count.
    inliers = max(fit.agreement.inliers for fit in fits if fit.agreement.local >= best.agreement.local - _SAME_LOCAL)
    soft = softly(best.pair) if best.pair else -1.0
    measured = replace(best.agreement, soft=soft, whole=whole, inliers=inliers, side_px=side_px)
    turned_shape = second.grey.shape[:: -1 if DIHEDRAL[best.element][0] else 1]
    onto = chain(best.affine, turn_back(turned_shape, best.element))
    return Alignment(measured, chain(chain(stretch(first.shape, first.grey.shape), onto),
                                     stretch(second.grey.shape, second.shape)))  # fmt: skip


def _is_good(found: Agreement, whole: float) -> bool:
    """Whether no better map need be searched for."""
    is_same = found.correlation >= _GOOD_CORRELATION and found.overlap > _GOOD_OVERLAP and not found.bend
    return is_same and (found.detail >= PLAIN_DETAIL or found.inliers > 0 or whole >= _GOOD_WHOLE)


def _fits(first: Prepared, second: Prepared) -> Iterator[_Fit]:
    """Yield measured maps: of the whole pictures, with its own `local` as `whole`; of windows; of features."""
    is_tiny = max(*first.shape[:2], *second.shape[:2]) <= _TINY_SIDE_PX
    plain, local = whole_on_whole(first, second), -1.0
    likely = sorted((plain, *by_windows(first, second)), key=lambda each: -each.score)[:_NUM_LIKELY]
    if is_tiny and likely[0].score < _TINY_LIKELY_FROM:
        return
    if plain.score >= _PLAIN_FROM:
        fit = _measured(first, second, plain)
        local = fit.agreement.local
        yield replace(fit, agreement=replace(fit.agreement, whole=local))
    num_steps = _TINY_ROUGH_STEPS if is_tiny else _ROUGH_STEPS
    rough = max((roughly_improved(first, second, each, num_steps) for each in likely), key=lambda each: each.score)
    if rough.score >= _ROUGH_FROM:
        fit = _improved(first, second, _measured(first, second, rough))
        local = max(local, fit.agreement.local)
        yield fit
    if is_tiny and (rough.score < _ROUGH_FROM or local < _TINY_FEATURES_FROM):
        return
    for element in (PLAIN, MIRRORED):
        found, inliers = by_features(first, second, element)
        if found is not None:
            pair = overlay(first.grey, _turned(second, element), found)
            yield _improved(first, second, _Fit(agreement(pair, inliers), found, element, pair))


def _measured(first: Prepared, second: Prepared, proposal: Proposal) -> _Fit:
    turned = _turned(second, proposal.element)
    affine = in_pixels(proposal.unit, first.grey.shape, turned.shape)
    pair = overlay(first.grey, turned, affine)
    return _Fit(agreement(pair), affine, proposal.element, pair)


def _turned(picture: Prepared, element: int) -> Grey:
    return np.ascontiguousarray(apply_dihedral(picture.grey, element)).astype(np.float32, copy=False)


def _improved(first: Prepared, second: Prepared, fit: _Fit) -> _Fit:
    """Improve a map that is worth it, and bend it where that may decide."""
    if fit.agreement.correlation < _WORTH_FROM or fit.agreement.local < _WORTH_LOCAL_FROM:
        return fit
    turned, inliers = _turned(second, fit.element), fit.agreement.inliers
    affine = _maximized(first.grey, turned, fit.affine)
    if affine is not None:
        pair = overlay(first.grey, turned, affine)
        measured = agreement(pair, inliers)
        if measured > fit.agreement:
            fit = _Fit(measured, affine, fit.element, pair)
    is_tiny = max(min(first.shape[:2]), min(second.shape[:2])) <= _TINY_SIDE_PX
    if fit.pair is not None and not is_tiny and _BENT_FROM <= fit.agreement.local < _BENT_UP_TO:
        pair = bent(fit.pair)
        measured = agreement(pair, inliers)
        if measured > fit.agreement:
            fit = replace(fit, agreement=measured, pair=pair)
    return fit


def _maximized(first: Grey, turned: Grey, affine: Affine) -> Affine | None:
    """Improve a map at a smaller scale; return None if that does not converge."""
    cv2 = opencv()
    down, down_other = stretch(first.shape, _small_size(first.shape)), stretch(turned.shape, _small_size(turned.shape))
    images = [cv2.resize(grey, _small_size(grey.shape)[::-1], interpolation=cv2.INTER_AREA) for grey in (first, turned)]
    start = chain(chain(cv2.invertAffineTransform(down), affine), down_other).astype(np.float32)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, _IMPROVED_STEPS, _IMPROVED_PRECISION)
    try:
        _, found = cv2.findTransformECC(images[0], images[1], start, cv2.MOTION_AFFINE, stop, None, 3)
    except cv2.error:
        return None
    return chain(chain(down, found), cv2.invertAffineTransform(down_other))


def _small_size(shape: tuple[int, ...]) -> tuple[int, int]:
    factor = min(1.0, _IMPROVED_SIDE_PX / max(shape))
    return max(8, round(shape[0] * factor)), max(8, round(shape[1] * factor))
