"""Maps that may lead from one picture to another: by windows that look alike, and by features.

A map by windows puts a window of either picture, or of both, onto the other under one of the eight flips and turns. A
map by features is fitted to matched features by RANSAC (Fischler and Bolles 1981).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.audit.verify.affine import Affine, Grey, opencv
from cluster.audit.verify.prepare import (
    SMALL_SIDE_PX,
    Features,
    Prepared,
    mirrored,
    turns,
    windows,
)
from pipeline.image.fingerprint import DIHEDRAL, INVERSE, apply_dihedral

# SIFT matches features under any turn, but not mirrored ones.
PLAIN, MIRRORED = DIHEDRAL.index((False, False, False)), DIHEDRAL.index((False, True, False))
_CELLS = 32  # along the longer side: matches within one cell count once
_RATIO = 0.8  # of the two nearest descriptors (Lowe 2004)
REPROJECTION_PX = 4.0
_MIN_INLIERS = 8
_ROUGH_PRECISION = 1e-3  # of the first improvement of a map, at SMALL_SIDE_PX


@dataclass(frozen=True)
class Proposal:
    """A map that may lead from the first picture to the second.

    Attributes:
        score: Correlation of small versions under it, -1..1.
        unit: Maps places (x, y) of the first picture to those of the turned second one, both in shares of the sides.
        element: Of DIHEDRAL; the second picture is turned by it.
    """

    score: float
    unit: Affine
    element: int


def whole_on_whole(first: Prepared, second: Prepared) -> Proposal:
    """Return the best turn of one whole picture on the other."""
    scores = second.tiles[0][turns()] @ first.tiles[0]
    element = int(scores.argmax())
    return Proposal(float(scores[element]), np.eye(2, 3, dtype=np.float32), element)


def by_windows(first: Prepared, second: Prepared) -> list[Proposal]:
    """Return the best map of a window of the first, of the second, and of both."""
    inner = windows().inner
    own = first.tiles @ second.tiles[0][turns()].T
    others = second.tiles @ first.tiles[0][turns()[list(INVERSE)]].T
    turned = second.tiles[inner][:, turns()].swapaxes(0, 1)  # (8, inner, 256)
    both = first.tiles[inner] @ turned.reshape(-1, turned.shape[2]).T
    found = []
    number, element = np.unravel_index(own.argmax(), own.shape)
    found.append((own[number, element], int(number), 0, int(element)))
    number, element = np.unravel_index(others.argmax(), others.shape)
    found.append((others[number, element], 0, int(number), int(element)))
    number, place = np.unravel_index(both.argmax(), both.shape)
    element, other = divmod(int(place), len(inner))
    found.append((both[number, place], int(inner[number]), int(inner[other]), element))
    return [
        Proposal(float(score), _between(window, _turned_window(other, element)), element)
        for score, window, other, element in found
    ]


def _turned_window(number: int, element: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return origin and sides, by (x, y), of a window in its picture after a turn."""
    (top, left), (height, width) = windows().origins[number], windows().sides[number]
    transposed, mirror, upended = DIHEDRAL[element]
    if transposed:
        top, left, height, width = left, top, width, height
    origin = (1 - left - width if mirror else left, 1 - top - height if upended else top)
    return np.array(origin), np.array([width, height])


def _between(number: int, target: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]) -> Affine:
    """Return the map of a window of the first picture onto a window of the turned second one."""
    origin, sides = windows().origins[number][::-1], windows().sides[number][::-1]
    scale = target[1] / sides
    shift = target[0] - scale * origin
    return np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]], np.float32)


def in_pixels(unit: Affine, shape: tuple[int, ...], other_shape: tuple[int, ...]) -> Affine:
    """Return a map between shares of the sides as one between pixels, by their centres; shapes are (height, width)."""
    size, other = np.array(shape[1::-1]), np.array(other_shape[1::-1])
    scaled = unit[:, :2] * other[:, None] / size[None, :]
    shift = scaled @ np.full(2, 0.5) + unit[:, 2] * other - 0.5
    return np.column_stack([scaled, shift]).astype(np.float32)


def roughly_improved(first: Prepared, second: Prepared, proposal: Proposal, num_steps: int) -> Proposal:
    """Improve a map at a small scale, by maximizing the correlation; return it as it was if that does not converge."""
    cv2 = opencv()
    small = (SMALL_SIDE_PX, SMALL_SIDE_PX)
    turned = np.ascontiguousarray(apply_dihedral(second.small, proposal.element))
    start = in_pixels(proposal.unit, small, small)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, num_steps, _ROUGH_PRECISION)
    try:
        score, found = cv2.findTransformECC(first.small, turned, start, cv2.MOTION_AFFINE, stop, None, 3)
    except cv2.error:
        return proposal
    unit = found[:, :2], (found[:, 2] + 0.5 - found[:, :2] @ np.full(2, 0.5)) / SMALL_SIDE_PX
    return Proposal(float(score), np.column_stack(unit).astype(np.float32), proposal.element)


def by_features(first: Prepared, second: Prepared, element: int) -> tuple[Affine | None, int]:
    """Fit a map to matched features.

    Args:
        first: A picture.
        second: Another one.
        element: PLAIN, or MIRRORED for the mirrored second picture.

    Returns:
        The map between their grey pixels, None if too few features agree, and the number of features that do.
    """
    source, target = matched_features(first, second, element)
    if len(source) < _MIN_INLIERS:
        return None, 0
    cv2 = opencv()
    cv2.setRNGSeed(0)
    affine, inside = cv2.estimateAffine2D(source, target, ransacReprojThreshold=REPROJECTION_PX, maxIters=1000)
    if affine is None or not 0.01 < abs(np.linalg.det(affine[:, :2])) < 100:
        return None, 0
    num_inliers = num_cells(source[inside.ravel() > 0], first.grey.shape)
    return (affine.astype(np.float32), num_inliers) if num_inliers >= _MIN_INLIERS else (None, 0)


def matched_features(first: Prepared, second: Prepared, element: int) -> tuple[Grey, Grey]:
    """Return the points (x, y) of matched features in both grey pictures, the second one turned by the element."""
    others = second.features if element == PLAIN else mirrored(second.features, second.grey.shape[1])
    return _matches(first.features, others)


def num_cells(points: Grey, shape: tuple[int, ...]) -> int:
    """Return in how many cells of a picture points lie: those close together, as of a watermark, count once."""
    return len(np.unique(np.floor(points * (_CELLS / max(shape))).astype(int), axis=0))


def _matches(own: Features, others: Features) -> tuple[Grey, Grey]:
    """Return the points of features that are clearly nearer to one feature of the other picture than to the rest."""
    if min(len(own.words), len(others.words)) < _MIN_INLIERS:
        return np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32)
    cv2 = opencv()
    # Sums of whole numbers below 2**24: exact in float32, in any order.
    products = cv2.gemm(own.words, others.words, -2.0, None, 0.0, flags=cv2.GEMM_2_T)
    squares = products + np.square(others.words).sum(axis=1)[None, :]
    rows = np.arange(len(squares))
    nearest = squares.argmin(axis=1)
    lengths = np.square(own.words).sum(axis=1)
    best = squares[rows, nearest] + lengths
    squares[rows, nearest] = np.inf
    good = best < _RATIO**2 * (squares.min(axis=1) + lengths)
    return own.points[good], others.points[nearest[good]]
