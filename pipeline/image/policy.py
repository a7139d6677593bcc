"""The image policy: from the bytes of a source to the bytes that are stored, or to the reason why not."""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt

from pipeline.base.errors import BadImage
from pipeline.base.records import Record
from pipeline.image.decode import Pixels, decode, encode_jpeg, is_jpeg, read_jpeg_header
from pipeline.image.fingerprint import fingerprint, fingerprint_of_jpeg


class ImagePolicy(Record):
    """What is stored of a picture. JPEG bytes are kept as they are wherever nothing asks for other pixels.

    Attributes:
        check: `decode` reads all compressed data and takes the fingerprint; `header` looks at the header and the end
            mark only, and stores no fingerprint.
        shorter_side_px: Pictures with a longer shorter side are shrunk to it and encoded again; None keeps all sizes.
        reencode: Whether to encode every picture again, without its metadata.
        jpeg_quality: For whatever is encoded.
        max_bytes: Larger files are rejected unread by the decoder. 64 MB: 5.7 bits for each pixel of
            `formats.MAX_PIXELS`.
    """

    check: Literal["decode", "header"] = "decode"
    shorter_side_px: PositiveInt | None = None
    reencode: bool = False
    jpeg_quality: int = Field(95, ge=1, le=100)
    max_bytes: PositiveInt = 64_000_000


class Prepared(NamedTuple):
    """A picture as it is stored.

    Attributes:
        data: JPEG bytes.
        width: Of the upright picture.
        height: Of the upright picture.
        code: Fingerprint, 32 bytes; None where it was not taken.
        quality: Of the fingerprint, 0..255; None where it was not taken.
    """

    data: bytes
    width: int
    height: int
    code: bytes | None
    quality: int | None


def prepare(data: bytes, policy: ImagePolicy) -> Prepared:
    """Check a picture and return what is stored of it: a function of the bytes and the policy.

    Raises:
        BadImage: With reason `empty`, `not-an-image`, `no-decoder`, `truncated`, `too-large` or `too-slow`.
    """
    if not data:
        raise BadImage("empty", "the file has no bytes")
    if len(data) > policy.max_bytes:
        raise BadImage("too-large", f"{len(data):,} bytes exceed the limit of {policy.max_bytes:,}")
    if is_jpeg(data):
        header = read_jpeg_header(data, check_end=policy.check == "header")
        shorter = min(header.width, header.height)
        if header.is_plain and not policy.reencode and shorter <= (policy.shorter_side_px or shorter):
            if policy.check == "header":
                return Prepared(data, header.width, header.height, None, None)
            return Prepared(data, header.width, header.height, *fingerprint_of_jpeg(data, header))
    pixels = _shrunk(decode(data), policy.shorter_side_px)
    height, width = pixels.shape[:2]
    encoded = encode_jpeg(pixels, policy.jpeg_quality)
    if policy.check == "header":
        return Prepared(encoded, width, height, None, None)
    return Prepared(encoded, width, height, *fingerprint(pixels))


def _shrunk(pixels: Pixels, shorter_side_px: int | None) -> Pixels:
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    if shorter_side_px is None or shorter <= shorter_side_px:
        return pixels
    from PIL import Image  # noqa: PLC0415 - 40 ms that the command line's help need not pay

    size = tuple(max(1, round(side * shorter_side_px / shorter)) for side in (width, height))
    shrunk: npt.NDArray[np.uint8] = np.asarray(
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)  # with Pillow's antialiasing
    )
    return shrunk
