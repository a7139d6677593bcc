"""The range search returns the pairs of brute force and of FAISS: plain and folded, at every radius and size."""

import faiss
import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from cluster.audit.search.hamming import build_index, distances, parity_words, plain_words, search
from pipeline.image.fingerprint import DIHEDRAL, dihedral_codes
from tests.cluster.audit.search.codes import flipped, random_codes

FLIPS = [element for element, (transposed, *_) in enumerate(DIHEDRAL) if not transposed]
# Probing ends at 31; below 70 bits the sieve looks at three words only.
RADII = st.sampled_from([0, 1, 30, 31, 32, 62, 69, 70, 127, 128, 255, 256]) | st.integers(0, 256)


def planted(num_indexed: int, num_queries: int, radius: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (indexed, queries); every other query lies one bit inside, at, or one bit outside the radius of a flip."""
    indexed, queries = random_codes(num_indexed, seed), random_codes(num_queries, seed + 1000)
    for number in range(0, num_queries if num_indexed else 0, 2):
        turned = dihedral_codes(indexed[number % num_indexed][None])[FLIPS[number // 2 % 4], 0]
        queries[number] = flipped(turned, min(max(radius + number // 2 % 3 - 1, 0), 255), seed + number)
    return indexed, queries


def plain_pairs(indexed: np.ndarray, queries: np.ndarray, radius: int) -> list[tuple[int, int]]:
    """Search the codes as they are."""
    found = search(build_index(plain_words(indexed), radius, folded=False), plain_words(queries))
    return list(zip(*(part.tolist() for part in found), strict=True))


def folded_pairs(indexed: np.ndarray, queries: np.ndarray, radius: int) -> list[tuple[int, int]]:
    """Search the codes under all four flips."""
    found = search(build_index(parity_words(indexed), radius, folded=True), parity_words(queries))
    return list(zip(*(part.tolist() for part in found), strict=True))


def within(apart: np.ndarray, radius: int) -> list[tuple[int, int]]:
    """Return the pairs of brute force, by query and then by code, from distances of shape (queries, codes)."""
    return [(int(query), int(code)) for query, code in np.argwhere(apart <= radius)]


@settings(max_examples=60)
@given(st.integers(0, 40), st.integers(0, 40), RADII, st.integers(0, 9))
@example(0, 5, 31, 0)
@example(5, 0, 31, 0)
@example(0, 5, 256, 0)
@example(5, 0, 256, 0)
def test_plain_pairs_are_those_of_brute_force(num_indexed: int, num_queries: int, radius: int, seed: int) -> None:
    indexed, queries = planted(num_indexed, num_queries, radius, seed)
    apart = distances(queries[:, None], indexed[None])
    assert plain_pairs(indexed, queries, radius) == within(apart, radius)


@settings(max_examples=60)
@given(st.integers(0, 40), st.integers(0, 40), RADII, st.integers(0, 9))
@example(0, 5, 31, 0)
@example(5, 0, 31, 0)
@example(0, 5, 256, 0)
@example(5, 0, 256, 0)
def test_folded_pairs_are_those_of_the_nearest_flip(num_indexed: int, num_queries: int, radius: int, seed: int) -> None:
    indexed, queries = planted(num_indexed, num_queries, radius, seed)
    apart = distances(queries[None, :, None], dihedral_codes(indexed)[FLIPS][:, None]).min(axis=0, initial=257)
    assert folded_pairs(indexed, queries, radius) == within(apart, radius)


@pytest.mark.parametrize("radius", [31, 62, 70])
@pytest.mark.parametrize("num_indexed", [255, 256, 257, 1023, 1024, 1025, 2049])
def test_no_code_is_lost_at_the_edges_of_groups_and_tiles(num_indexed: int, radius: int) -> None:
    indexed = random_codes(num_indexed, 1)
    places = sorted({0, 254, 255, 256, 1022, 1023, 1024, 2047, 2048, num_indexed - 1} & set(range(num_indexed)))
    queries = np.stack([flipped(indexed[place], radius, place) for place in places])
    expected = list(enumerate(places))
    assert plain_pairs(indexed, queries, radius) == expected
    assert folded_pairs(indexed, queries, radius) == expected


@pytest.mark.parametrize("flip", [(), (1, 3), (2, 3), (1, 2)])
def test_one_near_chunk_is_enough(flip: tuple[int, ...]) -> None:
    """A pair at radius 31 may have a single chunk that is 1 bit apart: in 15 of 16 chunks it is 2 bits apart."""
    word = np.arange(4, dtype=np.uint64)[None] * np.uint64(0x123456789ABCDEF)
    chunks = np.full((256, 16), 0b11 << 7, np.uint16)
    for bit in range(256):
        chunks[bit, bit // 16] = 1 << bit % 16
    queries = word ^ chunks.view(np.uint64)
    index = build_index(word, 31, folded=bool(flip))
    queries[:, list(flip)] ^= np.uint64(2**64 - 1)
    found, _ = search(index, queries)
    assert found.tolist() == list(range(256))


@pytest.mark.parametrize("radius", [31, 62])
def test_queries_of_several_calls_keep_their_numbers(radius: int) -> None:
    """A call takes 65,536 queries, and a block of its lookups 4,096."""
    indexed, queries = random_codes(3, 2), random_codes(65_540, 3)
    expected = [(0, 0), (4095, 1), (4096, 2), (65_535, 0), (65_536, 1), (65_539, 2)]
    for query, code in expected:
        queries[query] = flipped(indexed[code], radius, query)
    assert plain_pairs(indexed, queries, radius) == expected


@pytest.mark.parametrize("radius", [31, 62])
def test_more_pairs_than_fit_the_first_buffer_are_all_returned(radius: int) -> None:
    alike = np.zeros((300, 32), np.uint8)
    assert len(plain_pairs(alike, alike, radius)) == 90_000


@pytest.mark.parametrize("radius", [31, 62])
def test_the_pairs_are_those_of_faiss(radius: int) -> None:
    indexed, queries = random_codes(3000, 8), random_codes(500, 9)
    for number in range(200):
        queries[number] = flipped(indexed[7 * number], number % 75, number)
    flat = faiss.IndexBinaryFlat(256)
    flat.add(indexed)
    limits, _, ids = flat.range_search(queries, radius + 1)
    expected = zip(np.repeat(np.arange(500), np.diff(limits).astype(int)).tolist(), ids.tolist(), strict=True)
    assert plain_pairs(indexed, queries, radius) == sorted(expected)
