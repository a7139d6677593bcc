"""The parts of a picture that have vectors of their own: of two copies one may be a part of the other."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.image.decode import Pixels


@dataclass(frozen=True)
class View:
    """A part of a picture, in shares of its sides."""

    top: float
    left: float
    height: float
    width: float


_CENTRE = 0.7
# The whole, its centre, quadrants and halves: what a collage, a screenshot or a crop leaves of a picture.
VIEWS = (
    View(0, 0, 1, 1),
    View((1 - _CENTRE) / 2, (1 - _CENTRE) / 2, _CENTRE, _CENTRE),
    *(View(top, left, 0.5, 0.5) for top in (0, 0.5) for left in (0, 0.5)),
    *(View(top, 0, 0.5, 1) for top in (0, 0.5)),
    *(View(0, left, 1, 0.5) for left in (0, 0.5)),
)


def cut(pixels: Pixels, view: View) -> Pixels:
    """Return the pixels of a view, at least one."""
    height, width = pixels.shape[:2]
    top, left = int(view.top * height), int(view.left * width)
    bottom, right = (
        max(top + 1, round((view.top + view.height) * height)),
        max(left + 1, round((view.left + view.width) * width)),
    )
    return np.ascontiguousarray(pixels[top:bottom, left:right])


def pooled(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Average a map of features within each view: one pass of a network serves all of them (Tolias et al. 2016).

    Args:
        features: Shape (features, rows, columns).

    Returns:
        Shape (views, features), in the order of VIEWS.
    """
    num_features, rows, columns = features.shape
    weights = np.stack([np.outer(_inside(rows, view.top, view.height), _inside(columns, view.left, view.width)).ravel()
                        for view in VIEWS])  # fmt: skip
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return np.asarray(weights @ features.reshape(num_features, -1).T, np.float32)


def _inside(count: int, begin: float, side: float) -> npt.NDArray[np.float64]:
    """Return 1 for the cells along an axis whose centre is in a view, 0 for the others."""
    centres = (np.arange(count) + 0.5) / count
    inside = (centres >= begin - 1e-6) & (centres <= begin + side + 1e-6)
    return inside.astype(np.float64)
