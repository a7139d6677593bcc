"""The part of a JPEG that a crop needs, decoded without the rest: region.c and huffman.h, through ctypes."""

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.base.errors import BadImage, ConfigError

Box = tuple[int, int, int, int]  # left, top, right, bottom
Decoder = Literal["libjpeg", "ours"]  # of Huffman codes
LIBRARY = Path(__file__).with_name("_region.so")
DECODER_VARIABLE = "BIT_JPEG_DECODER"
_FAILED = 2  # outcomes of region.c: 0 and 1 are the two decoders
# Releases of libjpeg-turbo whose private struct our decoder knows, since it passed the fuzz beside some of each
# (README.md lists them). Beside another one, libjpeg decodes alone.
_KNOWN_RELEASES = ("2.1.", "3.0.", "3.1.")
_MESSAGE_BYTES = 200  # JMSG_LENGTH_MAX
# A region is widened to whole units of 8 or 16 columns (32 in 4:1:1) and by one unit on each side.
_SPARE_COLUMNS = 256


@cache
def _library() -> Any:
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        raise ConfigError(
            f"{LIBRARY} cannot be loaded ({error}); install libjpeg-turbo and this package again"
        ) from error
    c = ctypes
    library.bit_libjpeg_version.restype = c.c_char_p
    library.bit_decode_region.argtypes = [
        *(c.c_int, c.c_char_p, c.c_ulong, c.c_int, c.c_int, c.c_int, c.c_int, c.c_int),
        *(c.c_void_p, c.c_long, c.POINTER(c.c_int), c.c_char_p),
    ]
    library.bit_pack_rgb.argtypes = [c.c_void_p, c.c_long, c.c_long, c.c_int, c.c_void_p]
    library.bit_pack_rgb.restype = None
    return library


def libjpeg_version() -> str:
    """Return the version of the libjpeg-turbo that this process has loaded; empty for any other libjpeg."""
    version: str = _library().bit_libjpeg_version().decode(errors="replace")
    return version


@cache
def _is_ours_usable() -> bool:
    """Return whether our Huffman decoder knows the libjpeg of this process and is not switched off.

    Raises:
        ConfigError: The switch has an unknown value.
    """
    choice = os.environ.get(DECODER_VARIABLE, "")
    if choice not in ("", "libjpeg"):
        raise ConfigError(f"{DECODER_VARIABLE} is {choice!r}; set it to libjpeg, or leave it out")
    return not choice and libjpeg_version().startswith(_KNOWN_RELEASES)


class Region(NamedTuple):
    """Decoded pixels inside a wider buffer.

    Attributes:
        buffer: uint8, shape (height + 1, columns, 4): red, green, blue and a byte without meaning. The last row is
            there for readers that want whole rows from any column.
        first_column: Where the region begins in it.
        width: Of the region.
        decoder: Which one read the Huffman codes.
    """

    buffer: npt.NDArray[np.uint8]
    first_column: int
    width: int
    decoder: Decoder

    @property
    def height(self) -> int:
        """Rows of the region."""
        return len(self.buffer) - 1

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """RGB, shape (height, width, 3), a view."""
        return self.buffer[:-1, self.first_column : self.first_column + self.width, :3]


def decode_region(
    data: bytes,
    box: Box,
    shrink: int = 1,
    memory: npt.NDArray[np.uint8] | None = None,
    *,
    is_trusted: bool = False,
) -> Region:
    """Decode a box of a YCbCr, grey or RGB JPEG as it is stored (EXIF orientation is not applied).

    The pixels are those of a whole decoding, cut. Damage below the box is not seen. Releases the GIL.

    Args:
        data: The JPEG.
        box: In pixels of the shrunk image.
        shrink: 1, 2, 4 or 8: decodes at that fraction of the size, where pixels are averages of `shrink` squared.
        memory: uint8 of one dimension that the region is written to if it fits; it does not outlive the next use then.
        is_trusted: Whether our Huffman decoder may read it: see README.md. The pixels are the same.

    Raises:
        BadImage: With reason `truncated`: the data is damaged, or the box does not lie inside.
        ConfigError: BIT_JPEG_DECODER has an unknown value.
    """
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    columns = width + _SPARE_COLUMNS
    num_bytes = (height + 1) * columns * 4
    flat = np.empty(num_bytes, np.uint8) if memory is None or len(memory) < num_bytes else memory[:num_bytes]
    buffer = flat.reshape(height + 1, columns, 4)
    first_column, message = ctypes.c_int(), ctypes.create_string_buffer(_MESSAGE_BYTES)
    outcome = _library().bit_decode_region(
        _is_ours_usable() and is_trusted,
        *(data, len(data), shrink, left, top, width, height),
        *(buffer.__array_interface__["data"][0], 4 * columns, ctypes.byref(first_column), message),
    )
    if outcome == _FAILED:
        raise BadImage("truncated", f"damaged JPEG data ({message.value.decode(errors='replace')})")
    return Region(buffer, left - first_column.value, width, "ours" if outcome else "libjpeg")


def pack_rgb(address: int, flip: bool, out: npt.NDArray[np.uint8]) -> None:
    """Copy pixels of four bytes to RGB. Releases the GIL.

    Args:
        address: Of the first of as many pixels as `out` has, row by row without gaps.
        flip: Whether left and right are exchanged.
        out: uint8, shape (height, width, 3), contiguous; is overwritten.
    """
    height, width, _ = out.shape
    _library().bit_pack_rgb(address, width, height, flip, out.__array_interface__["data"][0])
