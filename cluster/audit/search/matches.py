"""Which candidates of a picture are verified: the closest by code, the closest by vector, and all that digests prove.

The choice is made twice, in each upstream shard and over all shards. It is the same for any number of shards, in any
order: what is among the closest of all is among the closest of its shard, and ties go by the pictures' bytes.

Within one set each pair is found from both of its pictures, and verified if it is among the closest of either.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.audit.base.tables import ADDRESS_COLUMNS, CANDIDATE_SCHEMA, HUB_SCHEMA
from cluster.audit.search.join import TIE_COLUMN, cap_hubs
from pipeline.image.fingerprint import INVERSE

DOWN_ADDRESS = ("down_shard", "down_row")
_ROW = ("up_row", *DOWN_ADDRESS)
# Pairs of one upstream shard. `cosine` is that of their vectors where these proposed the pair; `known` is the evidence
# if equal digests prove it; `num_matches` counts all candidates of the downstream picture in this shard; `tie` is the
# upstream picture's.
MATCH_SCHEMA = pa.schema(
    [
        *list(CANDIDATE_SCHEMA)[1:],
        pa.field("cosine", pa.float32()),
        pa.field("known", pa.string()),
        pa.field("num_matches", pa.int64()),
        pa.field(TIE_COLUMN, pa.int64()),
    ]
)
Address = tuple[int, int, int]  # up_row, down_shard, down_row


def shard_matches(
    by_code: pa.Table, by_vector: pa.Table, known: Mapping[Address, str], ties: Sequence[int], most: int
) -> pa.Table:
    """Return the matches of one upstream shard that may be verified, a table of MATCH_SCHEMA sorted by address.

    Args:
        by_code: All pairs within the radius, of CANDIDATE_SCHEMA.
        by_vector: All pairs with close vectors, of CANDIDATE_SCHEMA and `cosine`; distances are those of their codes.
        known: Pairs that equal digests prove, with their evidence.
        ties: A number for each upstream picture, by its bytes: of equally close ones the least is the closest.
        most: Matches of a downstream picture that are verified, by code and by vector each.
    """
    codes, vectors = by_code.to_pylist(), by_vector.to_pylist()
    counts = Counter((shard, row) for _, shard, row in {_address(pair) for pair in [*codes, *vectors]})
    cosines = {_address(row): row["cosine"] for row in vectors}
    found = {_address(row): row for row in [*vectors, *codes]}
    closest = (
        cap_hubs(_unproven(by_code, known, ties), most, by="distance")[0],
        cap_hubs(_unproven(by_vector, known, ties), most, by="cosine")[0],
    )
    chosen = {_address(row) for table in closest for row in table.to_pylist()}
    rows = [
        {name: found[address][name] for name in CANDIDATE_SCHEMA.names[1:]}
        | {"cosine": cosines.get(address), "known": None}
        for address in chosen
    ]
    rows += [
        dict(zip(_ROW, address, strict=True)) | {"distance": 0, "element": 0, "cosine": None, "known": evidence}
        for address, evidence in known.items()
    ]
    rows.sort(key=_address)
    numbered = [
        row | {"num_matches": counts[row["down_shard"], row["down_row"]], TIE_COLUMN: ties[row["up_row"]]}
        for row in rows
    ]
    return pa.Table.from_pylist(numbered, schema=MATCH_SCHEMA)


def merged_matches(parts: Sequence[pa.Table], most: int, radius: int) -> pa.Table:
    """Return the matches of one upstream shard from those of its parts, as `shard_matches` returns them for the whole.

    Args:
        parts: Matches of parts that have no picture in common.
        most: As of each part.
        radius: Pairs up to this distance are of the search by code.
    """
    whole = pa.concat_tables(parts)
    totals: Counter[tuple[int, int]] = Counter()
    for part in parts:
        counts = part.group_by(list(DOWN_ADDRESS)).aggregate([("num_matches", "max")])
        totals.update({(row["down_shard"], row["down_row"]): row["num_matches_max"] for row in counts.to_pylist()})
    rows = list({_address(row): row for row in _closest(whole, most, radius).to_pylist()}.values())
    rows.sort(key=_address)
    counted = [row | {"num_matches": totals[row["down_shard"], row["down_row"]]} for row in rows]
    return pa.Table.from_pylist(counted, schema=MATCH_SCHEMA)


def _closest(matches: pa.Table, most: int, radius: int) -> pa.Table:
    """Return the matches that digests prove, and the closest others of each downstream picture, by code and vector."""
    known = matches.filter(pc.is_valid(matches["known"]))
    unproven = matches.filter(pc.is_null(matches["known"]))
    near = cap_hubs(unproven.filter(pc.less_equal(unproven["distance"], radius)), most, by="distance")[0]
    embedded = cap_hubs(unproven.filter(pc.is_valid(unproven["cosine"])), most, by="cosine")[0]
    return pa.concat_tables([known, near, embedded])


def cap_matches(
    matches: pa.Table, most: int, radius: int, *, is_within: bool = False
) -> tuple[pa.Table, pa.Table, int]:
    """Keep the matches of each downstream picture that are verified, over all shards.

    Args:
        matches: Those of all shards, as `shard_matches` returns them, with `up_shard` in front.
        most: Matches of a picture that are kept, by code and by vector each.
        radius: Pairs up to this distance are of the search by code.
        is_within: Whether both sides are one set: each pair is there from both of its pictures.

    Returns:
        The kept matches (within one set each pair once, the earlier picture upstream), a table of HUB_SCHEMA of the
        pictures with candidates that are not verified, and the number of all candidates.
    """
    rows = _distinct(_closest(matches, most, radius).to_pylist(), is_within=is_within)
    kept = pa.Table.from_pylist(rows, schema=matches.schema)
    totals = _num_candidates(matches)
    num_kept = Counter((row["down_shard"], row["down_row"]) for row in rows)
    if is_within:
        num_kept.update((row["up_shard"], row["up_row"]) for row in rows)
    # Pictures of equal digests have equal codes: what digests prove is among the candidates that are counted.
    hubs = [
        {"shard": shard, "row": row, "num_matches": total}
        for (shard, row), total in totals.items()
        if total > num_kept[shard, row]
    ]
    hubs.sort(key=lambda row: (-row["num_matches"], row["shard"], row["row"]))
    num_candidates = sum(totals.values()) // (2 if is_within else 1)
    return kept, pa.Table.from_pylist(hubs, schema=HUB_SCHEMA), num_candidates


def _distinct(rows: Iterable[dict[str, Any]], *, is_within: bool) -> list[dict[str, Any]]:
    """Return each pair once; within one set as its earlier picture found it, if it did."""
    kept: dict[tuple[int, ...], dict[str, Any]] = {}
    turned: dict[tuple[int, ...], dict[str, Any]] = {}
    for row in rows:
        up, down = (row["up_shard"], row["up_row"]), (row["down_shard"], row["down_row"])
        if is_within and down < up:
            addresses = dict(zip(ADDRESS_COLUMNS, (*down, *up), strict=True))
            turned[*down, *up] = row | addresses | {"element": INVERSE[row["element"]]}
        else:
            kept[*up, *down] = row
    return list((turned | kept).values())


def _num_candidates(matches: pa.Table) -> dict[tuple[int, int], int]:
    by_shard = matches.group_by(["up_shard", *DOWN_ADDRESS]).aggregate([("num_matches", "max")])
    totals = by_shard.group_by(list(DOWN_ADDRESS)).aggregate([("num_matches_max", "sum")])
    return {(row["down_shard"], row["down_row"]): row["num_matches_max_sum"] for row in totals.to_pylist()}


def _unproven(table: pa.Table, known: Mapping[Address, str], ties: Sequence[int]) -> pa.Table:
    """Return the pairs that digests do not prove, with the numbers by which ties go."""
    addresses = [_address(row) for row in table.select(list(_ROW)).to_pylist()]
    numbered = table.append_column(TIE_COLUMN, pa.array([ties[up_row] for up_row, *_ in addresses], pa.int64()))
    return numbered.filter(pa.array([address not in known for address in addresses], pa.bool_()))


def _address(row: Mapping[str, Any]) -> Address:
    return row["up_row"], row["down_shard"], row["down_row"]
