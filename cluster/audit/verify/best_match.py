"""Which of several competing matches of one picture is its copy: a rule over verified pairs.

Digits, products and pages look alike without being copies: one upstream picture then matches many different downstream
ones. A strong match stands by itself. A weak one, of distant hashes or of an embedding, counts as a duplicate only if
both pictures have texture and no competing match of either is far better; otherwise it is kept as very similar, for
review.
"""

from typing import Any

import pyarrow as pa

from cluster.audit.base.tables import Evidence
from cluster.audit.verify.evidence import STRONG_BITS

_RESIDUAL_RATIO = 4.0
# Different ellipses on white are 38 to 53 bits apart, correlate at 0.96 and score 20; one of 1,138 photos is below 30.
_WEAK_QUALITY_FROM = 30


def keep_best_matches(pairs: pa.Table) -> pa.Table:
    """Demote weak near-duplicates that fail the rule to `very similar`.

    Args:
        pairs: Table of tables.PAIR_SCHEMA with all verified pairs of an audit.

    Returns:
        The same rows in the same order.
    """
    rows = pairs.to_pylist()
    best: dict[tuple[str, int, int], float] = {}
    for row in rows:
        for key in _sides(row):
            best[key] = max(best.get(key, -1.0), row["correlation"])
    evidence = [_final_evidence(row, max(best[key] for key in _sides(row))) for row in rows]
    return pairs.set_column(pairs.schema.get_field_index("evidence"), "evidence", pa.array(evidence, pa.string()))


def _sides(row: dict[str, Any]) -> list[tuple[str, int, int]]:
    """Return both pictures of a pair: matches compete on either side, so the result is the same in both directions."""
    return [(side, row[f"{side}_shard"], row[f"{side}_row"]) for side in ("up", "down")]


def _final_evidence(row: dict[str, Any], best_correlation: float) -> str:
    is_strong = row["distance"] is not None and row["distance"] <= STRONG_BITS
    is_weak = row["evidence"] in (Evidence.NEAR, Evidence.EMBEDDED) and not is_strong
    residual, best_residual = 1.0 - row["correlation"], 1.0 - best_correlation
    is_beaten = residual > _RESIDUAL_RATIO * best_residual and residual > best_residual
    is_plain = row["quality"] < _WEAK_QUALITY_FROM
    if is_weak and (is_plain or is_beaten):
        return str(Evidence.SIMILAR)
    return str(row["evidence"])
