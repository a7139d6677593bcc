"""A copy is recognised through crops, turns, tone and borders; other pictures and plain shapes are not."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from cluster.audit.base.tables import Evidence
from cluster.audit.verify.align import align
from cluster.audit.verify.evidence import Comparison, verify_pair
from pipeline.image.decode import Pixels, decode
from pipeline.image.fingerprint import apply_dihedral
from tests.cluster.audit.audits import ALTERED, ellipse, scene
from tests.conftest import jpeg


def compared(one: Pixels, other: Pixels, quality: int = 90) -> Comparison:
    return verify_pair(b"a", b"b", one, other, min_quality=quality, distance=50)


@pytest.mark.parametrize("name", ALTERED)
def test_an_altered_copy_is_recognised_in_both_directions(name: str) -> None:
    pixels = scene(1)
    copy = np.ascontiguousarray(ALTERED[name](pixels))
    forth, back = compared(copy, pixels), compared(pixels, copy)
    assert forth.evidence == back.evidence == Evidence.NEAR
    assert forth.correlation == back.correlation
    assert forth.alignment
    assert back.alignment
    assert forth.alignment.agreement == back.alignment.agreement
    assert np.allclose(forth.alignment.affine, back.alignment.inverse.affine, atol=1e-3)


@pytest.mark.parametrize("element", range(8))
def test_every_turn_is_recognised_and_named(element: int) -> None:
    pixels = scene(2)
    found = compared(np.ascontiguousarray(apply_dihedral(pixels, element)[:-3]), pixels)
    assert found.evidence == Evidence.NEAR
    assert found.alignment
    assert found.alignment.element == element


def test_other_pictures_are_rejected() -> None:
    scenes = [scene(seed) for seed in range(10, 18)]
    found = [compared(a, b).evidence for number, a in enumerate(scenes) for b in scenes[:number]]
    assert set(found) == {Evidence.REJECTED}


@pytest.mark.parametrize("seed", [22, 24, 26])
def test_a_small_picture_is_recognised_by_its_features(seed: int) -> None:
    """At 64 px a frame and strong compression leave too little detail to be sure without them."""
    small = Image.fromarray(scene(seed, 256, 256)).resize((64, 64), Image.Resampling.BOX)
    framed = decode(jpeg(np.asarray(ImageOps.expand(small, 4, "white")), 30))
    assert compared(framed, np.asarray(small)).evidence == Evidence.NEAR
    assert compared(framed, scene(seed + 100, 64, 64)).evidence == Evidence.REJECTED


def test_the_same_place_with_another_object_is_no_duplicate() -> None:
    background, other = scene(3), scene(4)
    changed = background.copy()
    changed[30:150, 50:190] = other[30:150, 50:190]
    assert not compared(changed, background).evidence.is_duplicate


def test_plain_shapes_that_fit_each_other_are_no_duplicates() -> None:
    assert not compared(ellipse(80, 60), ellipse(88, 55)).evidence.is_duplicate


def test_flat_pictures_count_only_when_equal() -> None:
    flat = np.full((50, 60, 3), 128, np.uint8)
    assert compared(flat, flat + 1, quality=0).evidence == Evidence.REJECTED
    assert compared(flat, flat.copy(), quality=0).evidence == Evidence.SAME_PIXELS
    assert verify_pair(b"a", b"a", flat, flat, min_quality=0, distance=0).evidence == Evidence.SAME_BYTES


def test_pairs_of_an_embedding_are_called_so() -> None:
    pixels = scene(5)
    crop = np.ascontiguousarray(pixels[:120, :160])
    assert verify_pair(b"a", b"b", crop, pixels, min_quality=90, distance=None).evidence == Evidence.EMBEDDED


@pytest.mark.parametrize("shape", [(8, 8), (8, 300), (300, 9), (1, 1)])
def test_pictures_of_any_shape_are_compared(shape: tuple[int, int]) -> None:
    assert -1 <= align(np.ascontiguousarray(scene(6)[: shape[0], : shape[1]]), scene(7)).agreement.correlation <= 1
