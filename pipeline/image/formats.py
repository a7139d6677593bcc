"""Formats beyond Pillow's own: WebP, AVIF, JPEG 2000 and compressed TIFF by OpenCV, JPEG XL and HEIC by small wheels.

pillow-simd is built from source, with the codecs whose headers the machine happens to have. So each format here has one
decoder on every machine, whatever Pillow could read. Sizes are read from headers before a decoder sees the file.
"""

import io
import struct
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.base.errors import BadImage
from pipeline.image.iso_boxes import Box, boxes_of, brands_of, item_properties

MAX_PIXELS = 89_478_485  # where Pillow warns of a decompression bomb; taken as an error, for every format
EXIF_ERRORS = (OSError, SyntaxError, ValueError, struct.error)  # of Pillow, for damaged EXIF
INSTALL_FORMATS = "in a clone of the repository, pip install -e '.[formats]'"
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = range(1, 9)
_MAX_CHANNELS = 4  # colours and alpha
_JXL_SIGNATURES = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n")
_CODESTREAM = b"\xff\x4f\xff\x51"  # of JPEG 2000: start, then sizes
_JP2_SIGNATURES = (_CODESTREAM, b"\x00\x00\x00\x0cjP  \r\n\x87\n")
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
# Quarter turns against the clock, then a mirror (0 upside-down, 1 left-right) -> EXIF orientation.
_TURNED: dict[int | None, tuple[int, int, int, int]] = {None: (1, 8, 3, 6), 0: (4, 5, 2, 7), 1: (2, 7, 4, 5)}
# TIFF tags, with what holds where a file lacks them.
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _CHANNELS = 256, 257, 258, 259, 262, 277
_TILE_WIDTH, _TILE_HEIGHT, _EXTRA_SAMPLES = 322, 323, 338
_UNCOMPRESSED, _SEPARATED, _YCBCR = 1, 5, 6  # values of the tags
_UNSPECIFIED, _ASSOCIATED, _UNASSOCIATED, _NOT_NAMED = 0, 1, 2, -1  # of extra samples
_TIFF_DEFAULTS = {_WIDTH: None, _HEIGHT: None, _BITS: 1, _COMPRESSION: _UNCOMPRESSED, _PHOTOMETRIC: 1, _CHANNELS: 1}
_TIFF_DEFAULTS |= {_TILE_WIDTH: 1, _TILE_HEIGHT: 1, _EXTRA_SAMPLES: _NOT_NAMED}
# What the libtiff inside OpenCV's wheel reads: CCITT, LZW, JPEG, Deflate, PackBits.
_TIFF_COMPRESSIONS = frozenset((_UNCOMPRESSED, 2, 3, 4, 5, 7, 8, 32773, 32946))

warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # of damaged metadata, without the file's name


class Decoded(NamedTuple):
    """Pixels as a decoder returned them.

    Attributes:
        values: Shape (height, width) or (height, width, channels): grey, grey and alpha, RGB, or RGB and alpha.
        full_scale: The value of white; None where it depends on the values, as for floating point.
        orientation: EXIF orientation that makes it upright.
    """

    values: npt.NDArray[Any]
    full_scale: float | None
    orientation: int


def decode_listed(data: bytes) -> Decoded | None:
    """Decode a file of one of the formats of this module; None for all others, and for TIFF that Pillow reads.

    Raises:
        BadImage: With reason `truncated`, `too-large`, or `no-decoder` and the name of what is missing.
    """
    for is_format, decoder in _DECODERS:
        if is_format(data):
            return decoder(data)
    return None


def check_size(width: int, height: int) -> None:
    """Refuse what would fill the memory. Raises BadImage with reason `too-large`."""
    if width * height > MAX_PIXELS:
        raise BadImage("too-large", f"{width}x{height} exceeds {MAX_PIXELS} pixels")


def exif_orientation(exif: bytes) -> int | None:
    """Return the orientation that an EXIF block names, None where it names none or is damaged."""
    from PIL import Image  # noqa: PLC0415 - 40 ms that the command line's help need not pay

    with suppress(*EXIF_ERRORS):
        unopened = Image.Exif()
        unopened.load(exif)  # 35 us; 80 by opening the image
        found = unopened.get(_ORIENTATION_TAG)
        return None if found is None else valid_orientation(found)
    return None


def valid_orientation(found: object) -> int:
    """Return an orientation as it is if it is one of 1..8, else 1."""
    return int(found) if isinstance(found, int) and found in _ORIENTATIONS else 1


@cache
def _opencv() -> Any:
    import cv2  # noqa: PLC0415 - 0.2 s, which sources without these formats need not pay

    cv2.utils.logging.setLogLevel(
        cv2.utils.logging.LOG_LEVEL_SILENT
    )  # else it prints a damaged image's faults itself, without its name
    return cv2


def _by_opencv(data: bytes, name: str) -> npt.NDArray[Any]:
    """Return the first frame in RGB order, with its alpha, neither turned nor scaled."""
    cv2 = _opencv()
    fault = ""
    try:
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        found, fault = None, f" ({error.err})"
    if found is None:
        raise BadImage("truncated", f"damaged {name} data, or of a kind that OpenCV does not read{fault}")
    values: npt.NDArray[Any] = found
    if values.ndim > 2 and values.shape[2] > 2:
        values = values[..., [2, 1, 0, *range(3, values.shape[2])]]
    return values


def _webp(data: bytes) -> Decoded:
    exif = b""
    checked = False
    position = 12
    while position + 8 <= len(data):
        kind, num_bytes = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        body = position + 8
        size = _webp_size(kind, data[body : body + 10])
        if size:
            check_size(*size)
            checked = True
        if kind == b"EXIF":
            exif = data[body : body + num_bytes]
        position = body + num_bytes + num_bytes % 2
    if not checked:
        raise BadImage("truncated", "a WebP without an image")
    values = _by_opencv(data, "WebP")
    return Decoded(values, 255.0, (exif and exif_orientation(exif)) or 1)


def _webp_size(kind: bytes, start: bytes) -> tuple[int, int] | None:
    """Return (width, height) in pixels of a chunk that holds them; `start` is its first ten bytes."""
    if kind == b"VP8X":
        return 1 + int.from_bytes(start[4:7], "little"), 1 + int.from_bytes(start[7:10], "little")
    if kind == b"VP8 ":
        return int.from_bytes(start[6:8], "little") & 0x3FFF, int.from_bytes(start[8:10], "little") & 0x3FFF
    if kind == b"VP8L":
        bits = int.from_bytes(start[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return None


def _tiff(data: bytes) -> Decoded | None:
    from PIL.TiffImagePlugin import COMPRESSION_INFO  # noqa: PLC0415 - see exif_orientation

    tags = _tiff_tags(data)
    check_size(tags[_WIDTH], tags[_HEIGHT])
    check_size(tags[_TILE_WIDTH], tags[_TILE_HEIGHT])
    compression, channels = tags[_COMPRESSION], tags[_CHANNELS]
    if compression not in _TIFF_COMPRESSIONS:
        name = COMPRESSION_INFO.get(compression, f"number {compression}")
        raise BadImage("no-decoder", f"TIFF with compression {name}, which OpenCV is built without")
    if compression == _UNCOMPRESSED and tags[_PHOTOMETRIC] != _YCBCR and _pillow_knows(data):
        return None
    if channels not in (1, 3, 4) or (tags[_PHOTOMETRIC] == _SEPARATED and tags[_BITS] != 8):
        raise BadImage("no-decoder", f"a compressed TIFF of {channels} channels with {tags[_BITS]} bits each")
    values = _by_opencv(data, "TIFF")  # turned upright
    full_scale = {"b": 255.0, "f": None}.get(values.dtype.kind, 255.0 if values.dtype == np.uint8 else 65535.0)
    if values.ndim > 2 and values.shape[2] == _MAX_CHANNELS:
        values = _without_tiff_alpha(values, tags)
    return Decoded(values, full_scale, 1)


def _without_tiff_alpha(values: npt.NDArray[Any], tags: dict[int, int]) -> npt.NDArray[Any]:
    """Return what shows over white where colours are multiplied by alpha, as libtiff does itself with those of 8 bits.

    Colours that are not multiplied keep their alpha.
    """
    extra = tags[_EXTRA_SAMPLES]
    colours, alpha = values[..., :3], values[..., 3:]
    if extra == _UNSPECIFIED or tags[_PHOTOMETRIC] == _SEPARATED:
        return colours
    if extra == _ASSOCIATED or (extra == _UNASSOCIATED and values.dtype == np.uint8):
        white = np.iinfo(values.dtype).max
        shown: npt.NDArray[Any] = colours + np.minimum(white - alpha, white - colours)
        return shown
    return values


def _tiff_tags(data: bytes) -> dict[int, int]:
    """Return the tags of the first image that decide how it is read, the first value of each."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2  # noqa: PLC0415 - see exif_orientation

    try:
        tags = ImageFileDirectory_v2(data[: 16 if b"+" in data[2:4] else 8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        found = {tag: tags.get(tag, default) for tag, default in _TIFF_DEFAULTS.items()}
        return {tag: int(value[0] if isinstance(value, tuple) else value) for tag, value in found.items()}
    except (*EXIF_ERRORS, IndexError, TypeError) as error:  # TypeError: there is no width
        raise BadImage("truncated", f"damaged TIFF header ({type(error).__name__}: {error})") from error


def _pillow_knows(data: bytes) -> bool:
    from PIL import Image  # noqa: PLC0415 - see exif_orientation

    try:
        Image.open(io.BytesIO(data)).close()
    except EXIF_ERRORS:
        return False
    return True


def _jpeg2000(data: bytes) -> Decoded:
    start = 0
    if not data.startswith(_CODESTREAM):
        start = next((first for kind, first, _ in boxes_of(data, 0, len(data)) if kind == b"jp2c"), -1)
    if start < 0 or not data.startswith(_CODESTREAM, start) or len(data) < start + 43:
        raise BadImage("truncated", "a JPEG 2000 file without an image")
    right, lower, left, upper = struct.unpack(">4I", data[start + 8 : start + 24])
    check_size(right - left, lower - upper)
    channels, depth = int.from_bytes(data[start + 40 : start + 42], "big"), 1 + (data[start + 42] & 0x7F)
    if channels not in (1, 3, 4):
        raise BadImage("no-decoder", f"a JPEG 2000 file of {channels} channels; 1, 3 and 4 are read")
    values = _by_opencv(data, "JPEG 2000")
    return Decoded(values, 255.0 if values.dtype == np.uint8 else 2.0**depth - 1, 1)


def _jpeg_xl(data: bytes) -> Decoded:
    try:
        import pylibjxl  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise BadImage("no-decoder", f"JPEG XL, which needs pylibjxl: {INSTALL_FORMATS}") from error

    try:
        header = pylibjxl.probe(data)
        check_size(header["width"], header["height"])
        if header["channels"] > _MAX_CHANNELS:
            raise BadImage("no-decoder", f"a JPEG XL of {header['channels']} channels; up to {_MAX_CHANNELS} are read")
        return Decoded(pylibjxl.decode(data), 255.0, 1)  # upright, in 8 bits
    except (RuntimeError, ValueError) as error:
        raise BadImage("truncated", f"damaged JPEG XL data ({error})") from error


def _heic(data: bytes) -> Decoded:
    try:
        from cykooz_heif.errors import HeifError  # noqa: PLC0415 - an extra
        from cykooz_heif.image import RawHeifImage  # noqa: PLC0415
    except ImportError as error:
        raise BadImage("no-decoder", f"HEIC, which needs cykooz-heif: {INSTALL_FORMATS}") from error

    _check_iso_sizes(data, item_properties(data)[0])
    try:
        image = RawHeifImage.from_stream(io.BytesIO(data), len(data))
        rows = np.frombuffer(image.data, np.uint8).reshape(image.height, image.stride)  # upright, in 8 bits
        values = rows[:, : image.width * len(image.mode)].reshape(image.height, image.width, len(image.mode))
    except (HeifError, ValueError) as error:  # ValueError: header and data are of two sizes
        raise BadImage("truncated", f"damaged HEIC data ({error})") from error
    return Decoded(values, 255.0, 1)


def _avif(data: bytes) -> Decoded:
    depth, quarter_turns = 8, 0
    mirror: int | None = None
    properties, of_primary = item_properties(data)
    _check_iso_sizes(data, properties)
    for number, (kind, start, stop) in enumerate(properties, start=1):
        body = data[start:stop]
        if kind == b"av1C" and len(body) > 2:
            depth = max(depth, {0x40: 10, 0x60: 12}.get(body[2] & 0x60, 8))
        elif kind == b"irot" and number in of_primary and body:
            quarter_turns = body[0] & 3
        elif kind == b"imir" and number in of_primary and body:
            mirror = body[0] & 1
    values = _by_opencv(data, "AVIF")
    scale = 255.0 if values.dtype == np.uint8 else 2.0**depth - 1
    return Decoded(values, scale, _TURNED[mirror][quarter_turns])


def _check_iso_sizes(data: bytes, properties: list[Box]) -> None:
    """Check the sizes of an AVIF or HEIC: of the image, its tiles and its alpha."""
    sizes = [data[start + 4 : start + 12] for kind, start, stop in properties if kind == b"ispe" and stop - start >= 12]
    if not sizes:
        raise BadImage("truncated", "a HEIC or AVIF without an image")
    for size in sizes:
        check_size(*struct.unpack(">2I", size))


def _is_iso_of(brands: frozenset[bytes]) -> Callable[[bytes], bool]:
    return lambda data: data[4:8] == b"ftyp" and bool(brands_of(data) & brands)


_DECODERS: tuple[tuple[Callable[[bytes], bool], Callable[[bytes], Decoded | None]], ...] = (
    (lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP", _webp),
    (lambda data: data.startswith(_TIFF_SIGNATURES), _tiff),
    (lambda data: data.startswith(_JP2_SIGNATURES), _jpeg2000),
    (lambda data: data.startswith(_JXL_SIGNATURES), _jpeg_xl),
    (_is_iso_of(_AVIF_BRANDS), _avif),
    (_is_iso_of(_HEIC_BRANDS), _heic),
)
