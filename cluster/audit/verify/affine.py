"""Affine maps between the pixels of two pictures, and pictures seen through them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.image.decode import Pixels
from pipeline.image.fingerprint import DIHEDRAL

Grey = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float32]  # (2, 3): from pixels of the one picture to pixels of the other


def opencv() -> Any:
    """Return OpenCV on one thread, imported late."""
    import cv2  # noqa: PLC0415 - a tenth of a second that the command line's help need not pay

    cv2.setNumThreads(1)
    return cv2


def stretch(source: tuple[int, ...], target: tuple[int, ...]) -> Affine:
    """Map a whole picture onto another one, shapes (height, width), pixel centres onto pixel centres."""
    x, y = target[1] / source[1], target[0] / source[0]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2]], np.float32)


def turn_back(turned_shape: tuple[int, ...], element: int) -> Affine:
    """Map a picture after element `element` of DIHEDRAL onto the picture."""
    transposed, mirrored, upended = DIHEDRAL[element]
    x = [-1, 0, turned_shape[1] - 1] if mirrored else [1, 0, 0]
    y = [0, -1, turned_shape[0] - 1] if upended else [0, 1, 0]
    return np.array([y, x] if transposed else [x, y], np.float32)


def chain(inner: Affine, outer: Affine) -> Affine:
    """Return the map that applies `inner`, then `outer`."""
    whole = np.vstack([outer, [0, 0, 1]]) @ np.vstack([inner, [0, 0, 1]])
    return np.asarray(whole[:2], np.float32)


def warp(grey: Grey, affine: Affine, size: tuple[int, int], beyond: int = 0) -> Grey:
    """Sample `grey` at affine(canvas pixel), blurred first where that skips pixels; `beyond` is a border of OpenCV."""
    cv2 = opencv()
    step = float(np.sqrt(abs(np.linalg.det(affine[:, :2]))))
    if step > 1.2:
        grey = cv2.GaussianBlur(grey, (0, 0), 0.5 * step)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped: Grey = cv2.warpAffine(grey, affine, size, flags=flags, borderMode=beyond)
    return warped


def laid_over(picture: Pixels, affine: Affine, shape: tuple[int, ...]) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    """Return a picture as it lies over another one, and where it does.

    Args:
        picture: The one that is laid over.
        affine: From pixels of the other to its pixels.
        shape: (height, width, ...) of the other.
    """
    size = (shape[1], shape[0])
    laid = warp(picture.astype(np.float32), affine, size, beyond=opencv().BORDER_REPLICATE)
    inside = warp(np.ones(picture.shape[:2], np.float32), affine, size) > 0.49  # to the edge of the outer pixels
    return np.clip(np.rint(laid), 0, 255).astype(np.uint8), inside
