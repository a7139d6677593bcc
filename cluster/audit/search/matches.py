"""Which candidates of a picture are verified: the closest by code, the closest by vector, and all that digests prove.

The choice is made twice, in each upstream shard and over all shards. It is the same for any number of shards: what is
among the closest of all is among the closest of its shard, and ties go by address.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.audit.base.tables import ADDRESS_COLUMNS, CANDIDATE_SCHEMA, HUB_SCHEMA
from cluster.audit.search.join import cap_hubs

DOWN_ADDRESS = ("down_shard", "down_row")
_ROW = ("up_row", *DOWN_ADDRESS)
# Pairs of one upstream shard. `cosine` is that of their vectors where these proposed the pair; `known` is the evidence
# if equal digests prove it; `num_matches` counts all candidates of the downstream picture in this shard.
MATCH_SCHEMA = pa.schema(
    [
        *list(CANDIDATE_SCHEMA)[1:],
        pa.field("cosine", pa.float32()),
        pa.field("known", pa.string()),
        pa.field("num_matches", pa.int64()),
    ]
)
Address = tuple[int, int, int]  # up_row, down_shard, down_row


def shard_matches(by_code: pa.Table, by_vector: pa.Table, known: Mapping[Address, str], most: int) -> pa.Table:
    """Return the matches of one upstream shard that may be verified, a table of MATCH_SCHEMA sorted by address.

    Args:
        by_code: All pairs within the radius, of CANDIDATE_SCHEMA.
        by_vector: All pairs with close vectors, of CANDIDATE_SCHEMA and `cosine`; distances are those of their codes.
        known: Pairs that equal digests prove, with their evidence.
        most: Matches of a downstream picture that are verified, by code and by vector each.
    """
    codes, vectors = by_code.to_pylist(), by_vector.to_pylist()
    counts = Counter((shard, row) for _, shard, row in {_address(pair) for pair in [*codes, *vectors]})
    cosines = {_address(row): row["cosine"] for row in vectors}
    found = {_address(row): row for row in [*vectors, *codes]}
    closest = (
        cap_hubs(_unproven(by_code, known), most, by="distance")[0],
        cap_hubs(_unproven(by_vector, known), most, by="cosine")[0],
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
    numbered = [row | {"num_matches": counts[row["down_shard"], row["down_row"]]} for row in rows]
    return pa.Table.from_pylist(numbered, schema=MATCH_SCHEMA)


def cap_matches(matches: pa.Table, most: int, radius: int) -> tuple[pa.Table, pa.Table, int]:
    """Keep the matches of each downstream picture that are verified, over all shards.

    Args:
        matches: Those of all shards, as `shard_matches` returns them, with `up_shard` in front.
        most: Matches of a picture that are kept, by code and by vector each.
        radius: Pairs up to this distance are of the search by code.

    Returns:
        The kept matches, a table of HUB_SCHEMA of the pictures with candidates that are not verified, and the number of
        all candidates.
    """
    known = matches.filter(pc.is_valid(matches["known"]))
    unproven = matches.filter(pc.is_null(matches["known"]))
    near = cap_hubs(unproven.filter(pc.less_equal(unproven["distance"], radius)), most, by="distance")[0]
    embedded = cap_hubs(unproven.filter(pc.is_valid(unproven["cosine"])), most, by="cosine")[0]
    rows = {tuple(row[name] for name in ADDRESS_COLUMNS): row for row in pa.concat_tables([near, embedded]).to_pylist()}
    kept = pa.concat_tables([known, pa.Table.from_pylist(list(rows.values()), schema=matches.schema)])
    totals = _num_candidates(matches)
    num_kept = Counter(zip(kept["down_shard"].to_pylist(), kept["down_row"].to_pylist(), strict=True))
    # Pictures of equal digests have equal codes: what digests prove is among the candidates that are counted.
    hubs = [
        {"shard": shard, "row": row, "num_matches": total}
        for (shard, row), total in totals.items()
        if total > num_kept[shard, row]
    ]
    hubs.sort(key=lambda row: (-row["num_matches"], row["shard"], row["row"]))
    return kept, pa.Table.from_pylist(hubs, schema=HUB_SCHEMA), sum(totals.values())


def _num_candidates(matches: pa.Table) -> dict[tuple[int, int], int]:
    by_shard = matches.group_by(["up_shard", *DOWN_ADDRESS]).aggregate([("num_matches", "max")])
    totals = by_shard.group_by(list(DOWN_ADDRESS)).aggregate([("num_matches_max", "sum")])
    return {(row["down_shard"], row["down_row"]): row["num_matches_max_sum"] for row in totals.to_pylist()}


def _unproven(table: pa.Table, known: Mapping[Address, str]) -> pa.Table:
    return table.filter(
        pa.array([_address(row) not in known for row in table.select(list(_ROW)).to_pylist()], pa.bool_())
    )


def _address(row: Mapping[str, Any]) -> Address:
    return row["up_row"], row["down_shard"], row["down_row"]
