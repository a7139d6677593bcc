"""From the bytes of a picture to upright RGB pixels, or to the reason why not.

JPEG goes through simplejpeg, everything else (and what simplejpeg refuses, such as CMYK) through pillow-simd.
A truncated or damaged picture is refused, never half shown.
"""

import io
import warnings
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import simplejpeg

from pipeline.errors import BadImage, ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

Pixels = npt.NDArray[np.uint8]  # (height, width, 3), RGB

MAX_PIXELS = 89_478_485  # where Pillow warns of a decompression bomb; taken as an error, for JPEG too
_MAX_JPEG_SIDE = 65_500  # libjpeg's limit
_EXIF_MARK = b"Exif\x00\x00"
_EXIF_SEARCH_BYTES = 65_536 + 64  # the EXIF segment comes first and holds at most 64 KiB
_ORIENTATION_TAG = 0x0112
_JPEG_MAGIC = b"\xff\xd8\xff"


def check_pillow() -> None:
    """Refuses an environment with both pillow and pillow-simd: they overwrite each other's files.

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
    """Tells whether the bytes begin like a JPEG."""
    return data.startswith(_JPEG_MAGIC)


def decode(data: bytes) -> Pixels:
    """Gives the picture upright (EXIF orientation applied), as uint8 RGB of shape (height, width, 3).

    Raises:
        BadImage: With reason `empty`, `not-an-image`, `truncated` or `too-large`.
    """
    if not data:
        raise BadImage("empty", "the file has no bytes")
    if is_jpeg(data):
        try:
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=True)
        except ValueError as error:
            raise BadImage("not-an-image", f"damaged JPEG header ({error})") from error
        if height * width > MAX_PIXELS:
            raise BadImage("too-large", f"{width}x{height} exceeds {MAX_PIXELS} pixels")
        if colorspace in ("YCbCr", "Gray", "RGB"):
            try:
                pixels: Pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
            except ValueError as error:
                raise BadImage("truncated", f"damaged JPEG data ({error})") from error
            return _upright(pixels, data)
    return _decode_with_pillow(data)


def _upright(pixels: Pixels, data: bytes) -> Pixels:
    if data.find(_EXIF_MARK, 0, _EXIF_SEARCH_BYTES) < 0:
        return pixels
    from PIL import Image  # noqa: PLC0415 - 40 ms that the command line's help need not pay

    with Image.open(io.BytesIO(data)) as image:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    flips = {2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}
    if orientation not in flips:
        return pixels
    mirrored, upended = flips[orientation]
    turned = pixels[:: -1 if upended else 1, :: -1 if mirrored else 1]
    return np.ascontiguousarray(turned.transpose(1, 0, 2) if orientation >= 5 else turned)


def _decode_with_pillow(data: bytes) -> Pixels:
    from PIL import Image, ImageOps, UnidentifiedImageError  # noqa: PLC0415 - see _upright

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                return np.asarray(_rgb(ImageOps.exif_transpose(image)))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("too-large", str(error)) from error
    except UnidentifiedImageError as error:
        told = "WebP, which this build of pillow-simd cannot read: install libwebp-dev and build it again"
        unknown = f"no known picture format, begins with {data[:8]!r}"
        raise BadImage("not-an-image", told if data[8:12] == b"WEBP" else unknown) from error
    except Exception as error:
        raise BadImage("truncated", f"{type(error).__name__}: {error}") from error


def _rgb(image: "PilImage") -> "PilImage":
    """Gives the picture in RGB: 16 bit scaled to 8, transparency on white."""
    from PIL import Image  # noqa: PLC0415 - see _upright

    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, np.float32)
        full_scale = 65535.0 if image.mode.startswith("I") else (1.0 if values.max(initial=0.0) <= 1.0 else 255.0)
        image = Image.fromarray(np.clip(values * (255.0 / full_scale), 0, 255).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, layered)
    return image.convert("RGB")


def encode_jpeg(pixels: Pixels, quality: int) -> bytes:
    """Gives a JPEG without chroma subsampling; the same pixels give the same bytes.

    Raises:
        BadImage: A side is longer than JPEG allows.
    """
    if max(pixels.shape[:2]) > _MAX_JPEG_SIDE:
        raise BadImage("too-large", f"a side of {max(pixels.shape[:2])} pixels does not fit JPEG")
    encoded: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=quality, colorspace="RGB", colorsubsampling="444"
    )
    return encoded
