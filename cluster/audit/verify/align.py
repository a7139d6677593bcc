"""Alignment of two pictures, by a flip or turn, scale, shift and shear; and a measure of how well they agree under it.

Candidates for the map come from matching small versions under all eight turns and several crops, and from SIFT features
and RANSAC (Lowe 2004; Fischler and Bolles 1981). The best is refined by maximizing the correlation (Evangelidis and
Psarakis 2008).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.audit.verify.affine import Affine, Grey, chain, opencv, stretch, turn_back, warp
from pipeline.image.decode import Pixels
from pipeline.image.fingerprint import DIHEDRAL, apply_dihedral

_WORKING_SIDE_PX = 256  # longer side
_SMALL_SIDE_PX = 48
_CANVAS_SIDE_PX = 96  # longer side of the overlap when it is measured
_WINDOW_PX = 13  # of the canvas
# Pictures with a smaller shorter side are enlarged to this one: a picture of 64 px has few features otherwise.
_FEATURE_SIDE_PX = 128
_FEATURES_FROM_SIDE_PX = 24  # shorter side
_SCALES = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6)  # of the crops that are tried without features
_NUM_TURNS = 2
# SIFT matches features under any turn, but not mirrored ones.
_PLAIN_AND_MIRRORED = (DIHEDRAL.index((False, False, False)), DIHEDRAL.index((False, True, False)))
_NUM_FEATURES = 400
_CONTRAST = 0.02  # half of OpenCV's: features of faint texture, too
_CELLS = 32  # along the longer side: matches within one cell count once
_RATIO = 0.8  # of the two nearest descriptors (Lowe 2004)
_REPROJECTION_PX = 4.0
_MIN_INLIERS = 8
# Below this detail a picture is plain: other pictures may fit it. UCI digits, 8x8, have 0.35 to 0.6, a quarter of
# clothing photos less than 0.5.
PLAIN_DETAIL = 0.6
_GOOD_WHOLE = 0.98
_GOOD_OVERLAP = 0.9
_SAME_LOCAL = 0.05  # largest difference in `local` of maps that are taken for the same
_GOOD_CORRELATION = 0.97  # from which no better map is searched for
_REFINED_FROM = 0.3  # correlation from which a map is worth refining
_AGREEING_FROM = 0.5  # correlation of a window that agrees well
_EDGE = 4.0  # squared grey levels per pixel of the canvas


@dataclass(frozen=True, order=True)
class Agreement:
    """How well two pictures agree where they overlap.

    Attributes:
        local: Correlation within windows of an eighth of the overlap, pooled by contrast, -1..1: agreement in detail.
            Brightness that varies slowly over the picture does not count.
        correlation: Of the whole overlap, -1..1.
        share: Fraction of the textured windows that agree well, 0..1.
        overlap: Area of the overlap over that of the smaller picture, 0..1.
        detail: Fraction of the windows with edges in two directions, 0..1, in the picture that has more: an ellipse on
            white has 0.2 to 0.4, and fits any other ellipse.
        whole: `local` under the map of one whole picture onto the other, adjusted by size and turn only.
        inliers: Feature matches that the map explains; 0 if the map was found without features.
        side_px: Shortest side of the two original pictures.
    """

    local: float
    correlation: float
    share: float
    overlap: float
    detail: float
    whole: float
    inliers: int
    side_px: int


@dataclass(frozen=True)
class Alignment:
    """The best map between two pictures, and how they agree under it.

    Attributes:
        agreement: Under the map.
        affine: Maps pixels (x, y) of the first picture to pixels of the second, shape (2, 3).
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


_NO_AGREEMENT = Agreement(-1.0, -1.0, 0.0, 0.0, 0.0, -1.0, 0, 0)


def align(one: Pixels, other: Pixels) -> Alignment:
    """Find the best map between two pictures and measure the agreement under it.

    The result depends on which picture is the first: evidence.align_pair puts them in a fixed order.
    """
    first, second = _grey(one), _grey(other)
    turns = [np.ascontiguousarray(apply_dihedral(second, element)) for element in range(len(DIHEDRAL))]
    found: list[Agreement] = []
    maps: list[tuple[Affine, int]] = []
    whole: float | None = None
    for affine, element, inliers in _maps(first, turns):
        turned = turns[element]
        measured = _measure(first, turned, affine, inliers)
        maps.append((affine, element))
        whole = measured.local if whole is None else whole
        refined = _refine(first, turned, affine) if measured.correlation >= _REFINED_FROM else None
        if refined is not None:
            better = _measure(first, turned, refined, inliers)
            if better > measured:
                measured, maps[-1] = better, (refined, element)
        found.append(measured)
        good = measured.correlation >= _GOOD_CORRELATION and measured.overlap > _GOOD_OVERLAP
        if good and (measured.detail >= PLAIN_DETAIL or inliers or whole >= _GOOD_WHOLE):
            break
    best = max(found)
    affine, element = maps[found.index(best)]
    onto = chain(affine, turn_back(turns[element].shape, element))
    full = chain(chain(stretch(one.shape, first.shape), onto), stretch(second.shape, other.shape))
    # A map from features that agrees as well is the same one, and its features count.
    inliers = max(each.inliers for each in found if each.local >= best.local - _SAME_LOCAL)
    side_px = min(*one.shape[:2], *other.shape[:2])
    return Alignment(replace(best, whole=-1.0 if whole is None else whole, inliers=inliers, side_px=side_px), full)


def _grey(pixels: Pixels) -> Grey:
    cv2 = opencv()
    grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    factor = _WORKING_SIDE_PX / max(grey.shape)
    if factor < 1:
        size = tuple(max(8, round(side * factor)) for side in grey.shape[::-1])
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return np.asarray(grey, np.float32)


def _maps(first: Grey, turns: list[Grey]) -> Iterator[tuple[Affine, int, int]]:
    """Yield maps onto turned second pictures, with the number of the turn and the inliers; likely ones first."""
    cv2 = opencv()
    small = cv2.resize(first, (_SMALL_SIDE_PX, _SMALL_SIDE_PX), interpolation=cv2.INTER_AREA)
    smalls = [cv2.resize(turn, (_SMALL_SIDE_PX, _SMALL_SIDE_PX), interpolation=cv2.INTER_AREA) for turn in turns]
    whole = [_correlation(small, turn) for turn in smalls]
    likely = int(np.argmax(whole))
    yield stretch(first.shape, turns[likely].shape), likely, 0
    searched = [_by_crops(small, turn) for turn in smalls]
    for element in sorted(range(len(turns)), key=lambda number: -searched[number][0])[:_NUM_TURNS]:
        inner = searched[element][1]
        outer = stretch((_SMALL_SIDE_PX, _SMALL_SIDE_PX), turns[element].shape)
        yield chain(chain(stretch(first.shape, (_SMALL_SIDE_PX, _SMALL_SIDE_PX)), inner), outer), element, 0
    if min(*first.shape, *turns[0].shape) >= _FEATURES_FROM_SIDE_PX:
        larger = _enlarged(first)
        own, enlarge = _features(larger), stretch(first.shape, larger.shape)
        for element in _PLAIN_AND_MIRRORED:
            turned = turns[element]
            other = _enlarged(turned)
            affine, inliers = _match_features(own, _features(other), max(larger.shape))
            if affine is not None:
                yield chain(chain(enlarge, affine), stretch(other.shape, turned.shape)), element, inliers


def _by_crops(small: Grey, turned: Grey) -> tuple[float, Affine]:
    """Search for either small picture, at several sizes, in the other; return the score and the map."""
    cv2 = opencv()
    best, found = -2.0, np.eye(2, 3, dtype=np.float32)
    for scale in _SCALES:
        side = round(_SMALL_SIDE_PX * scale)
        for forward in (True, False):
            whole, cut = (small, turned) if forward else (turned, small)
            # All of `cut` may show a crop of `whole`: shrink it to the size of the crop and slide it.
            template = cv2.resize(cut, (side, side), interpolation=cv2.INTER_AREA)
            _, score, _, place = cv2.minMaxLoc(cv2.matchTemplate(whole, template, cv2.TM_CCOEFF_NORMED))
            if score > best:
                ratio = side / _SMALL_SIDE_PX
                inside = np.array([[ratio, 0, place[0]], [0, ratio, place[1]]], np.float32)  # cut -> whole
                best, found = score, cv2.invertAffineTransform(inside).astype(np.float32) if forward else inside
    return best, found


def _enlarged(grey: Grey) -> Grey:
    cv2 = opencv()
    factor = _FEATURE_SIDE_PX / min(grey.shape)
    if factor <= 1:
        return grey
    size = tuple(round(side * factor) for side in grey.shape[::-1])
    return np.asarray(np.clip(cv2.resize(grey, size, interpolation=cv2.INTER_CUBIC), 0, 255), np.float32)


def _features(grey: Grey) -> tuple[Any, Any]:
    found: tuple[Any, Any] = (
        opencv().SIFT_create(_NUM_FEATURES, contrastThreshold=_CONTRAST).detectAndCompute(grey.astype(np.uint8), None)
    )
    return found


def _match_features(own: tuple[Any, Any], others: tuple[Any, Any], longer: int) -> tuple[Affine | None, int]:
    cv2 = opencv()
    (points, words), (other_points, other_words) = own, others
    if words is None or other_words is None or min(len(words), len(other_words)) < _MIN_INLIERS:
        return None, 0
    near = cv2.BFMatcher().knnMatch(words, other_words, k=2)
    good = [match for match, second in near if match.distance < _RATIO * second.distance]
    if len(good) < _MIN_INLIERS:
        return None, 0
    source = np.array([points[match.queryIdx].pt for match in good], np.float32)
    target = np.array([other_points[match.trainIdx].pt for match in good], np.float32)
    cv2.setRNGSeed(0)
    affine, inside = cv2.estimateAffine2D(source, target, ransacReprojThreshold=_REPROJECTION_PX, maxIters=1000)
    if affine is None or not 0.01 < abs(np.linalg.det(affine[:, :2])) < 100:
        return None, 0
    # Points that lie close together, such as those of a watermark, count once.
    cells = np.unique(np.floor(source[inside.ravel() > 0] * (_CELLS / longer)).astype(int), axis=0)
    return (affine.astype(np.float32), len(cells)) if len(cells) >= _MIN_INLIERS else (None, 0)


def _refine(first: Grey, turned: Grey, affine: Affine) -> Affine | None:
    """Improve a map at a smaller scale; return None if that does not converge."""
    cv2 = opencv()
    size = _small_size(first.shape)
    down, down_other = stretch(first.shape, size), stretch(turned.shape, _small_size(turned.shape))
    images = [cv2.resize(grey, _small_size(grey.shape)[::-1], interpolation=cv2.INTER_AREA) for grey in (first, turned)]
    start = chain(chain(cv2.invertAffineTransform(down), affine), down_other).astype(np.float32)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-4)
    try:
        _, found = cv2.findTransformECC(images[0], images[1], start, cv2.MOTION_AFFINE, stop, None, 3)
    except cv2.error:
        return None
    return chain(chain(down, found), cv2.invertAffineTransform(down_other))


def _small_size(shape: tuple[int, ...]) -> tuple[int, int]:
    factor = min(1.0, _CANVAS_SIDE_PX / max(shape))
    return max(8, round(shape[0] * factor)), max(8, round(shape[1] * factor))


def _measure(first: Grey, turned: Grey, affine: Affine, inliers: int) -> Agreement:
    """Warp both pictures onto a canvas that shows their overlap, and compare them there."""
    cv2 = opencv()
    height, width = first.shape
    corners = np.array([[0, 0], [turned.shape[1], 0], [turned.shape[1], turned.shape[0]], [0, turned.shape[0]]])
    back = cv2.invertAffineTransform(affine)
    outline = corners @ back[:, :2].T + back[:, 2]
    left, top = np.maximum(outline.min(axis=0), 0)
    right, bottom = np.minimum(outline.max(axis=0), (width, height))
    if right - left < 8 or bottom - top < 8:
        return _NO_AGREEMENT
    factor = _CANVAS_SIDE_PX / max(right - left, bottom - top)
    columns, rows = max(8, round((right - left) * factor)), max(8, round((bottom - top) * factor))
    canvas = np.array([[1 / factor, 0, left], [0, 1 / factor, top]], np.float32)  # canvas -> first
    onto = chain(canvas, affine)
    warped = (warp(first, canvas, (columns, rows)), warp(turned, onto, (columns, rows)))
    mask = warp(np.ones_like(turned), onto, (columns, rows)) > 0.99
    inside = float(mask.sum()) / factor**2
    smaller = min(first.size, turned.size * abs(float(np.linalg.det(back[:, :2]))))
    overlap = min(1.0, inside / smaller)
    if mask.sum() < 64:
        return _NO_AGREEMENT
    one, other = (_standardize(grey, mask) for grey in warped)
    local, share = _local(one, other, mask)
    detail = max(_detail(grey, mask) for grey in warped)
    return Agreement(local, float((one * other)[mask].mean()), share, float(overlap), detail, -1.0, inliers, 0)


def _detail(grey: Grey, mask: npt.NDArray[np.bool_]) -> float:
    """Return the fraction of windows whose structure tensor (Harris and Stephens 1988) has two large eigenvalues."""
    cv2 = opencv()
    x, y = cv2.Sobel(grey, cv2.CV_32F, 1, 0) / 8, cv2.Sobel(grey, cv2.CV_32F, 0, 1) / 8
    across, down, mixed = (cv2.boxFilter(each, -1, (_WINDOW_PX, _WINDOW_PX)) for each in (x * x, y * y, x * y))
    smaller = (across + down) / 2 - np.sqrt(((across - down) / 2) ** 2 + mixed**2)
    return float((smaller[mask] > _EDGE).mean())


def _local(one: Grey, other: Grey, mask: npt.NDArray[np.bool_]) -> tuple[float, float]:
    cv2 = opencv()
    weight = cv2.boxFilter(mask.astype(np.float32), -1, (_WINDOW_PX, _WINDOW_PX), borderType=cv2.BORDER_CONSTANT)
    inner = mask & (weight > 0.5)

    def mean(values: Grey) -> Grey:
        total = cv2.boxFilter(values * mask, -1, (_WINDOW_PX, _WINDOW_PX), borderType=cv2.BORDER_CONSTANT)
        averaged: Grey = total / np.maximum(weight, 1e-3)
        return averaged

    one_mean, other_mean = mean(one), mean(other)
    shared = (mean(one * other) - one_mean * other_mean)[inner]
    each = [np.maximum(mean(v * v) - m * m, 0)[inner] for v, m in ((one, one_mean), (other, other_mean))]
    total = each[0] + each[1]
    if not len(total) or total.sum() <= 0:
        return 0.0, 0.0
    textured = total >= 0.25 * total.mean()
    agreeing = 2 * shared[textured] >= _AGREEING_FROM * total[textured]
    return float(2 * shared.sum() / total.sum()), float(agreeing.mean())


def _standardize(grey: Grey, mask: npt.NDArray[np.bool_]) -> Grey:
    values = grey[mask]
    deviation = float(values.std())
    return np.where(mask, (grey - values.mean()) / max(deviation, 1e-3), 0).astype(np.float32)


def _correlation(one: Grey, other: Grey) -> float:
    one, other = one - one.mean(), other - other.mean()
    scale = float(np.sqrt((one * one).sum() * (other * other).sum()))
    return float((one * other).sum()) / scale if scale > 0 else 0.0
