"""Which of several competing matches of one picture is its copy: a rule over verified pairs.

Digits, products and pages look alike without being copies: one upstream picture then matches many different downstream
ones. A strong match stands by itself. A weak one, of distant hashes or of an embedding, counts as a duplicate only if
no competing match of either picture is far better; otherwise it is kept as very similar, for review. Very similar
pairs compete, rejected ones do not: where the detail of two pictures disagrees their correlation is that of light and
dark areas, which two skies share, and says nothing about a pair whose detail agrees.

Between two sets, a match that only another upstream picture beats is a further copy: the test picture is a duplicate by
the closer one anyhow, and this upstream picture is to be left out of training like that one. Within one set an exact
copy is the picture itself once more, which says nothing about others: it does not compete.
"""

from typing import Any

import pyarrow as pa

from cluster.audit.base.tables import STRONG_BITS, Evidence

_RESIDUAL_RATIO = 4.0
_PROVEN = (Evidence.SAME_BYTES, Evidence.SAME_PIXELS)


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
    no_rivals = (Evidence.REJECTED, *(_PROVEN if is_within else ()))
    for row in rows:
        if row["evidence"] not in no_rivals:
            for key in _pictures(row, is_within=is_within):
                best[key] = max(best.get(key, -1.0), row["correlation"])
    evidence = [
        _final_evidence(row, *(best[key] for key in _pictures(row, is_within=is_within)), is_within=is_within)
        if row["evidence"] in (Evidence.NEAR, Evidence.EMBEDDED)
        else row["evidence"]
        for row in rows
    ]
    return pairs.set_column(pairs.schema.get_field_index("evidence"), "evidence", pa.array(evidence, pa.string()))


def _pictures(row: dict[str, Any], *, is_within: bool) -> list[tuple[str, int, int]]:
    """Return both pictures of a pair, the upstream one first: matches compete for either.

    Within a set a picture is the same one on either side: which side it is on says only what comes first.
    """
    return [("" if is_within else side, row[f"{side}_shard"], row[f"{side}_row"]) for side in ("up", "down")]


def _final_evidence(row: dict[str, Any], best_of_up: float, best_of_down: float, *, is_within: bool) -> str:
    is_strong = row["distance"] is not None and row["distance"] <= STRONG_BITS
    if is_strong:
        return str(row["evidence"])
    if _is_beaten(row, best_of_up) or (is_within and _is_beaten(row, best_of_down)):
        return str(Evidence.SIMILAR)
    return str(Evidence.FURTHER if _is_beaten(row, best_of_down) else row["evidence"])


def _is_beaten(row: dict[str, Any], best_correlation: float) -> bool:
    residual, best_residual = 1.0 - row["correlation"], 1.0 - best_correlation
    return bool(residual > _RESIDUAL_RATIO * best_residual and residual > best_residual)
