"""A copy is recognised through crops, turns, tone and borders; other pictures and plain shapes are not."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from cluster.audit.base.tables import Evidence
from cluster.audit.report.pair_pages import difference
from cluster.audit.search.variants import variant_codes
from cluster.audit.verify.align import align
from cluster.audit.verify.evidence import Verdict, verify_pair
from pipeline.image.decode import Pixels, decode
from pipeline.image.fingerprint import apply_dihedral, fingerprint
from tests.conftest import jpeg


def scene(seed: int, width: int = 240, height: int = 180) -> Pixels:
    """A picture with objects of all sizes."""
    generator = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), tuple(generator.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(90):
        size = generator.exponential(18) + 4
        x, y = generator.uniform(0, width), generator.uniform(0, height)
        shape = draw.ellipse if generator.random() < 0.5 else draw.rectangle
        shape(
            (x, y, x + size, y + size * generator.uniform(0.4, 2)), fill=tuple(generator.integers(0, 256, 3).tolist())
        )
    return np.asarray(image)


def verdict(one: Pixels, other: Pixels, quality: int = 90) -> Verdict:
    return verify_pair(b"a", b"b", one, other, min_quality=quality, distance=50)


ALTERED = {
    "crop": lambda p: p[20:150, 30:220],
    "small": lambda p: np.asarray(Image.fromarray(p).resize((60, 45), Image.Resampling.BOX)),
    "darker": lambda p: (p * 0.6).astype(np.uint8),
    "recompressed": lambda p: decode(jpeg(p, 20)),
    "bordered": lambda p: np.asarray(ImageOps.expand(Image.fromarray(p), 25, "white")),
    "rotated": lambda p: np.asarray(Image.fromarray(p).rotate(6, Image.Resampling.BICUBIC))[15:165, 20:220],
    "mirrored and cropped": lambda p: np.ascontiguousarray(p[10:160, 20:200][:, ::-1]),
}


@pytest.mark.parametrize("name", ALTERED)
def test_an_altered_copy_is_recognised_in_both_directions(name: str) -> None:
    pixels = scene(1)
    copy = np.ascontiguousarray(ALTERED[name](pixels))
    forth, back = verdict(copy, pixels), verdict(pixels, copy)
    assert forth.evidence == back.evidence == Evidence.NEAR
    assert forth.correlation == back.correlation
    assert forth.alignment
    assert back.alignment
    assert forth.alignment.agreement == back.alignment.agreement
    assert np.allclose(forth.alignment.affine, back.alignment.inverse.affine, atol=1e-3)


@pytest.mark.parametrize("element", range(8))
def test_every_turn_is_recognised_and_named(element: int) -> None:
    pixels = scene(2)
    found = verdict(np.ascontiguousarray(apply_dihedral(pixels, element)[:-3]), pixels)
    assert found.evidence == Evidence.NEAR
    assert found.alignment
    assert found.alignment.element == element


def test_the_difference_from_a_smaller_copy_covers_the_whole_picture() -> None:
    pixels = scene(1)
    apart = difference(pixels, ALTERED["small"](pixels))
    assert (apart != 128).any(axis=2).mean() > 0.99


@pytest.mark.parametrize("name", ["crop", "bordered", "rotated", "mirrored and cropped"])
def test_the_difference_shows_one_picture_laid_over_the_other(name: str) -> None:
    pixels = scene(1)
    copy = np.ascontiguousarray(ALTERED[name](pixels)).astype(np.uint8)
    apart = difference(pixels, copy)
    covered = (apart != 128).any(axis=2)
    assert covered.mean() == pytest.approx(1.0 if name == "bordered" else copy.size / pixels.size, abs=0.03)
    assert apart[covered].mean() < 6 < np.abs(pixels.astype(int) - scene(3)).mean()


def test_other_pictures_are_refused() -> None:
    scenes = [scene(seed) for seed in range(10, 18)]
    found = [verdict(a, b).evidence for number, a in enumerate(scenes) for b in scenes[:number]]
    assert set(found) == {Evidence.REJECTED}


@pytest.mark.parametrize("seed", [22, 24, 26])
def test_a_small_picture_is_recognised_by_its_features(seed: int) -> None:
    """At 64 px a frame and strong compression leave too little detail to be sure without them."""
    small = Image.fromarray(scene(seed, 256, 256)).resize((64, 64), Image.Resampling.BOX)
    framed = decode(jpeg(np.asarray(ImageOps.expand(small, 4, "white")), 30))
    assert verdict(framed, np.asarray(small)).evidence == Evidence.NEAR
    assert verdict(framed, scene(seed + 100, 64, 64)).evidence == Evidence.REJECTED


def test_the_same_place_with_another_object_is_no_duplicate() -> None:
    background, other = scene(3), scene(4)
    changed = background.copy()
    changed[30:150, 50:190] = other[30:150, 50:190]
    assert not verdict(changed, background).evidence.is_duplicate


def ellipse(width: int, height: int, colour: str) -> Pixels:
    image = Image.new("RGB", (240, 180), "white")
    ImageDraw.Draw(image).ellipse((120 - width, 90 - height, 120 + width, 90 + height), fill=colour)
    return np.asarray(image)


def test_plain_shapes_that_fit_each_other_are_no_duplicates() -> None:
    assert not verdict(ellipse(80, 60, "navy"), ellipse(88, 55, "navy")).evidence.is_duplicate


def test_flat_pictures_count_only_when_equal() -> None:
    flat = np.full((50, 60, 3), 128, np.uint8)
    assert verdict(flat, flat + 1, quality=0).evidence == Evidence.REJECTED
    assert verdict(flat, flat.copy(), quality=0).evidence == Evidence.SAME_PIXELS
    assert verify_pair(b"a", b"a", flat, flat, min_quality=0, distance=0).evidence == Evidence.SAME_BYTES


def test_pairs_of_an_embedding_are_called_so() -> None:
    pixels = scene(5)
    crop = np.ascontiguousarray(pixels[:120, :160])
    assert verify_pair(b"a", b"b", crop, pixels, min_quality=90, distance=None).evidence == Evidence.EMBEDDED


@pytest.mark.parametrize("shape", [(8, 8), (8, 300), (300, 9), (1, 1)])
def test_pictures_of_any_shape_are_compared(shape: tuple[int, int]) -> None:
    assert -1 <= align(np.ascontiguousarray(scene(6)[: shape[0], : shape[1]]), scene(7)).agreement.correlation <= 1


def test_a_border_is_met_by_a_variant() -> None:
    pixels = scene(8)
    for framed in (
        ImageOps.expand(Image.fromarray(pixels), (24, 18), "black"),
        ImageOps.pad(Image.fromarray(pixels), (240, 240)),
    ):
        codes = [np.frombuffer(code, np.uint8) for code in variant_codes(pixels)]
        wanted = np.frombuffer(fingerprint(np.asarray(framed))[0], np.uint8)
        assert min(int(np.bitwise_count(code ^ wanted).sum()) for code in codes) <= 31
        back = [np.frombuffer(code, np.uint8) for code in variant_codes(np.asarray(framed))]
        own = np.frombuffer(fingerprint(pixels)[0], np.uint8)
        assert min(int(np.bitwise_count(code ^ own).sum()) for code in back) <= 31
