"""Further codes of a downstream picture: with borders, letterboxed, and without its own borders.

They are computed for the downstream side only; upstream pictures keep the one code they were packed with. A pair that
is found by a variant is verified like any other.
"""

import numpy as np

from pipeline.image.decode import Pixels
from pipeline.image.fingerprint import fingerprint

VARIANTS_VERSION = 1  # raised with every change of what variant_codes returns
_BORDERS = (0.05, 0.1, 0.15)  # of the side, on each edge
_FILLS = (0, 255)
_FLAT_DEVIATION = 6.0  # largest standard deviation of a border's row, in grey levels; JPEG's noise stays below
_MIN_KEPT_SHARE = 0.3  # of a side, when borders are cut
_SIDE_PX = 256  # longer side of a picture whose variants are computed; codes are of 64 px


def variant_codes(pixels: Pixels) -> list[bytes]:
    """Return codes of a picture: with six borders, in two letterboxes unless it is square, and trimmed if possible.

    Args:
        pixels: RGB of shape (height, width, 3).
    """
    from PIL import Image  # noqa: PLC0415 - 40 ms that the command line's help need not pay

    grey = Image.fromarray(pixels).convert("L")
    grey.thumbnail((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX)
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
    """Cut flat rows and columns off the edges; return None if there are none, or too little is left."""
    kept = []
    for axis in (1, 0):
        textured = np.flatnonzero(luma.std(axis=axis) > _FLAT_DEVIATION)
        if not len(textured):
            return None
        kept.append(slice(int(textured[0]), int(textured[-1]) + 1))
    inside = luma[kept[0], kept[1]]
    kept_share = min(own / side for own, side in zip(inside.shape, luma.shape, strict=True))
    return np.ascontiguousarray(inside) if inside.shape != luma.shape and kept_share >= _MIN_KEPT_SHARE else None
