"""Affine maps between the pixels of two pictures, and warps through them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.image.decode import Pixels
from pipeline.image.fingerprint import DIHEDRAL

Grey = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float32]  # (2, 3): maps pixels (x, y) of one picture to pixels of another


def opencv() -> Any:
    """Import OpenCV, late, and limit it to one thread."""
    import cv2  # noqa: PLC0415 - takes 0.1 s that `--help` need not pay

    cv2.setNumThreads(1)
    return cv2


def stretch(source: tuple[int, ...], target: tuple[int, ...]) -> Affine:
    """Return the map of a whole picture onto another, given their shapes (height, width), by pixel centres."""
    x, y = target[1] / source[1], target[0] / source[0]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2]], np.float32)


def turn_back(turned_shape: tuple[int, ...], element: int) -> Affine:
    """Return the map from a picture that was turned by `element` of DIHEDRAL back to the picture."""
    transposed, mirrored, upended = DIHEDRAL[element]
    x = [-1, 0, turned_shape[1] - 1] if mirrored else [1, 0, 0]
    y = [0, -1, turned_shape[0] - 1] if upended else [0, 1, 0]
    return np.array([y, x] if transposed else [x, y], np.float32)


def chain(inner: Affine, outer: Affine) -> Affine:
    """Return the map that applies `inner` and then `outer`."""
    whole = np.vstack([outer, [0, 0, 1]]) @ np.vstack([inner, [0, 0, 1]])
    return np.asarray(whole[:2], np.float32)


def warp(grey: Grey, affine: Affine, size: tuple[int, int], border: int = 0) -> Grey:
    """Sample `grey` at affine(canvas pixel), blurred first if that skips pixels; `border` is OpenCV's border mode."""
    cv2 = opencv()
    step = float(np.sqrt(abs(np.linalg.det(affine[:, :2]))))
    if step > 1.2:
        grey = cv2.GaussianBlur(grey, (0, 0), 0.5 * step)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped: Grey = cv2.warpAffine(grey, affine, size, flags=flags, borderMode=border)
    return warped


def warp_onto(picture: Pixels, affine: Affine, shape: tuple[int, ...]) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    """Warp a picture onto the pixels of another one; return it with the mask of the pixels it covers.

    Args:
        picture: The picture that is warped.
        affine: Maps pixels of the other picture to pixels of this one.
        shape: (height, width, ...) of the other picture.
    """
    size = (shape[1], shape[0])
    warped = warp(picture.astype(np.float32), affine, size, border=opencv().BORDER_REPLICATE)
    is_covered = warp(np.ones(picture.shape[:2], np.float32), affine, size) > 0.49  # up to the edge of border pixels
    return np.clip(np.rint(warped), 0, 255).astype(np.uint8), is_covered
