"""Of competing matches of one picture the far better one stays a duplicate; strong matches stand by themselves."""

import pyarrow as pa

from cluster.audit.base.tables import Evidence
from cluster.audit.verify.best_match import keep_best_matches

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
    evidence = keep_best_matches(pa.Table.from_pylist(rows))["evidence"].to_pylist()
    near, similar = str(Evidence.NEAR), str(Evidence.SIMILAR)
    assert evidence == [near, similar, near, near, near, near, near, similar, str(Evidence.SAME_BYTES), similar, near]


def test_matches_compete_on_both_sides() -> None:
    rows = [pair(number, 40, correlation) for number, correlation in ((0, 0.999), (1, 0.97), (2, 0.97))]
    rows[1]["down_row"] = rows[0]["down_row"]
    for one, other in (("up", "down"), ("down", "up")):
        swapped = [
            row | {f"{one}_row": row[f"{other}_row"], f"{other}_row": row[f"{one}_row"]} if one == "down" else row
            for row in rows
        ]
        evidence = keep_best_matches(pa.Table.from_pylist(swapped))["evidence"].to_pylist()
        assert evidence == [str(Evidence.NEAR), str(Evidence.SIMILAR), str(Evidence.NEAR)]
