"""What is computed once for each picture, however many pairs it is in: a grey version, windows of it, features."""

import hashlib
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt

from cluster.audit.verify.affine import Grey, opencv, stretch
from pipeline.image.decode import Pixels
from pipeline.image.fingerprint import DIHEDRAL, apply_dihedral

WORKING_SIDE_PX = 256  # longer side
SMALL_SIDE_PX = 48  # of the square that windows are cut from, and in which maps are first improved
TILE_SIDE_PX = 16  # of a window, averaged
# Windows of a picture: side, in shares of that of the picture, and places along an axis, a tenth apart or less.
_NUM_PLACES = {1.0: 1, 0.9: 3, 0.8: 4, 0.7: 5, 0.6: 6, 0.5: 7, 0.4: 8, 0.75: 3}
# (height, width): the whole, squares, and narrow ones beside the whole of the other axis (letterboxes, halves).
_SIDES = (
    *((side, side) for side in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)),
    *((1.0, side) for side in (0.75, 0.6, 0.5)),
    *((side, 1.0) for side in (0.75, 0.6, 0.5)),
)
_INNER_SIDES = (0.9, 0.8)  # of windows that are compared with windows of the other picture
# Features are found in pictures of this longer side; small ones are enlarged to this shorter side.
_FEATURE_SIDE_PX, _LEAST_FEATURE_SIDE_PX = 192, 64
_FEATURES_FROM_SIDE_PX = 24  # shorter side
_NUM_FEATURES = 250
_CONTRAST = 0.02  # half of OpenCV's: features of faint texture, too
_SIFT_CELLS, _SIFT_ORIENTATIONS = 4, 8  # of a descriptor (Lowe 2004)

Tiles = npt.NDArray[np.float32]  # (windows, 256): zero mean, unit length


@dataclass(frozen=True)
class Windows:
    """The windows that tiles are averages of.

    Attributes:
        origins: Top and left, shape (windows, 2), in shares of the sides.
        sides: Height and width, shape (windows, 2).
        inner: Numbers of the windows that may show a part of both pictures.
    """

    origins: npt.NDArray[np.float64]
    sides: npt.NDArray[np.float64]
    inner: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Features:
    """SIFT features (Lowe 2004).

    Attributes:
        points: (x, y) in pixels of the grey picture, float32, shape (features, 2).
        words: Descriptors, float32 whole numbers below 256, shape (features, 128).
    """

    points: npt.NDArray[np.float32]
    words: npt.NDArray[np.float32]


class Prepared:
    """A picture as the alignment uses it; features and windows are computed when they are first asked for."""

    def __init__(self, pixels: Pixels) -> None:
        self.shape = pixels.shape
        self.digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
        self.grey = _grey(pixels)

    @property
    def order(self) -> tuple[tuple[int, ...], bytes]:
        """A key that orders pictures by their pixels alone."""
        return self.shape, self.digest

    @cached_property
    def small(self) -> Grey:
        """The picture averaged to a square of SMALL_SIDE_PX."""
        cv2 = opencv()
        shrunk: Grey = cv2.resize(self.grey, (SMALL_SIDE_PX, SMALL_SIDE_PX), interpolation=cv2.INTER_AREA)
        return shrunk

    @cached_property
    def tiles(self) -> Tiles:
        """The picture's windows, in the order of `windows`; the first is the whole picture."""
        parts = []
        for height, width in _SIDES:
            down, across = _averages(height), _averages(width)
            cells = (down @ self.small @ across.T).reshape(-1, TILE_SIDE_PX, len(across) // TILE_SIDE_PX, TILE_SIDE_PX)
            parts.append(cells.swapaxes(1, 2).reshape(-1, TILE_SIDE_PX**2))
        return _unit(np.concatenate(parts))

    @cached_property
    def features(self) -> Features:
        """The picture's features; none if it is too small."""
        return _features(self.grey)


@cache
def turns() -> npt.NDArray[np.intp]:
    """Return the order in which each element of DIHEDRAL puts the cells of a tile, shape (8, 256)."""
    cells = np.arange(TILE_SIDE_PX**2).reshape(TILE_SIDE_PX, TILE_SIDE_PX)
    return np.stack([apply_dihedral(cells, element).ravel() for element in range(len(DIHEDRAL))])


def mirrored(features: Features, width: int) -> Features:
    """Return the features of the picture mirrored left-right, given its width in pixels.

    The gradients of a mirrored patch are those of the patch, upside down along its orientation: nothing is searched.
    """
    points = features.points * np.array([-1, 1], np.float32) + np.array([width - 1, 0], np.float32)
    cells = features.words.reshape(-1, _SIFT_CELLS, _SIFT_CELLS, _SIFT_ORIENTATIONS)[:, ::-1]
    turned = cells[..., -np.arange(_SIFT_ORIENTATIONS) % _SIFT_ORIENTATIONS]
    return Features(points, turned.reshape(features.words.shape))


@cache
def windows() -> Windows:
    """Return the windows whose tiles every picture has."""
    origins, sides = [], []
    for height, width in _SIDES:
        places = [(top, left) for top in _places(height) for left in _places(width)]
        origins += places
        sides += [(height, width)] * len(places)
    shapes = np.array(sides)
    inner = np.flatnonzero(np.isin(shapes[:, 0], _INNER_SIDES) & (shapes[:, 0] == shapes[:, 1]))
    return Windows(np.array(origins), shapes, inner)


def _places(side: float) -> list[float]:
    return [float(begin) for begin in np.linspace(0, 1 - side, _NUM_PLACES[side])]


@cache
def _averages(side: float) -> npt.NDArray[np.float32]:
    """Return the share of each pixel of an axis in the cells of the windows of a side, shape (places * 16, pixels)."""
    cells = side * np.arange(TILE_SIDE_PX + 1) / TILE_SIDE_PX
    cuts = (np.array(_places(side))[:, None] + cells) * SMALL_SIDE_PX
    begins, ends = cuts[:, :-1].reshape(-1, 1), cuts[:, 1:].reshape(-1, 1)
    pixels = np.arange(SMALL_SIDE_PX)
    covered = np.clip(np.minimum(ends, pixels + 1) - np.maximum(begins, pixels), 0, None)
    return np.asarray(covered / (ends - begins), np.float32)


def _grey(pixels: Pixels) -> Grey:
    cv2 = opencv()
    grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    factor = WORKING_SIDE_PX / max(grey.shape)
    if factor < 1:
        size = tuple(max(8, round(side * factor)) for side in grey.shape[::-1])
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return np.asarray(grey, np.float32)


def _features(grey: Grey) -> Features:
    cv2 = opencv()
    none = Features(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32))
    if min(grey.shape) < _FEATURES_FROM_SIDE_PX:
        return none
    factor = max(min(1.0, _FEATURE_SIDE_PX / max(grey.shape)), _LEAST_FEATURE_SIDE_PX / min(grey.shape))
    size = tuple(round(side * factor) for side in grey.shape[::-1])
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    scaled = np.clip(cv2.resize(grey, size, interpolation=method), 0, 255).astype(np.uint8)
    points, words = cv2.SIFT_create(_NUM_FEATURES, contrastThreshold=_CONTRAST).detectAndCompute(scaled, None)
    if words is None:
        return none
    back = stretch(scaled.shape, grey.shape)
    places = np.array([point.pt for point in points], np.float32)
    return Features((places @ back[:, :2].T + back[:, 2]).astype(np.float32), words)


def _unit(tiles: npt.NDArray[np.float32]) -> Tiles:
    centred = tiles - tiles.mean(axis=1, keepdims=True)
    lengths = np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), np.float32(1e-3))
    return np.asarray(centred / lengths, np.float32)
