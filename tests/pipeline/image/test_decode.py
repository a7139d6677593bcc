"""Each kind of picture is decoded upright, or refused with its reason."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.base.errors import BadImage
from pipeline.image.decode import decode, encode_jpeg, read_jpeg_header
from tests.conftest import jpeg, picture


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


@pytest.mark.parametrize("exif", [b"", b"MM\0*", b"MM\0*\0\0\0\x08\0\x01", b"II*\0\xff\xff\xff\xff", b"no tiff"])
@pytest.mark.parametrize("options", [{}, {"dpi": (72, 72)}], ids=["plain", "with dpi"])
def test_a_sound_picture_with_damaged_exif_is_upright(exif: bytes, options: dict[str, object]) -> None:
    data = jpeg(picture(1), exif=b"Exif\0\0" + exif, **options)
    assert read_jpeg_header(data).orientation == 1


def test_where_exif_tells_no_orientation_xmp_does() -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    data = jpeg(picture(1), exif=exif, xmp=b'<x tiff:Orientation="6"/>')
    assert read_jpeg_header(data).orientation == 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_does(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(picture(1), quality=95, subsampling=0, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(decode(data), expected)


def test_a_jpeg_is_decoded_to_the_pixels_pillow_gives() -> None:
    data = jpeg(picture(2), subsampling=0)
    assert np.array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_every_colour_mode_becomes_rgb(mode: str) -> None:
    image = Image.fromarray(picture(3)).convert(mode)
    data = encoded(image, "JPEG" if mode == "CMYK" else "PNG")
    pixels = decode(data)
    assert pixels.shape == (48, 64, 3)
    assert pixels.dtype == np.uint8


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    pixels = decode(encoded(Image.fromarray(ramp), "PNG"))
    assert np.allclose(pixels[..., 0], ramp / 257.0, atol=1.0)


def test_transparency_shows_white() -> None:
    assert (decode(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "PNG")) == 255).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"this is text", "not-an-image"),
        (b"\xff\xd8\xff\xe0 no more", "not-an-image"),
        (jpeg(picture(4))[:-200], "truncated"),
        (encoded(Image.fromarray(picture(4)), "PNG")[:-300], "truncated"),
    ],
)
def test_what_cannot_be_decoded_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage) as caught:
        decode(data)
    assert caught.value.reason == reason


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = encoded(Image.new("1", (10_000, 9_000)), "PNG")
    assert len(bomb) < 20_000
    with pytest.raises(BadImage) as caught:
        decode(bomb)
    assert caught.value.reason == "too-large"


def test_encoding_the_same_pixels_gives_the_same_bytes() -> None:
    assert encode_jpeg(picture(5), 95) == encode_jpeg(picture(5).copy(), 95)
