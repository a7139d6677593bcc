"""The states of the pictures of a test set, decided from its pairs."""

from collections.abc import Container, Mapping
from typing import Any

import pyarrow as pa

from cluster.audit.base.tables import (
    MIN_QUALITY,
    STATE_SCHEMA,
    AuditTables,
    Evidence,
    Found,
    ShardRow,
    is_duplicate,
    split_rejected,
    unchecked_addresses,
)


def audit_tables(found: Found, samples: pa.Table, canaries: pa.Table) -> AuditTables:
    """Return the tables of an audit, decided from its pairs and from what was not compared.

    Args:
        found: The pairs, perhaps after verdicts of people.
        samples: As picture_states takes them.
        canaries: See AuditTables.
    """
    pairs, rejected = split_rejected(found.pairs)
    unchecked = unchecked_addresses(found.unchecked, "downstream")
    unchecked |= set(zip(found.hubs["shard"].to_pylist(), found.hubs["row"].to_pylist(), strict=True))
    return AuditTables(found, pairs, rejected, picture_states(samples, pairs, unchecked), canaries)


def picture_states(samples: pa.Table, pairs: pa.Table, unchecked: Container[ShardRow]) -> pa.Table:
    """Return the state of every downstream picture.

    Args:
        samples: Has shard, row, key, labels, quality of all downstream pictures.
        pairs: Accepted pairs.
        unchecked: Pictures of which not every match was compared.

    Returns:
        Table of STATE_SCHEMA. Pictures of `unchecked`, and those that are too flat, have the state `unchecked` unless a
        duplicate of them was found. `distance` and `evidence` are those of the best pair.
    """
    matches: dict[ShardRow, list[dict[str, Any]]] = {}
    for pair in pairs.to_pylist():
        matches.setdefault((pair["down_shard"], pair["down_row"]), []).append(pair)
    rows = []
    for sample in samples.select(["shard", "row", "key", "labels", "quality"]).to_pylist():
        address = (sample["shard"], sample["row"])
        own = matches.get(address, [])
        duplicates = [pair for pair in own if is_duplicate(pair["evidence"])]
        best = min(duplicates or own, key=_rank, default=None)
        if duplicates:
            state = "duplicate"
        elif sample["quality"] < MIN_QUALITY or address in unchecked:
            state = "unchecked"
        else:
            state = "very similar" if own else "clean"
        rows.append(sample | {"state": state, "num_pairs": len(own)} | _of_best(best))
    return pa.Table.from_pylist(rows, schema=STATE_SCHEMA)


def _rank(pair: Mapping[str, Any]) -> tuple[int, int, float]:
    """Return a sort key, surest pairs first: by class of evidence, then distance, then correlation."""
    return list(Evidence).index(Evidence(pair["evidence"])), pair["distance"], -pair["correlation"]


def _of_best(pair: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"distance": pair["distance"] if pair else None, "evidence": pair["evidence"] if pair else None}
