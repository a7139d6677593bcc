"""How well two pictures agree under a map, where they overlap."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cluster.audit.verify.affine import Affine, Grey, chain, opencv, warp

_CANVAS_SIDE_PX = 96  # longer side of the overlap when it is measured
_WINDOW_PX = 13  # of the canvas
# Squared steps of grey levels that make an edge: a share of the variance, since a picture of little contrast can have
# as much to compare as any other, from above the noise of JPEG to what stands out in any picture.
_EDGE_SHARE, _LEAST_EDGE, _MOST_EDGE = 0.0016, 0.5, 4.0
_SOFT_PX = 2.5  # standard deviation of the blur of the canvas under which printed dots merge
_LEAST_PX = 64  # of the overlap on the canvas
_MOST_BENT_PX = 7.0  # of the canvas
_BLURS_PX = (3.0, 2.0, 1.0, 1.0)  # of the rounds in which a map is bent

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, order=True)
class Agreement:
    """How well two pictures agree where they overlap.

    Attributes:
        local: Correlation within windows of an eighth of the overlap, pooled by contrast, -1..1: agreement in detail.
            Brightness that varies slowly over the picture does not count.
        correlation: Of the whole overlap, -1..1.
        core: Median correlation of the textured windows, -1..1: agreement in detail, whatever covers less than half.
        soft: `local` of blurred pictures, -1..1: dots of a print merge.
        overlap: Area of the overlap over that of the smaller picture, 0..1.
        detail: Fraction of the windows with edges in two directions, 0..1, in the picture that has more: an ellipse on
            white has 0.2 to 0.4, and fits any other ellipse.
        whole: `local` under the map of one whole picture onto the other, adjusted by size and turn only.
        inliers: Feature matches that the map explains; 0 if the map was found without features.
        side_px: Shortest side of the two original pictures.
        bend: Largest shift by which the map was bent beyond an affine one, as a share of the overlap's longer side.
        planar: `local` under the best map between planes; -1 where none was found, or none was searched for.
        planar_overlap: `overlap` under it: share that is covered of the picture that is covered more.
    """

    local: float
    correlation: float
    core: float
    soft: float
    overlap: float
    detail: float
    whole: float
    inliers: int
    side_px: int
    bend: float
    planar: float = -1.0
    planar_overlap: float = 0.0


NO_AGREEMENT = Agreement(-1.0, -1.0, -1.0, -1.0, 0.0, 0.0, -1.0, 0, 0, 0.0)


@dataclass(frozen=True)
class Overlay:
    """Two pictures on a canvas that shows their overlap.

    Attributes:
        one: The first picture, standardized within the mask, shape (height, width).
        other: The second one, warped onto it.
        mask: Where both are.
        overlap: Area of the overlap over that of the smaller picture, 0..1.
        detail: See Agreement.
        bend: See Agreement.
    """

    one: Grey
    other: Grey
    mask: Mask
    overlap: float
    detail: float
    bend: float = 0.0


def overlay(first: Grey, turned: Grey, affine: Affine) -> Overlay | None:
    """Warp both pictures onto a canvas that shows their overlap; None if they hardly overlap.

    Args:
        first: A grey picture.
        turned: Another one.
        affine: Maps pixels of the first to pixels of the other.
    """
    cv2 = opencv()
    height, width = first.shape
    corners = np.array([[0, 0], [turned.shape[1], 0], [turned.shape[1], turned.shape[0]], [0, turned.shape[0]]])
    back = cv2.invertAffineTransform(affine)
    outline = corners @ back[:, :2].T + back[:, 2]
    left, top = np.maximum(outline.min(axis=0), 0)
    right, bottom = np.minimum(outline.max(axis=0), (width, height))
    if right - left < 8 or bottom - top < 8:
        return None
    factor = _CANVAS_SIDE_PX / max(right - left, bottom - top)
    columns, rows = max(8, round((right - left) * factor)), max(8, round((bottom - top) * factor))
    canvas = np.array([[1 / factor, 0, left], [0, 1 / factor, top]], np.float32)  # canvas -> first
    onto = chain(canvas, affine)
    warped = (warp(first, canvas, (columns, rows)), warp(turned, onto, (columns, rows)))
    mask = warp(np.ones_like(turned), onto, (columns, rows)) > 0.99
    inside = float(np.count_nonzero(mask))
    if inside < _LEAST_PX:
        return None
    smaller = min(first.size, turned.size * abs(float(np.linalg.det(back[:, :2]))))
    overlap = min(1.0, inside / factor**2 / smaller)
    detail = max(_detail(grey, mask) for grey in warped)
    one, other = (standardized(grey, mask) for grey in warped)
    return Overlay(one, other, mask, float(overlap), detail)


def agreement(pair: Overlay | None, inliers: int = 0) -> Agreement:
    """Measure how well two pictures agree on a canvas; `soft`, `whole` and `side_px` are not known here."""
    if pair is None:
        return NO_AGREEMENT
    local, core = local_agreement(pair.one, pair.other, pair.mask)
    correlation = float((pair.one * pair.other)[pair.mask].mean())
    return Agreement(local, correlation, core, -1.0, pair.overlap, pair.detail, -1.0, inliers, 0, pair.bend)


def softly(pair: Overlay) -> float:
    """Return `soft` of two pictures on a canvas."""
    cv2 = opencv()
    weight = np.maximum(cv2.GaussianBlur(pair.mask.astype(np.float32), (0, 0), _SOFT_PX), 1e-3)
    one, other = (cv2.GaussianBlur(each, (0, 0), _SOFT_PX) / weight for each in (pair.one, pair.other))
    return local_agreement(standardized(one, pair.mask), standardized(other, pair.mask), pair.mask)[0]


def bent(pair: Overlay) -> Overlay | None:
    """Bend the second picture onto the first by a smooth cubic map, as a lens or the side view of a print asks for.

    Its 20 coefficients are found as Lucas and Kanade (1981) find a shift: by the gradients of the pictures, first of
    blurred ones. What most points contradict, a sticker for instance, does not count.

    Returns:
        The pair after it; None if the map moves a point too far.
    """
    cv2 = opencv()
    rows, columns = pair.one.shape
    across, down = np.meshgrid(np.arange(columns, dtype=np.float32), np.arange(rows, dtype=np.float32))
    x, y = across * (2 / columns) - 1, down * (2 / rows) - 1
    terms = np.stack([x**power * y**other for power in range(4) for other in range(4 - power)], axis=-1)
    sampled = np.zeros_like(pair.mask)
    sampled[::2, ::2] = True
    moved = np.zeros((rows, columns, 2), np.float32)
    other, mask = pair.other, pair.mask
    for blur in _BLURS_PX:
        chosen = mask & sampled
        one_blurred, other_blurred = (cv2.GaussianBlur(each, (0, 0), blur) for each in (pair.one, other))
        slopes = [cv2.Sobel(other_blurred, cv2.CV_32F, *axes, scale=1 / 8)[chosen] for axes in ((1, 0), (0, 1))]
        miss = (one_blurred - other_blurred)[chosen]
        known = np.concatenate([slope[:, None] * terms[chosen] for slope in slopes], axis=1)
        weight = 1 / (1 + (miss / (np.median(np.abs(miss)) + 0.05)) ** 2)
        scaled = known * weight[:, None]
        damping = np.eye(known.shape[1], dtype=np.float32) * np.float32(1e-3 * len(miss) * np.square(slopes).mean())
        fitted = np.linalg.solve(scaled.T @ known + damping, scaled.T @ miss)
        moved = moved + (terms @ fitted.reshape(2, -1).T).astype(np.float32)
        if not float(np.abs(moved[pair.mask]).max()) <= _MOST_BENT_PX:
            return None
        places = across + moved[..., 0], down + moved[..., 1]
        other = cv2.remap(pair.other, *places, cv2.INTER_LINEAR)
        mask = pair.mask & (cv2.remap(pair.mask.astype(np.float32), *places, cv2.INTER_LINEAR) > 0.99)
        if np.count_nonzero(mask) < _LEAST_PX:
            return None
    bend = float(np.linalg.norm(moved[pair.mask], axis=1).max()) / max(rows, columns)
    return replace(pair, one=standardized(pair.one, mask), other=standardized(other, mask), mask=mask, bend=bend)


def _detail(grey: Grey, mask: Mask) -> float:
    """Return the fraction of windows whose structure tensor (Harris and Stephens 1988) has two large eigenvalues."""
    cv2 = opencv()
    x, y = cv2.Sobel(grey, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(grey, cv2.CV_32F, 0, 1, scale=1 / 8)
    across, down, mixed = (cv2.boxFilter(each, -1, (_WINDOW_PX, _WINDOW_PX)) for each in (x * x, y * y, x * y))
    smaller = (across + down) / 2 - np.sqrt(((across - down) / 2) ** 2 + mixed**2)
    edge = min(_MOST_EDGE, max(_LEAST_EDGE, _EDGE_SHARE * float(grey[mask].var())))
    return float((smaller[mask] > edge).mean())


def local_agreement(one: Grey, other: Grey, mask: Mask) -> tuple[float, float]:
    """Return `local` and `core` of two pictures, shape (height, width), that are 0 outside the mask."""
    cv2 = opencv()
    weight = cv2.boxFilter(mask.astype(np.float32), -1, (_WINDOW_PX, _WINDOW_PX), borderType=cv2.BORDER_CONSTANT)
    inner = mask & (weight > 0.5)
    weight = np.maximum(weight, 1e-3)

    def mean(values: Grey) -> Grey:  # of values that are 0 outside the mask
        total: Grey = cv2.boxFilter(values, -1, (_WINDOW_PX, _WINDOW_PX), borderType=cv2.BORDER_CONSTANT)
        return np.asarray(total / weight, np.float32)

    one_mean, other_mean = mean(one), mean(other)
    shared = (mean(one * other) - one_mean * other_mean)[inner]
    each = [np.maximum(mean(v * v) - m * m, 0)[inner] for v, m in ((one, one_mean), (other, other_mean))]
    total = each[0] + each[1]
    if not len(total) or total.sum() <= 0:
        return 0.0, -1.0
    textured = total >= 0.25 * total.mean()
    windows = 2 * shared[textured] / total[textured]
    return float(2 * shared.sum() / total.sum()), float(np.median(windows))


def standardized(grey: Grey, mask: Mask) -> Grey:
    """Return a picture with zero mean and unit deviation within the mask, and 0 outside."""
    values = grey[mask]
    deviation = float(values.std())
    return np.where(mask, (grey - values.mean()) / max(deviation, 1e-3), 0).astype(np.float32)
