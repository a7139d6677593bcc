"""Further codes of a downstream picture: with borders, letterboxed, and without its own borders.

They are computed from the pixels of the smaller side only; the upstream side keeps the one code it was packed with. A
pair found by them is verified like any other.
"""

import numpy as np

from pipeline.image.decode import Pixels
from pipeline.image.fingerprint import fingerprint

_BORDERS = (0.05, 0.1, 0.15)  # of the side, on each edge
_FILLS = (0, 255)
_FLAT = 6.0  # grey levels of deviation within a row that belongs to a border: JPEG's noise stays below
_LEAST_SHARE = 0.3  # of a side that is left when borders are cut
_SIDE = 256  # pixels of the longer side that variants are made at; codes shrink to 64 anyway


def variant_codes(pixels: Pixels) -> list[bytes]:
    """Return codes of a picture: with six borders, in two letterboxes unless it is square, and trimmed if it can be.

    Args:
        pixels: RGB of shape (height, width, 3).
    """
    from PIL import Image  # noqa: PLC0415 - 40 ms that the command line's help need not pay

    grey = Image.fromarray(pixels).convert("L")
    grey.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    luma = np.asarray(grey)
    height, width = luma.shape
    margins = [(round(share * height), round(share * width)) for share in _BORDERS]
    if abs(height - width) > 0.1 * max(height, width):
        margins.append(((max(height, width) - height) // 2, (max(height, width) - width) // 2))
    framed = [
        np.pad(luma, ((rows, rows), (columns, columns)), constant_values=fill)
        for rows, columns in margins
        for fill in _FILLS
    ]
    trimmed = _trimmed(luma)
    return [fingerprint(variant)[0] for variant in (*framed, *([] if trimmed is None else [trimmed]))]


def _trimmed(luma: Pixels) -> Pixels | None:
    """Cut flat rows and columns off the edges; None where there are none, or too little is left."""
    kept = []
    for axis in (1, 0):
        textured = np.flatnonzero(luma.std(axis=axis) > _FLAT)
        if not len(textured):
            return None
        kept.append(slice(int(textured[0]), int(textured[-1]) + 1))
    inside = luma[kept[0], kept[1]]
    whole = min(own / side for own, side in zip(inside.shape, luma.shape, strict=True))
    return np.ascontiguousarray(inside) if inside.shape != luma.shape and whole >= _LEAST_SHARE else None
