"""Which candidates are verified: the same for any shards in any order, and whoever has more is said to be unchecked."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from cluster.audit.base.tables import CANDIDATE_SCHEMA
from cluster.audit.result.exclusion_lists import element_name
from cluster.audit.search.matches import MATCH_SCHEMA, cap_matches, merged_matches, shard_matches

RADIUS = 62
VECTOR_SCHEMA = pa.schema([*CANDIDATE_SCHEMA, pa.field("cosine", pa.float32())])


class Pair(NamedTuple):
    """A pair as the searches see it."""

    up: int
    down: int
    bits: int  # above RADIUS: not of the search by code
    cosine: float | None  # None: not of the search by vector
    known: str | None


@st.composite
def pairs_of(draw: st.DrawFn) -> list[Pair]:
    """Pairs of up to fifty upstream pictures with three downstream ones, with many ties."""
    places = draw(st.sets(st.tuples(st.integers(0, 49), st.integers(0, 2)), max_size=60))
    pairs = []
    for up, down in sorted(places):
        known = draw(st.sampled_from([None, None, None, None, "same bytes"]))
        bits = 0 if known else draw(st.sampled_from([10, 30, RADIUS, 90, 128]))
        cosine = draw(st.sampled_from([None, 0.5, 0.75, 0.875]))
        if bits <= RADIUS or cosine is not None:
            pairs.append(Pair(up, down, bits, cosine, known))
    return pairs


def tie(up: int) -> int:
    """Return what stands for the bytes of an upstream picture where pairs are equally close."""
    return (up * 37 + 11) % 101


def verified(
    pairs: list[Pair], num_shards: int, most: int, *, is_reversed: bool = False
) -> tuple[set[tuple[int, int]], list[dict[str, Any]], int]:
    """Cut the upstream set into shards, and return the pairs that are verified, the hubs, and all candidates.

    Args:
        pairs: Of all pictures.
        num_shards: Of the upstream set.
        most: Matches that are verified.
        is_reversed: Whether the upstream pictures come in the opposite order.
    """
    size = -(-50 // num_shards)
    order = list(range(50))[:: -1 if is_reversed else 1]
    by_shard: dict[int, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_shard[order[pair.up] // size].append(pair)
    tables = [pa.schema([CANDIDATE_SCHEMA.field("up_shard"), *MATCH_SCHEMA]).empty_table()]
    for shard, own in sorted(by_shard.items()):
        rows = [
            {"up_shard": shard, "up_row": order[pair.up] % size, "down_shard": 0, "down_row": pair.down,
             "distance": pair.bits, "element": 0, "cosine": pair.cosine}
            for pair in own
        ]  # fmt: skip
        near = [row for row in rows if row["distance"] <= RADIUS]
        close = [row for row in rows if row["cosine"] is not None]
        known = {(order[pair.up] % size, 0, pair.down): pair.known for pair in own if pair.known}
        found = shard_matches(
            pa.Table.from_pylist(near, schema=CANDIDATE_SCHEMA),
            pa.Table.from_pylist(close, schema=VECTOR_SCHEMA),
            known,
            [tie(up) for up in order[shard * size : (shard + 1) * size]],
            most,
        )
        tables.append(found.add_column(0, "up_shard", pa.array([shard] * found.num_rows, pa.int32())))
    kept, hubs, num_candidates = cap_matches(pa.concat_tables(tables), most, RADIUS)
    return (
        {(order[row["up_shard"] * size + row["up_row"]], row["down_row"]) for row in kept.to_pylist()},
        hubs.to_pylist(),
        num_candidates,
    )


@settings(max_examples=100)
@given(pairs_of(), st.integers(1, 5))
def test_what_is_verified_does_not_depend_on_the_number_of_shards_nor_on_their_order(
    pairs: list[Pair], most: int
) -> None:
    one = verified(pairs, 1, most)
    assert verified(pairs, 2, most) == one
    assert verified(pairs, 50, most) == one
    assert verified(pairs, 2, most, is_reversed=True) == one
    assert verified(pairs, 50, most, is_reversed=True) == one


@settings(max_examples=100)
@given(pairs_of(), st.integers(1, 5), st.lists(st.integers(0, 50), max_size=3))
def test_the_parts_of_a_shard_have_the_matches_of_the_whole(pairs: list[Pair], most: int, cuts: list[int]) -> None:
    def matches_of(rows: range) -> pa.Table:
        own = [pair for pair in pairs if pair.up in rows]
        listed = [
            {"up_shard": 0, "up_row": pair.up, "down_shard": 0, "down_row": pair.down, "distance": pair.bits,
             "element": 0, "cosine": pair.cosine}
            for pair in own
        ]  # fmt: skip
        return shard_matches(
            pa.Table.from_pylist([row for row in listed if row["distance"] <= RADIUS], schema=CANDIDATE_SCHEMA),
            pa.Table.from_pylist([row for row in listed if row["cosine"] is not None], schema=VECTOR_SCHEMA),
            {(pair.up, 0, pair.down): pair.known for pair in own if pair.known},
            [tie(up) for up in range(50)],
            most,
        )

    edges = [0, *sorted(cuts), 50]
    parts = [matches_of(range(begin, end)) for begin, end in pairwise(edges)]
    assert merged_matches(parts, most, RADIUS).equals(matches_of(range(50)))


@settings(max_examples=100)
@given(pairs_of(), st.integers(1, 5))
def test_the_closest_by_each_search_are_verified_with_all_that_is_proven_and_the_rest_makes_a_hub(
    pairs: list[Pair], most: int
) -> None:
    kept, hubs, num_candidates = verified(pairs, 2, most)
    expected, full = set(), []
    for down in range(3):
        own = [pair for pair in pairs if pair.down == down]
        unproven = [pair for pair in own if not pair.known]
        near = sorted((pair for pair in unproven if pair.bits <= RADIUS), key=lambda pair: (pair.bits, tie(pair.up)))
        close = [pair for pair in unproven if pair.cosine]
        close.sort(key=lambda pair: (-(pair.cosine or 0), tie(pair.up)))
        chosen = {pair.up for pair in [*near[:most], *close[:most], *(pair for pair in own if pair.known)]}
        expected |= {(up, down) for up in chosen}
        if len(own) > len(chosen):
            full.append((-len(own), down))
    assert kept == expected
    assert num_candidates == len(pairs)
    assert [(-hub["num_matches"], hub["row"]) for hub in hubs] == sorted(full)


def test_a_pair_beyond_the_cap_by_code_is_verified_where_its_vectors_are_the_closest() -> None:
    pairs = [Pair(up, 0, 10 + up, 0.5, None) for up in range(5)]
    pairs[4] = pairs[4]._replace(cosine=0.99)
    kept, hubs, _ = verified(pairs, 50, 2)
    assert kept == {(0, 0), (1, 0), (4, 0)}
    assert hubs == [{"shard": 0, "row": 0, "num_matches": 5}]


@pytest.mark.parametrize("num_shards", [1, 50])
def test_a_picture_all_of_whose_candidates_are_verified_is_no_hub(num_shards: int) -> None:
    pairs = [Pair(up, 0, 0, None, "same bytes") for up in range(30)]
    kept, hubs, num_candidates = verified(pairs, num_shards, 3)
    assert (len(kept), hubs, num_candidates) == (30, [], 30)


Within = dict[tuple[int, int], tuple[int, float | None]]  # bits and cosine of pairs of a set


@st.composite
def pairs_within(draw: st.DrawFn) -> Within:
    """Pairs of a set of twelve, with many ties."""
    places = draw(st.sets(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=40))
    found: Within = {}
    for one, other in sorted(places):
        bits, cosine = draw(st.sampled_from([10, 30, 90])), draw(st.sampled_from([None, 0.5, 0.75]))
        if one < other and (bits <= RADIUS or cosine is not None):
            found[one, other] = bits, cosine
    return found


def verified_within(
    pairs: Within, order: Sequence[int], size: int, most: int
) -> tuple[set[tuple[int, int]], dict[int, int], int]:
    """Put a set into an order and shards, and return the pairs that are verified, the hubs, and all candidates."""
    place = {picture: number for number, picture in enumerate(order)}
    rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for (one, other), (bits, cosine) in pairs.items():
        for up, down in ((place[one], place[other]), (place[other], place[one])):
            rows[up // size].append(
                {"up_shard": up // size, "up_row": up % size, "down_shard": down // size, "down_row": down % size,
                 "distance": bits, "element": 0, "cosine": cosine}
            )  # fmt: skip
    schema = pa.schema([CANDIDATE_SCHEMA.field("up_shard"), *MATCH_SCHEMA])
    tables = [schema.empty_table()]
    for shard, own in sorted(rows.items()):
        near = pa.Table.from_pylist([row for row in own if row["distance"] <= RADIUS], schema=CANDIDATE_SCHEMA)
        close = pa.Table.from_pylist([row for row in own if row["cosine"] is not None], schema=VECTOR_SCHEMA)
        found = shard_matches(near, close, {}, [tie(up) for up in order[shard * size : (shard + 1) * size]], most)
        tables.append(found.add_column(0, "up_shard", pa.array([shard] * found.num_rows, pa.int32())))
    kept, hubs, num_candidates = cap_matches(pa.concat_tables(tables), most, RADIUS, is_within=True)
    ends = [(row["up_shard"] * size + row["up_row"], row["down_shard"] * size + row["down_row"])
            for row in kept.to_pylist()]  # fmt: skip
    assert all(up < down for up, down in ends)
    assert len(set(ends)) == len(ends)
    named = {(min(order[up], order[down]), max(order[up], order[down])) for up, down in ends}
    of_hubs = {order[row["shard"] * size + row["row"]]: row["num_matches"] for row in hubs.to_pylist()}
    return named, of_hubs, num_candidates


@settings(max_examples=100)
@given(pairs_within(), st.permutations(range(12)), st.sampled_from([1, 5, 12]), st.integers(1, 3))
def test_within_a_set_the_closest_of_either_picture_are_verified_in_any_order(
    pairs: Within, order: list[int], size: int, most: int
) -> None:
    kept, hubs, num_candidates = verified_within(pairs, order, size, most)
    expected = set()
    for picture in range(12):
        own = [(sum(pair) - picture, pair, *about) for pair, about in pairs.items() if picture in pair]
        near = sorted((bits, tie(other), pair) for other, pair, bits, _ in own if bits <= RADIUS)
        close = sorted((-cosine, tie(other), pair) for other, pair, _, cosine in own if cosine)
        expected |= {pair for *_, pair in [*near[:most], *close[:most]]}
    assert kept == expected
    assert num_candidates == len(pairs)
    unverified = {picture for pair in set(pairs) - expected for picture in pair}
    assert hubs == {picture: sum(picture in pair for pair in pairs) for picture in unverified}


def test_a_pair_that_only_the_later_picture_keeps_is_turned_round() -> None:
    left, right = 5, 6
    assert (element_name(left), element_name(right)) == ("turned 90° left", "turned 90° right")
    found = {"up_shard": 0, "up_row": 3, "down_shard": 0, "down_row": 1, "distance": 20, "element": right,
             "cosine": 0.5, "known": None, "num_matches": 1, "tie": 0}  # fmt: skip
    schema = pa.schema([CANDIDATE_SCHEMA.field("up_shard"), *MATCH_SCHEMA])
    kept, _, _ = cap_matches(pa.Table.from_pylist([found], schema=schema), 1, RADIUS, is_within=True)
    assert kept.to_pylist() == [found | {"up_row": 1, "down_row": 3, "element": left}]
