"""The 256-bit perceptual hash of a picture, its quality score, and its dihedral variants.

Luma, averaged to 64x64; two-dimensional DCT; the signs of the 16x16 lowest frequencies (the constant one is not
counted and always 0). All in whole numbers, so that a picture has one code, whatever the machine. Signs instead of the
usual comparison with the median: mirroring a picture negates known coefficients and transposing it swaps rows and
columns, so the codes of all 8 flips and turns follow exactly from the stored 256 bits, and an audit needs no picture
for them. Distances of 200 photos to each other and to eight transforms of themselves are those of median codes, within
two bits in the median (docs/decisions/0003-sign-hash.md).
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pipeline.image.average64 import SIDE, UNITS, average64
from pipeline.image.decode import JpegHeader, decode, decode_luma, is_jpeg, read_jpeg_header, upright

DESCRIPTOR_VERSION = "dct256-sign/3"
CODE_BYTES = 32
FREQUENCIES = 16  # along a side
_LEAST_SIDE_PX = 2 * SIDE  # at 64 pixels codes move by up to 19 bits (200 photos), at 128 by up to 13
# Of the cosines: with it sums of 64x64 products stay below 2**53, and so are exact in float64 in any order.
_COSINE_UNITS = 4096
# Dihedral group element -> (transpose first, then mirror left-right, then mirror upside-down).
DIHEDRAL: tuple[tuple[bool, bool, bool], ...] = tuple(
    (transposed, mirrored, upended)
    for transposed in (False, True)
    for mirrored in (False, True)
    for upended in (False, True)
)
# Element -> the one that undoes it: of the two turns by 90 degrees each undoes the other.
INVERSE = tuple(
    DIHEDRAL.index((transposed, upended if transposed else mirrored, mirrored if transposed else upended))
    for transposed, mirrored, upended in DIHEDRAL
)


@lru_cache
def cosines() -> npt.NDArray[np.float64]:
    """Return the first 16 rows of the 64-point DCT-II matrix in whole numbers, shape (16, 64)."""
    frequency = np.arange(FREQUENCIES)[:, None]
    position = np.arange(SIDE)[None, :] + 0.5
    return np.round(_COSINE_UNITS * np.cos(np.pi * frequency * position / SIDE))


def luma64(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    """Return the picture's luma, shape (64, 64), in 256ths: averages when shrinking, bilinear when enlarging.

    Args:
        pixels: RGB of shape (height, width, 3), or luma of shape (height, width): the code of a JPEG's Y
            channel is that of its RGB pixels within one bit (200 photos), and Y decodes in 0.75 of the time.
    """
    from PIL import Image  # noqa: PLC0415 - 40 ms that the command line's help need not pay

    grey = pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(pixels).convert("L"))
    if min(grey.shape) >= SIDE:
        return average64(grey)
    enlarged = Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(enlarged, np.uint16) * np.uint16(UNITS)


def fingerprint(pixels: npt.NDArray[np.uint8]) -> tuple[bytes, int]:
    """Return (code, quality) of an upright picture.

    Args:
        pixels: As of `luma64`.

    Returns:
        As `fingerprint_of_luma`.
    """
    return fingerprint_of_luma(luma64(pixels))


def fingerprint_of_image(data: bytes) -> tuple[bytes, int]:
    """Return (code, quality) of an encoded picture that is fingerprinted only, and not packed.

    Packing decodes a JPEG whole, since it checks the picture. Here it is decoded at the smallest fraction whose sides
    have at least 128 pixels: a sixteenth less time at 500 px, more for larger ones. The code is that of packing within
    3 bits in the median and 9 at the 95th percentile (photos of 500 px, `benchmarks/fingerprint.py`), of an audit's
    radius of 62.

    Returns:
        As `fingerprint_of_luma`.

    Raises:
        BadImage: As `decode`.
    """
    if is_jpeg(data):
        header = read_jpeg_header(data)
        if header.is_plain:
            return fingerprint_of_jpeg(data, header, _LEAST_SIDE_PX)
    return fingerprint(decode(data))


def fingerprint_of_jpeg(data: bytes, header: JpegHeader, least_side_px: int = 0) -> tuple[bytes, int]:
    """Return (code, quality) of a plain JPEG from its Y channel, turned upright when it is small.

    Args:
        data: The file.
        header: Its header.
        least_side_px: As of `decode_luma`; 0 decodes it whole.

    Raises:
        BadImage: As `decode_luma`.
    """
    return fingerprint_of_luma(upright(luma64(decode_luma(data, least_side_px)), header.orientation))


def fingerprint_of_luma(luma: npt.NDArray[np.uint16]) -> tuple[bytes, int]:
    """Return (code, quality) of an upright 64x64 luma picture.

    Args:
        luma: As of `luma64`.

    Returns:
        The 32-byte code (bit 16*u+v is vertical frequency u, horizontal v, most significant bit first) and the
        quality 0..255: the mean absolute luma step between neighbours of the 64x64 picture, times 8, capped. Flat
        pictures score near 0 and their codes mean little.
    """
    basis = cosines()
    signs = (basis @ luma.astype(np.float64) @ basis.T) > 0
    signs[0, 0] = False
    values = luma.astype(np.int32)
    steps = int(np.abs(values[1:] - values[:-1]).sum() + np.abs(values[:, 1:] - values[:, :-1]).sum())
    return np.packbits(signs).tobytes(), min(255, 4 * steps // (UNITS * SIDE * (SIDE - 1)))


def dihedral_codes(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the codes of all eight flips and turns.

    Args:
        codes: Shape (pictures, 32).

    Returns:
        Shape (8, pictures, 32), in the order of DIHEDRAL: element g holds the codes of the pictures after g.
    """
    # signs has shape (pictures, vertical frequency, horizontal frequency)
    signs = np.unpackbits(codes, axis=1).reshape(len(codes), FREQUENCIES, FREQUENCIES)
    odd = (np.arange(FREQUENCIES) % 2).astype(np.uint8)
    variants = []
    for transposed, mirrored, upended in DIHEDRAL:
        variant = signs.transpose(0, 2, 1) if transposed else signs
        variant = variant ^ (odd[None, None, :] * mirrored) ^ (odd[None, :, None] * upended)
        variants.append(np.packbits(variant.reshape(len(signs), 8 * CODE_BYTES), axis=1))
    return np.stack(variants)


def apply_dihedral(pixels: npt.NDArray[np.generic], element: int) -> npt.NDArray[np.generic]:
    """Return the picture (height and width first) after element `element` of DIHEDRAL."""
    transposed, mirrored, upended = DIHEDRAL[element]
    turned = pixels.swapaxes(0, 1) if transposed else pixels
    return turned[:: -1 if upended else 1, :: -1 if mirrored else 1]
