"""The join is exact, symmetric, and independent of how the upstream set is cut."""

import faiss
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.audit.base.tables import Evidence
from cluster.audit.search.join import candidates, cap_hubs, hamming_pairs, index_downstream
from cluster.audit.verify.best_match import keep_best_matches
from pipeline.image.fingerprint import CODE_BYTES, dihedral_codes


def random_codes(count: int, seed: int) -> np.ndarray:
    codes = np.random.default_rng(seed).integers(0, 256, (count, CODE_BYTES), dtype=np.uint8)
    codes[:, 0] &= 0x7F  # the constant frequency's bit is never set
    return codes


def flipped(code: np.ndarray, num_bits: int, seed: int) -> np.ndarray:
    bits = np.unpackbits(code)
    bits[1 + np.random.default_rng(seed).choice(255, num_bits, replace=False)] ^= 1
    return np.packbits(bits)


def table(codes: np.ndarray, shard: int = 0) -> pa.Table:
    rows = np.arange(len(codes), dtype=np.int32)
    return pa.table(
        [
            pa.array(np.full(len(codes), shard, np.int32)),
            pa.array(rows),
            pa.array([c.tobytes() for c in codes], pa.binary(32)),
        ],
        names=["shard", "row", "code"],
    )


def brute_force(indexed: np.ndarray, queries: np.ndarray, radius: int) -> set[tuple[int, int, int]]:
    distance = np.bitwise_count(queries[:, None] ^ indexed[None]).sum(-1)
    return {(int(q), int(i), int(distance[q, i])) for q, i in zip(*np.nonzero(distance <= radius), strict=True)}


@settings(max_examples=25)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 130), st.integers(0, 5))
def test_the_pairs_are_those_of_brute_force(num_indexed: int, num_queries: int, radius: int, seed: int) -> None:
    indexed, queries = random_codes(num_indexed, seed), random_codes(num_queries, seed + 100)
    for number in range(min(num_indexed, num_queries)):
        queries[number] = flipped(indexed[number], min(radius + number % 3 - 1, 200) if radius else 0, number)
    found = list(zip(*(part.tolist() for part in hamming_pairs(indexed, queries, radius)), strict=True))
    assert found == sorted(found)
    assert set(found) == brute_force(indexed, queries, radius)


@pytest.mark.parametrize(("radius", "distance"), [(31, 0), (31, 1), (31, 31), (62, 0), (62, 31), (62, 61), (62, 62)])
@pytest.mark.parametrize("element", range(8))
def test_a_turned_copy_is_found_at_its_distance_and_turn(radius: int, distance: int, element: int) -> None:
    down = random_codes(30, 1)
    up = random_codes(40, 2)
    up[17] = flipped(dihedral_codes(down[9:10])[element, 0], distance, 3)
    found = candidates(table(up), table(down), radius).to_pylist()
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
        (r["up_row"], r["down_row"], r["distance"]) for r in candidates(table(up), table(down), radius).to_pylist()
    }
    assert found == {(int(u), int(d), int(apart[u, d])) for u, d in zip(*np.nonzero(apart <= radius), strict=True)}


def test_the_pairs_are_those_of_faiss() -> None:
    indexed, queries = random_codes(3000, 8), random_codes(500, 9)
    for number in range(200):
        queries[number] = flipped(indexed[7 * number], number % 75, number)
    flat = faiss.IndexBinaryFlat(256)
    flat.add(indexed)
    for radius in (31, 62):
        limits, _, ids = flat.range_search(queries, radius + 1)
        expected = set(zip(np.repeat(np.arange(500), np.diff(limits).astype(int)).tolist(), ids.tolist(), strict=True))
        query, match, _ = hamming_pairs(indexed, queries, radius)
        assert set(zip(query.tolist(), match.tolist(), strict=True)) == expected


def test_more_pairs_than_expected_are_all_given() -> None:
    alike = np.zeros((300, CODE_BYTES), np.uint8)
    for radius in (31, 62):
        assert len(hamming_pairs(alike, alike, radius)[0]) == 90_000


def test_a_variant_code_finds_its_picture() -> None:
    down, up = random_codes(5, 11), random_codes(6, 12)
    others = random_codes(2, 13)
    up[4] = flipped(others[1], 20, 1)
    variants = pa.array([[], [], [c.tobytes() for c in others], [], []], pa.list_(pa.binary(32)))
    side = table(down).append_column("variant_codes", variants)
    found = candidates(table(up), side, 62).to_pylist()
    assert [(r["up_row"], r["down_row"], r["distance"]) for r in found] == [(4, 2, 20)]
    index = index_downstream(side, 62)
    assert candidates(table(up), index, 62).to_pylist() == found
    with pytest.raises(ValueError, match="radius 62, the join wants 31"):
        candidates(table(up), index, 31)


def test_one_bit_beyond_the_radius_is_not_found() -> None:
    down = random_codes(5, 1)
    up = np.stack([flipped(down[2], 63, 4)])
    assert candidates(table(up), table(down), 62).num_rows == 0


def test_both_directions_give_the_same_pairs() -> None:
    down, up = random_codes(50, 5), random_codes(60, 6)
    for number in range(20):
        up[number] = flipped(dihedral_codes(down[number : number + 1])[number % 8, 0], 3 * number, number)
    forward = candidates(table(up), table(down), 62).to_pylist()
    backward = candidates(table(down), table(up), 62).to_pylist()
    assert len(forward) == 20
    assert {(r["up_row"], r["down_row"], r["distance"]) for r in forward} == {
        (r["down_row"], r["up_row"], r["distance"]) for r in backward
    }


def test_a_pair_found_under_several_turns_is_listed_once_at_its_best() -> None:
    symmetric = np.zeros((1, CODE_BYTES), np.uint8)
    found = candidates(table(symmetric), table(symmetric), 100).to_pylist()
    assert [(r["distance"], r["element"]) for r in found] == [(0, 0)]


def test_hubs_keep_their_closest_matches_whatever_the_order() -> None:
    down = random_codes(3, 7)
    up = np.stack([flipped(down[1], bits, bits) for bits in range(0, 40, 2)])
    pairs = candidates(table(up), table(down), 62)
    shuffled = pairs.take(pa.array(np.random.default_rng(0).permutation(pairs.num_rows)))
    kept, hubs = cap_hubs(pairs, 6)
    assert kept.equals(cap_hubs(shuffled, 6)[0])
    assert kept["distance"].to_pylist() == [0, 2, 4, 6, 8, 10]
    assert hubs == {(0, 1): 20}


_fresh = iter(range(1000, 2000))


def pair(
    up_row: int, distance: int, correlation: float, evidence: Evidence = Evidence.NEAR, quality: int = 90
) -> dict[str, object]:
    """Return a verified pair with a downstream picture of its own."""
    return {
        "up_shard": 0,
        "up_row": up_row,
        "down_shard": 0,
        "down_row": next(_fresh),
        "distance": distance,
        "correlation": correlation,
        "quality": quality,
        "evidence": str(evidence),
    }


def test_a_weak_match_yields_to_a_far_better_one_and_a_strong_match_to_none() -> None:
    rows = [
        pair(0, 4, 0.999), pair(0, 50, 0.96), pair(0, 20, 0.97),  # the copy, a look-alike, a second strong match
        pair(1, 50, 0.96),  # alone
        pair(2, 50, 0.93),  # alone
        pair(3, 50, 0.97), pair(3, 52, 0.965),  # two equals
        pair(4, 50, 0.8, Evidence.SIMILAR), pair(5, 60, 0.99, Evidence.SAME_BYTES),
        pair(6, 40, 0.99, quality=20), pair(7, 30, 0.99, quality=20),  # plain pictures: weak and strong
    ]  # fmt: skip
    settled = keep_best_matches(pa.Table.from_pylist(rows))["evidence"].to_pylist()
    near, similar = str(Evidence.NEAR), str(Evidence.SIMILAR)
    assert settled == [near, similar, near, near, near, near, near, similar, str(Evidence.SAME_BYTES), similar, near]


def test_rivals_count_on_both_sides() -> None:
    rows = [pair(number, 40, correlation) for number, correlation in ((0, 0.999), (1, 0.97), (2, 0.97))]
    rows[1]["down_row"] = rows[0]["down_row"]
    for one, other in (("up", "down"), ("down", "up")):
        swapped = [
            row | {f"{one}_row": row[f"{other}_row"], f"{other}_row": row[f"{one}_row"]} if one == "down" else row
            for row in rows
        ]
        settled = keep_best_matches(pa.Table.from_pylist(swapped))["evidence"].to_pylist()
        assert settled == [str(Evidence.NEAR), str(Evidence.SIMILAR), str(Evidence.NEAR)]
