"""The image policy: for each kind of picture what is stored, or why it is refused."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from pipeline.base.errors import BadImage
from pipeline.image.decode import MAX_SCANS, decode, read_jpeg_header
from pipeline.image.fingerprint import fingerprint
from pipeline.image.policy import ImagePolicy, Prepared, prepare
from tests.conftest import jpeg, picture

KEEP = ImagePolicy()
HEADER = ImagePolicy(check="header")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def rotated_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def refused(data: bytes, policy: ImagePolicy = KEEP) -> str:
    with pytest.raises(BadImage) as caught:
        prepare(data, policy)
    return caught.value.reason


@pytest.mark.parametrize("policy", [KEEP, HEADER], ids=["decode", "header"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_bytes_are_kept(mode: str, policy: ImagePolicy) -> None:
    data = encoded(Image.fromarray(picture(1)).convert(mode), "JPEG")
    assert prepare(data, policy).data == data


def test_cmyk_becomes_rgb_since_readers_differ_on_it() -> None:
    data = encoded(Image.fromarray(picture(1)).convert("CMYK"), "JPEG", quality=95)
    for policy in (KEEP, HEADER):
        stored = prepare(data, policy)
        assert read_jpeg_header(stored.data).colorspace == "YCbCr"
        assert np.abs(decode(stored.data).astype(int) - picture(1)).mean() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_and_fingerprint_are_those_of_the_upright_picture(orientation: int) -> None:
    data = jpeg(picture(1), quality=95, exif=rotated_exif(orientation))
    stored = prepare(data, KEEP)
    upright = decode(data)
    assert stored.data == data  # readers apply the orientation; the bytes stay
    assert (stored.height, stored.width) == upright.shape[:2]
    assert prepare(data, HEADER) == Prepared(data, stored.width, stored.height, None, None)
    code, quality = fingerprint(upright)
    differing = np.unpackbits(np.frombuffer(code, np.uint8) ^ np.frombuffer(stored.code or b"", np.uint8)).sum()
    assert differing <= 2
    assert abs(quality - (stored.quality or 0)) <= 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: encoded(Image.fromarray(picture(2)), "PNG"),
        lambda: encoded(Image.fromarray(picture(2)).convert("P"), "GIF"),
        lambda: encoded(Image.fromarray(picture(2)), "BMP"),
        lambda: encoded(Image.fromarray(picture(2)), "TIFF"),
        lambda: encoded(Image.fromarray(picture(2)).convert("RGBA"), "PNG"),
        lambda: encoded(Image.fromarray(np.asarray(picture(2))[..., 0].astype(np.uint16) * 257), "PNG"),
    ],
    ids=["png", "gif", "bmp", "tiff", "alpha", "16 bit"],
)
def test_other_formats_become_jpeg(make: object) -> None:
    stored = prepare(make(), KEEP)
    assert read_jpeg_header(stored.data).is_plain
    assert (stored.width, stored.height) == (64, 48)
    assert prepare(make(), KEEP) == stored  # the same bytes every time


def test_of_an_animation_the_first_frame_is_stored() -> None:
    frames = [Image.fromarray(picture(seed)) for seed in (1, 2)]
    for kind in ("GIF", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], loop=0)
        assert prepare(data, KEEP).data == prepare(encoded(frames[0], kind), KEEP).data


def test_only_larger_pictures_are_shrunk() -> None:
    policy = ImagePolicy(shorter_side_px=24)
    small = jpeg(picture(1, height=24, width=90))
    assert prepare(small, policy).data == small
    shrunk = prepare(jpeg(picture(1, height=48, width=64)), policy)
    assert (shrunk.height, shrunk.width) == (24, 32)
    turned = prepare(jpeg(picture(1, height=48, width=64), exif=rotated_exif(6)), policy)
    assert (turned.height, turned.width) == (32, 24)
    assert b"Exif" not in turned.data  # upright now, and no longer turned by readers


def test_reencoding_drops_metadata_and_keeps_the_picture() -> None:
    data = jpeg(picture(1), quality=95, exif=rotated_exif(1), comment=b"where it was taken")
    stored = prepare(data, ImagePolicy(reencode=True, jpeg_quality=90))
    assert b"where it was taken" not in stored.data
    assert b"Exif" not in stored.data
    assert np.abs(decode(stored.data).astype(int) - decode(data)).mean() < 6


@pytest.mark.parametrize("policy", [KEEP, HEADER], ids=["decode", "header"])
def test_truncated_jpegs_are_refused(policy: ImagePolicy) -> None:
    data = jpeg(picture(3, 480, 640))
    for kept in (len(data) - 2, len(data) // 2, 200):
        assert refused(data[:kept], policy) in ("truncated", "not-an-image")


def test_a_jpeg_damaged_inside_is_found_by_decoding_alone() -> None:
    data = bytearray(jpeg(picture(3, 480, 640), quality=95))
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    assert refused(bytes(data)) == "truncated"
    assert prepare(bytes(data), HEADER).data == data  # what a check of the header cannot see


def test_what_cameras_append_does_not_hurt() -> None:
    data = jpeg(picture(3)) + b"maker's notes" * 100
    assert prepare(data, KEEP).data == data
    assert prepare(data, HEADER).data == data
    motion_photo = jpeg(picture(3)) + bytes(200_000)  # phones append a film
    assert prepare(motion_photo, KEEP).data == motion_photo
    assert refused(motion_photo, HEADER) == "truncated"  # which a check of the header cannot tell from a cut file


def test_bombs_are_refused_before_they_are_decoded() -> None:
    assert refused(encoded(Image.new("1", (10_000, 9_000)), "PNG")) == "too-large"
    large = encoded(Image.new("L", (10_000, 9_000)), "JPEG", quality=1)
    assert refused(large) == "too-large"
    assert refused(large, HEADER) == "too-large"
    assert refused(jpeg(picture(1)), ImagePolicy(max_bytes=100)) == "too-large"


def test_a_jpeg_with_thousands_of_scans_is_refused_before_it_is_decoded() -> None:
    """Each scan of a progressive JPEG is a pass over all pixels: a few kB can keep a decoder busy for minutes."""
    data = encoded(Image.fromarray(picture(1, 512, 512)), "JPEG", progressive=True)
    last = data.rfind(b"\xff\xda")
    assert prepare(data, KEEP).data == data
    bomb = data[:-2] + data[last:-2] * (MAX_SCANS + 1) + data[-2:]
    started = time.process_time()
    assert refused(bomb) == "too-slow"
    assert time.process_time() - started < 5.0


def test_further_scans_of_a_baseline_jpeg_are_refused_by_the_decoder() -> None:
    """So they need not be counted: its first scan holds all channels."""
    data = jpeg(picture(1, 512, 512))
    scan = data.rfind(b"\xff\xda")
    assert refused(data[:-2] + data[scan:-2] * (MAX_SCANS + 1) + data[-2:]) == "truncated"
