"""The join is exact, symmetric, and independent of how the upstream set is cut."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from cluster.audit.search.join import candidates, cap_hubs, index_downstream
from pipeline.image.fingerprint import CODE_BYTES, dihedral_codes
from tests.cluster.audit.search.codes import code_table, flipped, random_codes


@pytest.mark.parametrize(("radius", "distance"), [(31, 0), (31, 1), (31, 31), (62, 0), (62, 31), (62, 61), (62, 62)])
@pytest.mark.parametrize("element", range(8))
def test_a_turned_copy_is_found_at_its_distance_and_turn(radius: int, distance: int, element: int) -> None:
    down = random_codes(30, 1)
    up = random_codes(40, 2)
    up[17] = flipped(dihedral_codes(down[9:10])[element, 0], distance, 3)
    found = candidates(code_table(up), code_table(down), radius).to_pylist()
    assert [(r["up_row"], r["down_row"], r["distance"], r["element"]) for r in found] == [(17, 9, distance, element)]


@settings(max_examples=20)
@given(st.integers(0, 300), st.integers(0, 60), st.sampled_from([0, 17, 31, 32, 62, 69, 70, 110]), st.integers(0, 5))
def test_the_pairs_under_turns_are_those_of_brute_force(num_down: int, num_up: int, radius: int, seed: int) -> None:
    down, up = random_codes(num_down, seed), random_codes(num_up, seed + 100)
    for number in range(min(num_down, num_up)):
        turned = dihedral_codes(down[number : number + 1])[number % 8, 0]
        up[number] = flipped(turned, max(0, radius + number % 3 - 1), number)
    apart = np.bitwise_count(up[None, :, None] ^ dihedral_codes(down)[:, None]).sum(-1).min(axis=0, initial=256)
    found = {
        (r["up_row"], r["down_row"], r["distance"])
        for r in candidates(code_table(up), code_table(down), radius).to_pylist()
    }
    assert found == {(int(u), int(d), int(apart[u, d])) for u, d in zip(*np.nonzero(apart <= radius), strict=True)}


def test_a_variant_code_finds_its_picture() -> None:
    down, up = random_codes(5, 11), random_codes(6, 12)
    others = random_codes(2, 13)
    up[4] = flipped(others[1], 20, 1)
    variants = pa.array([[], [], [c.tobytes() for c in others], [], []], pa.list_(pa.binary(32)))
    side = code_table(down).append_column("variant_codes", variants)
    found = candidates(code_table(up), side, 62).to_pylist()
    assert [(r["up_row"], r["down_row"], r["distance"]) for r in found] == [(4, 2, 20)]
    index = index_downstream(side, 62)
    assert candidates(code_table(up), index, 62).to_pylist() == found
    with pytest.raises(ValueError, match="radius 62, the join is at 31"):
        candidates(code_table(up), index, 31)


def test_one_bit_beyond_the_radius_is_not_found() -> None:
    down = random_codes(5, 1)
    up = np.stack([flipped(down[2], 63, 4)])
    assert candidates(code_table(up), code_table(down), 62).num_rows == 0


def test_both_directions_give_the_same_pairs() -> None:
    down, up = random_codes(50, 5), random_codes(60, 6)
    for number in range(20):
        up[number] = flipped(dihedral_codes(down[number : number + 1])[number % 8, 0], 3 * number, number)
    forward = candidates(code_table(up), code_table(down), 62).to_pylist()
    backward = candidates(code_table(down), code_table(up), 62).to_pylist()
    assert len(forward) == 20
    assert {(r["up_row"], r["down_row"], r["distance"]) for r in forward} == {
        (r["down_row"], r["up_row"], r["distance"]) for r in backward
    }


def test_a_pair_found_under_several_turns_is_listed_once_at_its_best() -> None:
    symmetric = np.zeros((1, CODE_BYTES), np.uint8)
    found = candidates(code_table(symmetric), code_table(symmetric), 100).to_pylist()
    assert [(r["distance"], r["element"]) for r in found] == [(0, 0)]


def test_hubs_keep_their_closest_matches_whatever_the_order() -> None:
    down = random_codes(3, 7)
    up = np.stack([flipped(down[1], bits, bits) for bits in range(0, 40, 2)])
    pairs = candidates(code_table(up), code_table(down), 62)
    shuffled = pairs.take(pa.array(np.random.default_rng(0).permutation(pairs.num_rows)))
    kept, hubs = cap_hubs(pairs, 6)
    assert kept.equals(cap_hubs(shuffled, 6)[0])
    assert kept["distance"].to_pylist() == [0, 2, 4, 6, 8, 10]
    assert hubs == {(0, 1): 20}
