"""From an encoded image to a view of it: only what the view shows is decoded."""

import threading
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.base.errors import BadImage, ConfigError
from pipeline.image.decode import check_scans, decode, is_jpeg, read_jpeg_header
from pipeline.image.jpeg_region.region import Box, Region, decode_region, pack_rgb
from pipeline.image.transforms import Placement, Randomness, Transform

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

# Large images are decoded at 1/2, 1/4 or 1/8 of their size as long as twice the wanted pixels are left: what resizing
# averages, decoding has averaged before.
_KEPT_FACTOR = 2
_LARGEST_SHRINK = 8
# Decoded pixels of most images fit; larger ones get memory of their own, which is given back.
_KEPT_BYTES = 4 << 20


class _Memory(threading.local):
    """Memory for decoded pixels that a thread uses again: fresh pages take 4 % of the time of a photo."""

    def __init__(self) -> None:
        self.pixels = np.empty(_KEPT_BYTES, np.uint8)


_memory = _Memory()


def render(
    data: bytes,
    transform: Transform,
    random: Randomness,
    out: npt.NDArray[np.uint8],
    *,
    is_trusted: bool = False,
) -> None:
    """Draw a view of an image with `transform`, and write its pixels to `out`.

    Args:
        data: The encoded image, of any format that `pipeline.image.decode.decode` reads.
        transform: Draws where the view lies on the upright image.
        random: What it draws from.
        out: uint8 RGB, shape (side, side, 3), contiguous.
        is_trusted: Whether our Huffman decoder may read it, as `Dataset.is_trusted` decides. The pixels are the same.

    Raises:
        BadImage: The image does not decode.
    """
    if not data:
        raise BadImage("empty", "the file has no bytes")
    if is_jpeg(data):
        header = read_jpeg_header(data)
        if header.is_plain and header.orientation == 1:
            check_scans(data)
            placement = transform(header.height, header.width, random)
            shrink, box, part = _shrunk(placement, header.height, header.width)
            region = decode_region(data, box, shrink, _memory.pixels, is_trusted=is_trusted)
            _finish(_mapped(region), part, placement, out)
            return
    pixels = decode(data)
    placement = transform(pixels.shape[0], pixels.shape[1], random)
    left, top, right, bottom = placement.box
    from PIL import Image  # noqa: PLC0415 - 40 ms that the command line's help need not pay

    image = Image.fromarray(np.ascontiguousarray(pixels[top:bottom, left:right]))
    _finish(image, None, placement, out)


def _shrunk(placement: Placement, height: int, width: int) -> tuple[int, Box, tuple[float, ...] | None]:
    """Return the scale to decode at, the box there, and the exact part of that box where it is no whole pixels."""
    left, top, right, bottom = placement.box
    shrink = 1
    while shrink < _LARGEST_SHRINK and min(right - left, bottom - top) >= shrink * 2 * _KEPT_FACTOR * placement.side_px:
        shrink *= 2
    if shrink == 1:
        return 1, placement.box, None
    scaled_width, scaled_height = -(-width // shrink), -(-height // shrink)
    first_column, first_row = left // shrink, top // shrink
    stop_column, stop_row = min(scaled_width, -(-right // shrink)), min(scaled_height, -(-bottom // shrink))
    part = (
        left / shrink - first_column,
        top / shrink - first_row,
        min(right / shrink, stop_column) - first_column,
        min(bottom / shrink, stop_row) - first_row,
    )
    return shrink, (first_column, first_row, stop_column, stop_row), part


def _mapped(region: Region) -> "PilImage":
    """Return decoded pixels as an image that shares their memory."""
    from PIL import Image  # noqa: PLC0415 - see render

    # Pillow holds RGB in four bytes, too: only as RGBX it takes them as they are.
    size, row_bytes = (region.width, region.height), region.buffer.strides[0]
    return Image.frombuffer(
        "RGBX", size, region.buffer.reshape(-1)[4 * region.first_column :], "raw", "RGBX", row_bytes, 1
    )


def _finish(
    image: "PilImage", part: tuple[float, ...] | None, placement: Placement, out: npt.NDArray[np.uint8]
) -> None:
    """Resize bilinearly, with support scaled to the shrinkage, then crop and flip."""
    from PIL import Image  # noqa: PLC0415 - see render

    side = placement.side_px
    image = image.resize((side, side), Image.Resampling.BILINEAR, box=part)
    if placement.crop:
        image = image.crop(placement.crop)
    if image.size != (out.shape[1], out.shape[0]):
        raise ConfigError(f"the transform returns {image.width} x {image.height} pixels, {out.shape[1]} are wanted")
    held = pa.array(image)  # shares the image's memory: four bytes a pixel, rows without gaps
    pack_rgb(held.buffers()[-1].address, placement.flip, out)
