"""Which of several competing matches of one picture is its copy: a rule over verified pairs.

Digits, products and pages look alike without being copies: one upstream picture then matches many different downstream
ones. A strong match stands by itself. A weak one, of distant hashes or of an embedding, counts as a duplicate only if
no competing match of either picture is far better; otherwise it is kept as very similar, for review.

Between two sets, a match that only another upstream picture beats is a further copy: the test picture is a duplicate by
the closer one anyhow, and this upstream picture is to be left out of training like that one.
"""

from typing import Any

import pyarrow as pa

from cluster.audit.base.tables import Evidence
from cluster.audit.verify.evidence import STRONG_BITS

_SIDES = ("up", "down")
_RESIDUAL_RATIO = 4.0


def keep_best_matches(pairs: pa.Table, *, is_within: bool = False) -> pa.Table:
    """Demote weak near-duplicates that fail the rule to `further copy` or `very similar`.

    Args:
        pairs: Table of tables.PAIR_SCHEMA with all verified pairs of an audit.
        is_within: Whether both sides are one set, whose pictures have no sides: there are no further copies.

    Returns:
        The same rows in the same order.
    """
    rows = pairs.to_pylist()
    best: dict[tuple[str, int, int], float] = {}
    for row in rows:
        for side in _SIDES:
            key = _picture(row, side)
            best[key] = max(best.get(key, -1.0), row["correlation"])
    evidence = [
        _final_evidence(row, *(best[_picture(row, side)] for side in _SIDES), is_within=is_within) for row in rows
    ]
    return pairs.set_column(pairs.schema.get_field_index("evidence"), "evidence", pa.array(evidence, pa.string()))


def _picture(row: dict[str, Any], side: str) -> tuple[str, int, int]:
    """Return a picture of a pair: matches compete for both."""
    return side, row[f"{side}_shard"], row[f"{side}_row"]


def _final_evidence(row: dict[str, Any], best_of_up: float, best_of_down: float, *, is_within: bool) -> str:
    is_strong = row["distance"] is not None and row["distance"] <= STRONG_BITS
    if is_strong or row["evidence"] not in (Evidence.NEAR, Evidence.EMBEDDED):
        return str(row["evidence"])
    if _is_beaten(row, best_of_up) or (is_within and _is_beaten(row, best_of_down)):
        return str(Evidence.SIMILAR)
    return str(Evidence.FURTHER if _is_beaten(row, best_of_down) else row["evidence"])


def _is_beaten(row: dict[str, Any], best_correlation: float) -> bool:
    residual, best_residual = 1.0 - row["correlation"], 1.0 - best_correlation
    return bool(residual > _RESIDUAL_RATIO * best_residual and residual > best_residual)
