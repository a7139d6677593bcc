"""The hash survives what it should, and its eight variants follow from its bits alone."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from pipeline.base.errors import BadImage
from pipeline.image.decode import decode
from pipeline.image.fingerprint import (
    CODE_BYTES,
    DIHEDRAL,
    apply_dihedral,
    dihedral_codes,
    fingerprint,
    fingerprint_of_image,
)
from pipeline.image.policy import ImagePolicy, prepare
from tests.conftest import jpeg, picture

CODES = st.binary(min_size=CODE_BYTES, max_size=CODE_BYTES).map(lambda code: bytes([code[0] & 0x7F]) + code[1:])


def bits(one: bytes, other: bytes) -> int:
    return int(np.bitwise_count(np.frombuffer(one, np.uint8) ^ np.frombuffer(other, np.uint8)).sum())


def as_rows(*codes: bytes) -> np.ndarray:
    return np.frombuffer(b"".join(codes), np.uint8).reshape(-1, CODE_BYTES)


@pytest.mark.parametrize("element", range(len(DIHEDRAL)))
def test_variant_equals_the_hash_of_the_turned_picture(element: int) -> None:
    pixels = picture(7, 64, 64)
    turned = np.ascontiguousarray(apply_dihedral(pixels, element))
    predicted = dihedral_codes(as_rows(fingerprint(pixels)[0]))[element, 0].tobytes()
    assert bits(predicted, fingerprint(turned)[0]) == 0


@given(CODES, CODES)
def test_distances_under_turns_are_symmetric(one: bytes, other: bytes) -> None:
    forward = sorted(bits(v.tobytes(), other) for v in dihedral_codes(as_rows(one))[:, 0])
    backward = sorted(bits(one, v.tobytes()) for v in dihedral_codes(as_rows(other))[:, 0])
    assert forward == backward


def test_variants_are_eight_different_codes_and_the_first_is_the_code_itself() -> None:
    code = fingerprint(picture(8))[0]
    variants = [v.tobytes() for v in dihedral_codes(as_rows(code))[:, 0]]
    assert variants[0] == code
    assert len(set(variants)) == 8


@pytest.mark.parametrize("quality", [10, 30, 85])
def test_recompression_moves_few_bits(quality: int) -> None:
    pixels = picture(9, 240, 320)
    assert bits(fingerprint(pixels)[0], fingerprint(decode(jpeg(pixels, quality)))[0]) <= 20


def test_resizing_moves_few_bits() -> None:
    pixels = picture(10, 240, 320)
    small = np.asarray(Image.fromarray(pixels).resize((80, 60), Image.Resampling.BOX))
    assert bits(fingerprint(pixels)[0], fingerprint(small)[0]) <= 20


def test_different_pictures_are_far_apart() -> None:
    codes = [fingerprint(picture(seed))[0] for seed in range(40)]
    assert min(bits(codes[a], codes[b]) for a in range(40) for b in range(a)) > 62


def test_a_flat_picture_has_no_quality() -> None:
    assert fingerprint(np.full((50, 50, 3), 200, np.uint8))[1] == 0
    assert fingerprint(picture(11))[1] > 10


@pytest.mark.parametrize("size", [(480, 640), (200, 300), (90, 500), (30, 40)])
def test_an_encoded_picture_has_the_fingerprint_of_packing_within_few_bits(size: tuple[int, int]) -> None:
    data = jpeg(picture(12, *size), 85)
    packed = prepare(data, ImagePolicy())
    code, quality = fingerprint_of_image(data)
    assert bits(code, packed.code) <= 20
    assert abs(quality - packed.quality) <= 12


def test_a_truncated_jpeg_is_refused_at_any_size() -> None:
    data = jpeg(picture(13, 480, 640), 85)
    with pytest.raises(BadImage):
        fingerprint_of_image(data[: len(data) // 2])
