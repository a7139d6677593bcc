"""Views of images: what is decoded in part equals the whole, cut; where a view lies follows from the seed alone."""

import io
from random import Random

import numpy as np
import pytest
import simplejpeg
from hypothesis import example, given, settings, strategies as st
from PIL import Image

from pipeline.base.errors import BadImage, ConfigError
from pipeline.image.decode import decode, encode_jpeg
from pipeline.image.jpeg_region.region import Box, decode_region, pack_rgb
from pipeline.image.render import render
from pipeline.image.transforms import EvaluationView, FinetuneView, Placement, PretrainView
from tests.conftest import jpeg, picture

SIZES = st.integers(1, 150)
KINDS = st.sampled_from(["444", "422", "420", "440", "411", "Gray", "progressive 0", "progressive 1", "progressive 2"])
QUALITIES = st.sampled_from([20, 75, 95, 100])


def encoded(kind: str, height: int, width: int, quality: int, seed: int = 0) -> bytes:
    """Return a JPEG of any subsampling; those of Pillow may be progressive."""
    pixels = picture(seed, height, width)
    if kind == "Gray":
        grey = np.ascontiguousarray(pixels[..., :1])
        return bytes(simplejpeg.encode_jpeg(grey, quality=quality, colorspace="GRAY", colorsubsampling="Gray"))
    if kind.startswith("progressive"):
        return jpeg(pixels, quality, progressive=True, subsampling=int(kind[-1]))
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorsubsampling=kind))


def whole(data: bytes) -> np.ndarray:
    pixels: np.ndarray = simplejpeg.decode_jpeg(data, colorspace="RGB")
    return pixels


def box_in(height: int, width: int, shares: tuple[float, float, float, float]) -> Box:
    """Return a box of at least one pixel: left and top by share, then sides by share of what is left."""
    left, top = int(shares[0] * width), int(shares[1] * height)
    left, top = min(left, width - 1), min(top, height - 1)
    right = left + max(1, round(shares[2] * (width - left)))
    bottom = top + max(1, round(shares[3] * (height - top)))
    return left, top, right, bottom


# Mean over the view, of 255, on coloured noise. In 15,000 random cases brightness is never off by more than 2.8, and by
# at least 6.1 in a view that is only mirrored. Colours may be off: where they are halved in one direction only, libjpeg
# shrinks them to less than the view could show; 4:1:1 has them at a quarter to begin with. Most seen, all in views of 8
# px: 4.5, 7.5 for 4:4:0, 9.1 for progressive 4:2:2, 10.3 for 4:2:2, 21.3 for 4:1:1.
MOST_BRIGHTNESS_OFF = 4.0
MOST_COLOUR_OFF = {"422": 12.0, "440": 10.0, "progressive 1": 12.0, "411": 24.0}
MOST_OF_OTHERS = 6.0
LUMA = np.array([0.299, 0.587, 0.114])

SHARES = st.tuples(*[st.floats(0, 1)] * 4)


class At:
    """A transform that always returns the same placement."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement

    def __call__(self, height: int, width: int, random: Random) -> Placement:
        return self.placement


def rendered(data: bytes, placement: Placement) -> np.ndarray:
    side = placement.side_px if placement.crop is None else placement.crop[2] - placement.crop[0]
    out = np.full((side, side, 3), 77, np.uint8)
    render(data, At(placement), Random(0), out, is_trusted=True)
    return out


def expected(pixels: np.ndarray, placement: Placement) -> np.ndarray:
    """Do the same with a fully decoded image and Pillow alone."""
    left, top, right, bottom = placement.box
    image = Image.fromarray(np.ascontiguousarray(pixels[top:bottom, left:right]))
    image = image.resize((placement.side_px, placement.side_px), Image.Resampling.BILINEAR)
    if placement.crop:
        image = image.crop(placement.crop)
    view = np.asarray(image)
    return view[:, ::-1] if placement.flip else view


# Decoding in part


@settings(max_examples=400)
@given(KINDS, SIZES, SIZES, QUALITIES, SHARES, st.integers(0, 5))
@example("420", 150, 150, 95, (0.5, 0.9, 1.0, 1.0), 0)
@example("411", 33, 150, 95, (0.3, 0.3, 0.1, 0.1), 1)
def test_a_decoded_region_is_the_whole_image_cut_to_the_last_bit(
    kind: str, height: int, width: int, quality: int, shares: tuple[float, float, float, float], seed: int
) -> None:
    data = encoded(kind, height, width, quality, seed)
    left, top, right, bottom = box = box_in(height, width, shares)
    for is_trusted in (False, True):
        region = decode_region(data, box, is_trusted=is_trusted)
        assert (region.width, region.height) == (right - left, bottom - top)
        assert np.array_equal(region.pixels, whole(data)[top:bottom, left:right])


@settings(max_examples=150)
@given(KINDS, SIZES, SIZES, st.sampled_from([2, 4, 8]), SHARES)
def test_a_region_decoded_at_a_fraction_is_the_whole_at_that_fraction_cut(
    kind: str, height: int, width: int, shrink: int, shares: tuple[float, float, float, float]
) -> None:
    data = encoded(kind, height, width, 90)
    scaled_height, scaled_width = -(-height // shrink), -(-width // shrink)
    everything = decode_region(data, (0, 0, scaled_width, scaled_height), shrink, is_trusted=True).pixels
    assert everything.shape == (scaled_height, scaled_width, 3)
    left, top, right, bottom = box = box_in(scaled_height, scaled_width, shares)
    region = decode_region(data, box, shrink, is_trusted=True)
    assert np.array_equal(region.pixels, everything[top:bottom, left:right])


@pytest.mark.parametrize("size", [(400, 640), (333, 501)])
@pytest.mark.parametrize("kind", ["444", "422", "420", "440", "411", "Gray", "progressive 2"])
def test_boxes_at_every_offset_of_a_unit_are_exact(kind: str, size: tuple[int, int]) -> None:
    height, width = size
    data = encoded(kind, height, width, 85)
    pixels = whole(data)
    for offset in range(0, 34, 3):
        box = (100 + offset, 60 + offset, 100 + 2 * offset + 1, 61 + 3 * offset)
        left, top, right, bottom = box
        region = decode_region(data, box, is_trusted=True)
        assert np.array_equal(region.pixels, pixels[top:bottom, left:right])


@pytest.mark.parametrize(
    "box", [(-1, 0, 5, 5), (0, -1, 5, 5), (0, 0, 65, 5), (0, 0, 5, 49), (5, 5, 5, 9), (5, 5, 9, 5), (60, 0, 70, 9)]
)
def test_a_box_outside_the_image_is_rejected(box: Box) -> None:
    if box[2] > box[0] and box[3] > box[1]:
        with pytest.raises(BadImage, match="not inside"):
            decode_region(jpeg(picture(0)), box)
    else:
        with pytest.raises(BadImage):
            decode_region(jpeg(picture(0)), box)


def test_a_box_outside_the_shrunk_image_is_rejected() -> None:
    data = jpeg(picture(0))  # 48 x 64
    assert decode_region(data, (0, 0, 32, 24), 2).width == 32
    with pytest.raises(BadImage, match="not inside"):
        decode_region(data, (0, 0, 33, 24), 2)


@given(st.integers(1, 40), st.integers(1, 3), st.booleans(), st.integers(0, 5))
def test_packed_pixels_are_those_of_numpy_and_no_byte_beyond_them_is_touched(
    width: int, height: int, flip: bool, seed: int
) -> None:
    rgbx = np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)
    around = np.full(height * width * 3 + 32, 7, np.uint8)
    out = around[16:-16].reshape(height, width, 3)
    pack_rgb(rgbx.__array_interface__["data"][0], flip, out)
    assert np.array_equal(out, rgbx[:, :: -1 if flip else 1, :3])
    assert np.all(around[:16] == 7)
    assert np.all(around[-16:] == 7)


@pytest.mark.parametrize("memory", [np.zeros(16, np.uint8), np.full(1 << 20, 9, np.uint8)])
def test_memory_that_is_used_again_changes_no_pixel(memory: np.ndarray) -> None:
    data = encoded("420", 90, 120, 85)
    assert np.array_equal(decode_region(data, (3, 5, 100, 70), 1, memory).pixels, whole(data)[5:70, 3:100])


# Rendering


@settings(max_examples=150)
@given(KINDS, SIZES, SIZES, QUALITIES, SHARES, st.integers(38, 80), st.booleans())
def test_a_view_without_shrinking_is_pillows_of_the_whole_image_to_the_last_bit(
    kind: str,
    height: int,
    width: int,
    quality: int,
    shares: tuple[float, float, float, float],
    side_px: int,
    flip: bool,
) -> None:
    data = encoded(kind, height, width, quality, seed=height)
    placement = Placement(box_in(height, width, shares), side_px, flip=flip)
    assert np.array_equal(rendered(data, placement), expected(whole(data), placement))
    margin = side_px // 5
    cropped = placement._replace(crop=(margin, 1, margin + side_px // 2, 1 + side_px // 2))
    assert np.array_equal(rendered(data, cropped), expected(whole(data), cropped))


@pytest.mark.parametrize(("side", "is_exact"), [(63, True), (64, False)])
def test_decoding_shrinks_only_where_twice_the_wanted_pixels_are_left(side: int, is_exact: bool) -> None:
    data = jpeg(picture(3, 200, 240), 95)
    placement = Placement((7, 9, 7 + side, 9 + 100), 16)
    same = np.array_equal(rendered(data, placement), expected(whole(data), placement))
    assert same == is_exact


@settings(max_examples=60)
@given(KINDS, st.integers(200, 700), st.integers(200, 700), SHARES, st.integers(8, 24), st.booleans())
def test_a_shrunk_view_is_within_a_small_mean_error_of_the_unshrunk_one(
    kind: str, height: int, width: int, shares: tuple[float, float, float, float], side_px: int, flip: bool
) -> None:
    data = encoded(kind, height, width, 95)
    left, top, right, bottom = box_in(height, width, (shares[0] / 3, shares[1] / 3, shares[2], shares[3]))
    right, bottom = max(right, left + 4 * side_px), max(bottom, top + 4 * side_px)
    placement = Placement((left, top, min(right, width), min(bottom, height)), side_px, flip=flip)
    off = rendered(data, placement).astype(int) - expected(whole(data), placement)
    assert np.abs(off @ LUMA).mean() < MOST_BRIGHTNESS_OFF
    assert np.abs(off).mean() < MOST_COLOUR_OFF.get(kind, MOST_OF_OTHERS)


def test_the_last_columns_and_rows_of_a_size_that_the_shrinkage_does_not_divide_are_shown() -> None:
    pixels = np.zeros((203, 205, 3), np.uint8)
    pixels[-40:], pixels[:, -40:] = 255, 255
    data = encode_jpeg(pixels, 95)
    placement = Placement((0, 0, 205, 203), 20)
    view = rendered(data, placement).astype(int)
    assert np.abs(view - expected(whole(data), placement)).mean() < 4.0
    assert view[-3:].min() > 240
    assert view[:, -3:].min() > 240
    assert view[:15, :15].max() < 15


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(Image.fromarray(picture(1)), "JPEG", quality=95, exif=exif)


SPECIAL = {
    **{f"EXIF orientation {number}": turned(number) for number in range(1, 9)},
    "PNG": saved(Image.fromarray(picture(2)), "PNG"),
    "CMYK": saved(Image.fromarray(picture(3)).convert("CMYK"), "JPEG", quality=95),
    "16 bit": saved(Image.fromarray(picture(4)[..., 0].astype(np.uint16) * 257), "PNG"),
    "alpha": saved(Image.fromarray(np.dstack([picture(5), picture(6)[..., :1]])), "PNG"),
    "grey with alpha": saved(Image.fromarray(picture(5)).convert("LA"), "PNG"),
    "palette": saved(Image.fromarray(picture(7)).convert("P"), "PNG"),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_images_of_every_other_kind_show_what_decode_returns(kind: str) -> None:
    data = SPECIAL[kind]
    pixels = decode(data)
    height, width = pixels.shape[:2]
    assert (height > width) == (kind in {f"EXIF orientation {number}" for number in range(5, 9)})
    for view in (PretrainView(24), FinetuneView(30, 24), EvaluationView(24)):
        for seed in range(3):
            out = np.empty((24, 24, 3), np.uint8)
            render(data, view, Random(seed), out)
            assert np.array_equal(out, expected(pixels, view(height, width, Random(seed))))


@pytest.mark.parametrize("kind", ["444", "420", "progressive 2"])
def test_a_truncated_image_is_rejected_and_the_rows_above_the_damage_are_no_excuse_for_a_whole_view(
    kind: str,
) -> None:
    data = encoded(kind, 90, 120, 90)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(BadImage) as raised:
            rendered(data[: int(share * len(data))], Placement((0, 0, 120, 90), 40))
        assert raised.value.reason in ("truncated", "not-an-image")


@settings(max_examples=150)
@given(st.sampled_from(["444", "420", "progressive 1", "Gray"]), st.data())
def test_whatever_bytes_come_a_view_is_made_or_badimage_is_raised(kind: str, data: st.DataObject) -> None:
    body = bytearray(encoded(kind, 64, 80, 80))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(2, len(body) - 1))] = data.draw(st.integers(0, 255))
    out = np.empty((32, 32, 3), np.uint8)
    reason = "truncated"
    try:
        render(bytes(body[: data.draw(st.integers(0, len(body)))]), EvaluationView(32), Random(0), out)
    except BadImage as error:
        reason = error.reason
    assert reason in ("empty", "not-an-image", "truncated", "too-large", "too-slow")


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "empty"), (b"text", "not-an-image"), (b"\xff\xd8\xff", "not-an-image")]
)
def test_what_is_no_image_is_rejected(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage) as raised:
        rendered(data, Placement((0, 0, 1, 1), 8))
    assert raised.value.reason == reason


def test_an_output_of_another_size_than_the_view_is_rejected() -> None:
    with pytest.raises(ConfigError, match="8 x 8 pixels, 9 are wanted"):
        render(jpeg(picture(0)), EvaluationView(8), Random(0), np.empty((9, 9, 3), np.uint8))
