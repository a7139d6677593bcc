"""Further codes of a downstream picture: framed, letterboxed, without its own borders, cropped, and moved.

They are computed for the downstream side only; upstream pictures keep the one code they were packed with. A pair that
is found by a variant is verified like any other.
"""

from collections.abc import Iterator

import numpy as np

from pipeline.image.decode import Pixels
from pipeline.image.fingerprint import fingerprint

VARIANTS_VERSION = 2  # raised with every change of what variant_codes returns
_BORDERS = (0.05, 0.1, 0.15)  # of the side, on each edge
_FILLS = (0, 255)
_KEPT = (0.9, 0.8, 0.7)  # of both sides, by crops
_NUM_PLACES = 3  # of a crop along an axis: in the middle and at both ends
_MOVED = 0.1  # of the side, in all eight directions; what comes in repeats the edge
_RATIOS = (1.33, 1.78)  # of the sides of a frame with a blurred and enlarged picture, to those of the picture
_FLAT_DEVIATION = 6.0  # largest standard deviation of a border's row, in grey levels; JPEG's noise stays below
_MIN_KEPT_SHARE = 0.3  # of a side, when borders are cut
_SIDE_PX = 192  # longer side of a picture whose variants are computed; codes are of 64 px


def variant_codes(pixels: Pixels) -> list[bytes]:
    """Return codes of a picture: framed, in two letterboxes unless it is square, trimmed if possible, cropped, moved.

    Args:
        pixels: RGB of shape (height, width, 3).
    """
    from PIL import Image  # noqa: PLC0415 - 40 ms that the command line's help need not pay

    grey = Image.fromarray(pixels).convert("L")
    grey.thumbnail((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX)
    luma = np.asarray(grey)
    trimmed = _trimmed(luma)
    variants = (
        *_framed(luma),
        *([] if trimmed is None else [trimmed]),
        *_cropped(luma),
        *_moved(luma),
        *_blurred(luma),
    )
    return [fingerprint(variant)[0] for variant in variants]


def _framed(luma: Pixels) -> Iterator[Pixels]:
    height, width = luma.shape
    margins = [(round(share * height), round(share * width)) for share in _BORDERS]
    if abs(height - width) > 0.1 * max(height, width):
        margins.append(((max(height, width) - height) // 2, (max(height, width) - width) // 2))
    for rows, columns in margins:
        for fill in _FILLS:
            yield np.pad(luma, ((rows, rows), (columns, columns)), constant_values=fill)


def _cropped(luma: Pixels) -> Iterator[Pixels]:
    for kept in _KEPT:
        height, width = (max(1, round(kept * side)) for side in luma.shape)
        tops, lefts = (
            np.linspace(0, side - own, _NUM_PLACES).round().astype(int).tolist()
            for side, own in zip(luma.shape, (height, width), strict=True)
        )
        for top in tops:
            for left in lefts:
                yield np.ascontiguousarray(luma[top : top + height, left : left + width])


def _moved(luma: Pixels) -> Iterator[Pixels]:
    rows, columns = (round(_MOVED * side) for side in luma.shape)
    padded = np.pad(luma, ((rows, rows), (columns, columns)), mode="edge")
    for top in (0, rows, 2 * rows):
        for left in (0, columns, 2 * columns):
            if (top, left) != (rows, columns):
                yield np.ascontiguousarray(padded[top : top + luma.shape[0], left : left + luma.shape[1]])


def _blurred(luma: Pixels) -> Iterator[Pixels]:
    from PIL import Image, ImageFilter, ImageOps  # noqa: PLC0415 - as above

    image = Image.fromarray(luma)
    width, height = image.size
    for ratio in _RATIOS:
        for size in ((round(ratio * width), height), (width, round(ratio * height))):
            frame = ImageOps.fit(image, size).filter(ImageFilter.GaussianBlur(max(size) / 20))
            frame.paste(image, ((size[0] - width) // 2, (size[1] - height) // 2))
            yield np.asarray(frame)


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
