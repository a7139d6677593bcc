"""From the bytes of a picture to upright RGB pixels, or to the reason why not.

JPEG goes through simplejpeg, the formats of `formats.py` through decoders of their own, everything else (and what
simplejpeg refuses, such as CMYK) through pillow-simd. A truncated or damaged picture is refused, never half shown.
"""

import io
import re
import warnings
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import simplejpeg

from pipeline.base.errors import BadImage, ConfigError
from pipeline.image.formats import (
    EXIF_ERRORS,
    Decoded,
    check_size,
    decode_listed,
    exif_orientation,
    valid_orientation,
)

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

T = TypeVar("T", bound=np.generic)
Pixels = npt.NDArray[np.uint8]  # (height, width, 3), RGB

# A progressive JPEG is decoded once a scan, and a crafted one of a few kB can hold thousands: encoders write up to 16.
MAX_SCANS = 100
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, b"\xff\xd9"
_END_SEARCH_BYTES = 65_536  # cameras append thumbnails and makers' notes after the end mark
_MAX_JPEG_SIDE = 65_500  # libjpeg's limit
_WHOLE = 0  # simplejpeg's value for no shrinking
_EXIF_MARK = b"Exif\x00\x00"
_MARKER, _APP0, _APP15 = 0xFF, 0xE0, 0xEF
_BASELINE = (0xC0, 0xC1)  # frames whose scans are complete, in Huffman codes
_SEGMENTS = frozenset((0xC4, 0xDB, 0xDD, 0xFE, *range(_APP0, _APP15 + 1)))  # that may stand before a scan
_ORIENTATION_TAG = 0x0112
_MISSING_DECODER = re.compile(r"decoder (\w+) not available")  # of Pillow
_JPEG_MAGIC = b"\xff\xd8\xff"
# EXIF orientation -> (mirror left-right, mirror upside-down); from 5 on, transpose after it.
_TURNS = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}
_FIRST_TRANSPOSED = 5


def check_pillow() -> None:
    """Refuse an environment with both pillow and pillow-simd: they overwrite each other's files.

    Raises:
        ConfigError: Both are installed, or neither.
    """
    installed = {name for name in ("pillow", "pillow-simd") if _is_installed(name)}
    if installed == {"pillow", "pillow-simd"}:
        raise ConfigError(
            "pillow and pillow-simd are both installed and overwrite each other's files; "
            "run `pip uninstall -y pillow pillow-simd && pip install --no-deps pillow-simd`"
        )
    if not installed:
        raise ConfigError("pillow-simd is not installed; run `pip install pillow-simd`")


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def is_jpeg(data: bytes) -> bool:
    """Return whether the bytes begin like a JPEG."""
    return data.startswith(_JPEG_MAGIC)


class JpegHeader(NamedTuple):
    """What a JPEG reports of itself.

    Attributes:
        width: Pixels of the upright picture (EXIF orientation applied).
        height: Likewise.
        colorspace: `YCbCr`, `Gray`, `RGB`, `CMYK` or `YCCK`.
        orientation: EXIF orientation, 1..8.
    """

    width: int
    height: int
    colorspace: str
    orientation: int

    @property
    def is_plain(self) -> bool:
        """Whether every reader shows its colours alike: CMYK comes in two polarities, and some cannot read it."""
        return self.colorspace in ("YCbCr", "Gray", "RGB")


def read_jpeg_header(data: bytes, *, check_end: bool = False) -> JpegHeader:
    """Check a JPEG as far as its header allows.

    Args:
        data: The file.
        check_end: Whether an end mark must stand in its last 64 KiB, where nothing else will look at the data.

    Raises:
        BadImage: With reason `not-an-image`, `truncated` or `too-large`.
    """
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    except ValueError as error:
        raise BadImage("not-an-image", f"damaged JPEG header ({error})") from error
    check_size(width, height)
    if check_end and data.rfind(_END_OF_IMAGE, max(0, len(data) - _END_SEARCH_BYTES)) < 0:
        raise BadImage("truncated", "the JPEG has no end mark in its last 64 KiB")
    orientation = _orientation(data)
    if orientation >= _FIRST_TRANSPOSED:
        width, height = height, width
    return JpegHeader(width, height, colorspace, orientation)


def decode(data: bytes) -> Pixels:
    """Return the picture upright (EXIF orientation applied), as uint8 RGB of shape (height, width, 3).

    Raises:
        BadImage: With reason `empty`, `not-an-image`, `no-decoder`, `truncated`, `too-large` or `too-slow`.
    """
    if not data:
        raise BadImage("empty", "the file has no bytes")
    if is_jpeg(data):
        header = read_jpeg_header(data)
        if header.is_plain:
            return upright(_decode_jpeg(data, "RGB"), header.orientation)
        check_scans(data)
    else:
        decoded = decode_listed(data)
        if decoded is not None:
            return _rgb_pixels(decoded)
    return _decode_with_pillow(data)


def decode_luma(data: bytes, least_side_px: int = _WHOLE) -> npt.NDArray[np.uint8]:
    """Return the Y channel of a plain JPEG as it is stored (not turned upright), uint8 of shape (height, width).

    All compressed data is read and checked, that of the colour channels too; only their transformation is saved.

    Args:
        data: The file.
        least_side_px: The picture may come at a fraction of its size, with sides no shorter than this.

    Raises:
        BadImage: With reason `truncated` or `too-slow`.
    """
    return _decode_jpeg(data, "GRAY", least_side_px)[..., 0]


def check_scans(data: bytes) -> None:
    """Refuse what would be decoded a thousand times. Raises BadImage with reason `too-slow`."""
    if _has_one_scan(data):
        return
    values = np.frombuffer(data, np.uint8)
    # As data.count(b"\xff\xda"), in 20 us for a photo of 108 kB instead of 100.
    if np.count_nonzero((values[:-1] == _MARKER) & (values[1:] == _START_OF_SCAN)) > MAX_SCANS:
        raise BadImage("too-slow", f"a JPEG of more than {MAX_SCANS} scans, crafted to be slow")


def _has_one_scan(data: bytes) -> bool:
    """Return whether the first scan of a baseline JPEG holds all channels: decoders refuse a second one then."""
    position, num_channels = 2, -1
    try:
        while data[position] == _MARKER:
            kind = data[position + 1]
            if kind in _BASELINE:
                num_channels = data[position + 9]
            elif kind == _START_OF_SCAN:
                return data[position + 4] == num_channels
            elif kind not in _SEGMENTS:
                return False
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    except IndexError:
        pass
    return False


def _decode_jpeg(data: bytes, colorspace: str, least_side_px: int = _WHOLE) -> Pixels:
    check_scans(data)
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            data, colorspace=colorspace, strict=True, min_height=least_side_px, min_width=least_side_px
        )
    except ValueError as error:
        raise BadImage("truncated", f"damaged JPEG data ({error})") from error
    return pixels


def _orientation(data: bytes) -> int:
    exif = _exif(data)
    if not exif:
        return 1
    from PIL import Image  # noqa: PLC0415 - 40 ms that the command line's help need not pay

    found = exif_orientation(exif)
    if found is None:  # then XMP may hold it, or a further segment
        try:
            with Image.open(io.BytesIO(data)) as image:
                found = valid_orientation(image.getexif().get(_ORIENTATION_TAG, 1))
        except EXIF_ERRORS:
            return 1  # damaged EXIF of a sound picture: as readers that ignore it
    return found


def _exif(data: bytes) -> bytes:
    """Return the first EXIF segment, or none.

    Walks the application segments at the start: searching 64 kB for the mark takes longer than all else here.
    """
    position = 2
    while data[position] == _MARKER and _APP0 <= data[position + 1] <= _APP15:
        stop = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if data.startswith(_EXIF_MARK, position + 4):
            return data[position + 4 : stop]
        position = stop
        if position + 4 > len(data):
            break
    return b""


def upright(pixels: npt.NDArray[T], orientation: int) -> npt.NDArray[T]:
    """Return pixels (height and width first) turned by an EXIF orientation of 1..8."""
    if orientation == 1:
        return pixels
    mirrored, upended = _TURNS[orientation]
    turned = pixels[:: -1 if upended else 1, :: -1 if mirrored else 1]
    return np.ascontiguousarray(turned.swapaxes(0, 1) if orientation >= _FIRST_TRANSPOSED else turned)


def _decode_with_pillow(data: bytes) -> Pixels:
    from PIL import Image, ImageOps, UnidentifiedImageError  # noqa: PLC0415 - see _orientation

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                return np.asarray(_rgb(ImageOps.exif_transpose(image)))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("too-large", str(error)) from error
    except UnidentifiedImageError as error:
        raise BadImage("not-an-image", f"no known picture format, begins with {data[:8]!r}") from error
    except Exception as error:
        missing = _MISSING_DECODER.search(str(error))
        if missing:
            raise BadImage(
                "no-decoder", f"it needs the codec {missing[1]!r}, which pillow-simd is built without"
            ) from error
        raise BadImage("truncated", f"{type(error).__name__}: {error}") from error


def _rgb_pixels(decoded: Decoded) -> Pixels:
    """Return what a decoder returned, upright and in RGB."""
    from PIL import Image  # noqa: PLC0415 - see _orientation

    values = decoded.values
    if values.ndim > 2 and values.shape[2] == 1:
        values = values[..., 0]
    if values.dtype != np.uint8:
        values = _eight_bits(values, decoded.full_scale)
    return upright(np.asarray(_rgb(Image.fromarray(np.ascontiguousarray(values)))), decoded.orientation)


def _eight_bits(values: npt.NDArray[Any], full_scale: float | None) -> npt.NDArray[np.uint8]:
    """Return values scaled to 0..255; without a full scale it is 1 if no value is larger, else 255."""
    values = values.astype(np.float32)
    if full_scale is None:
        full_scale = 1.0 if values.max(initial=0.0) <= 1.0 else 255.0
    with np.errstate(over="ignore", invalid="ignore"):  # floating point may hold anything
        return np.clip(values * (255.0 / full_scale), 0, 255).astype(np.uint8)


def _rgb(image: "PilImage") -> "PilImage":
    """Return the picture in RGB: 16 bit scaled to 8, transparency on white."""
    from PIL import Image  # noqa: PLC0415 - see _orientation

    if image.mode.startswith("I") or image.mode == "F":
        full_scale = 65535.0 if image.mode.startswith("I") else None
        image = Image.fromarray(_eight_bits(np.asarray(image), full_scale))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, layered)
    return image.convert("RGB")


def encode_jpeg(pixels: Pixels, quality: int) -> bytes:
    """Return a JPEG without chroma subsampling; the same pixels become the same bytes.

    Raises:
        BadImage: A side is longer than JPEG allows.
    """
    if max(pixels.shape[:2]) > _MAX_JPEG_SIDE:
        raise BadImage("too-large", f"a side of {max(pixels.shape[:2])} pixels does not fit JPEG")
    encoded: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=quality, colorspace="RGB", colorsubsampling="444"
    )
    return encoded
