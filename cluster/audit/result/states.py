"""The states of the pictures of a test set, as they follow from its pairs."""

from collections.abc import Container, Mapping
from typing import Any

import pyarrow as pa

from cluster.audit.base.tables import MIN_QUALITY, STATE_SCHEMA, Address, Evidence, is_duplicate


def states(index: pa.Table, pairs: pa.Table, untold: Container[Address]) -> pa.Table:
    """Return the state of every downstream picture.

    Args:
        index: Has shard, row, key, labels, quality of all downstream pictures.
        pairs: Accepted pairs.
        untold: Pictures of which not every match was compared.

    Returns:
        Table of STATE_SCHEMA. `unchecked` are pictures too flat to tell and those of `untold`, unless a duplicate of
        them was found. `distance` and `evidence` are those of the best pair.
    """
    matches: dict[Address, list[dict[str, Any]]] = {}
    for pair in pairs.to_pylist():
        matches.setdefault((pair["down_shard"], pair["down_row"]), []).append(pair)
    rows = []
    for sample in index.select(["shard", "row", "key", "labels", "quality"]).to_pylist():
        address = (sample["shard"], sample["row"])
        own = matches.get(address, [])
        duplicates = [pair for pair in own if is_duplicate(pair["evidence"])]
        best = min(duplicates or own, key=_rank, default=None)
        if duplicates:
            state = "duplicate"
        elif sample["quality"] < MIN_QUALITY or address in untold:
            state = "unchecked"
        else:
            state = "very similar" if own else "clean"
        rows.append(sample | {"state": state, "num_pairs": len(own)} | _of_best(best))
    return pa.Table.from_pylist(rows, schema=STATE_SCHEMA)


def _rank(pair: Mapping[str, Any]) -> tuple[int, int, float]:
    """Order pairs by how sure they are: class of evidence, then distance, then correlation."""
    return list(Evidence).index(Evidence(pair["evidence"])), pair["distance"], -pair["correlation"]


def _of_best(pair: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"distance": pair["distance"] if pair else None, "evidence": pair["evidence"] if pair else None}
