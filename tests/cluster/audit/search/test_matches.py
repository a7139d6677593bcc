"""Which candidates are verified: the same for any number of shards, and whoever has more is said to be unchecked."""

from collections import defaultdict
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from cluster.audit.base.tables import CANDIDATE_SCHEMA
from cluster.audit.search.matches import MATCH_SCHEMA, cap_matches, shard_matches

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


def verified(pairs: list[Pair], num_shards: int, most: int) -> tuple[set[tuple[int, int]], list[dict[str, Any]], int]:
    """Cut the upstream set into shards, and return the pairs that are verified, the hubs, and all candidates."""
    size = -(-50 // num_shards)
    by_shard: dict[int, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_shard[pair.up // size].append(pair)
    tables = [pa.schema([CANDIDATE_SCHEMA.field("up_shard"), *MATCH_SCHEMA]).empty_table()]
    for shard, own in sorted(by_shard.items()):
        rows = [
            {"up_shard": shard, "up_row": pair.up % size, "down_shard": 0, "down_row": pair.down,
             "distance": pair.bits, "element": 0, "cosine": pair.cosine}
            for pair in own
        ]  # fmt: skip
        near = [row for row in rows if row["distance"] <= RADIUS]
        close = [row for row in rows if row["cosine"] is not None]
        known = {(pair.up % size, 0, pair.down): pair.known for pair in own if pair.known}
        found = shard_matches(
            pa.Table.from_pylist(near, schema=CANDIDATE_SCHEMA),
            pa.Table.from_pylist(close, schema=VECTOR_SCHEMA),
            known,
            most,
        )
        tables.append(found.add_column(0, "up_shard", pa.array([shard] * found.num_rows, pa.int32())))
    kept, hubs, num_candidates = cap_matches(pa.concat_tables(tables), most, RADIUS)
    return (
        {(row["up_shard"] * size + row["up_row"], row["down_row"]) for row in kept.to_pylist()},
        hubs.to_pylist(),
        num_candidates,
    )


@settings(max_examples=100)
@given(pairs_of(), st.integers(1, 5))
def test_what_is_verified_does_not_depend_on_the_number_of_shards(pairs: list[Pair], most: int) -> None:
    one = verified(pairs, 1, most)
    assert verified(pairs, 2, most) == one
    assert verified(pairs, 50, most) == one


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
        near = sorted((pair for pair in unproven if pair.bits <= RADIUS), key=lambda pair: (pair.bits, pair.up))
        close = sorted((pair for pair in unproven if pair.cosine), key=lambda pair: (-(pair.cosine or 0), pair.up))
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
