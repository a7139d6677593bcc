"""Of competing matches of one picture the far better one stays a duplicate; strong matches stand by themselves."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, strategies as st

from cluster.audit.base.tables import Evidence
from cluster.audit.result.best_match import keep_best_matches

_fresh = iter(range(1000, 2000))


def pair(up_row: int, distance: int, correlation: float, evidence: Evidence = Evidence.NEAR) -> dict[str, object]:
    """Return a verified pair with a downstream picture of its own."""
    return {
        "up_shard": 0,
        "up_row": up_row,
        "down_shard": 0,
        "down_row": next(_fresh),
        "distance": distance,
        "correlation": correlation,
        "evidence": str(evidence),
    }


def test_a_weak_match_yields_to_a_far_better_one_and_a_strong_match_to_none() -> None:
    rows = [
        pair(0, 4, 0.999), pair(0, 50, 0.96), pair(0, 20, 0.97),  # the copy, a look-alike, a second strong match
        pair(1, 50, 0.96),  # alone
        pair(2, 50, 0.93),  # alone
        pair(3, 50, 0.97), pair(3, 52, 0.965),  # two equals
        pair(4, 50, 0.8, Evidence.SIMILAR), pair(5, 60, 0.99, Evidence.SAME_BYTES),
    ]  # fmt: skip
    evidence = keep_best_matches(pa.Table.from_pylist(rows))["evidence"].to_pylist()
    near, similar = str(Evidence.NEAR), str(Evidence.SIMILAR)
    assert evidence == [near, similar, near, near, near, near, near, similar, str(Evidence.SAME_BYTES)]


def rivals(shared: str) -> pa.Table:
    """Return a pair, a weaker one that shares a picture with it, and one beside them."""
    rows = [pair(number, 40, correlation) for number, correlation in ((0, 0.999), (1, 0.97), (2, 0.97))]
    rows[1][f"{shared}_row"] = rows[0][f"{shared}_row"]
    return pa.Table.from_pylist(rows)


def test_an_upstream_picture_beside_a_closer_one_of_the_same_test_picture_is_a_further_copy() -> None:
    evidence = keep_best_matches(rivals("down"))["evidence"].to_pylist()
    assert evidence == [str(Evidence.NEAR), str(Evidence.FURTHER), str(Evidence.NEAR)]
    assert [Evidence(each).is_duplicate for each in evidence] == [True, False, True]
    assert all(Evidence(each).is_copy_upstream for each in evidence)


def test_a_test_picture_that_an_upstream_picture_matches_worse_than_another_one_is_very_similar() -> None:
    evidence = keep_best_matches(rivals("up"))["evidence"].to_pylist()
    assert evidence == [str(Evidence.NEAR), str(Evidence.SIMILAR), str(Evidence.NEAR)]


@pytest.mark.parametrize("shared", ["up", "down"])
def test_within_a_set_matches_compete_alike_on_both_sides(shared: str) -> None:
    evidence = keep_best_matches(rivals(shared), is_within=True)["evidence"].to_pylist()
    assert evidence == [str(Evidence.NEAR), str(Evidence.SIMILAR), str(Evidence.NEAR)]


@pytest.mark.parametrize("shared", ["up", "down"])
def test_a_very_similar_competitor_counts_and_a_rejected_one_does_not(shared: str) -> None:
    found = {}
    for kind in (Evidence.SIMILAR, Evidence.REJECTED):
        rows = rivals(shared).to_pylist()
        rows[0]["evidence"] = str(kind)
        found[kind] = keep_best_matches(pa.Table.from_pylist(rows), is_within=True)["evidence"].to_pylist()[1]
    assert found == {Evidence.SIMILAR: str(Evidence.SIMILAR), Evidence.REJECTED: str(Evidence.NEAR)}


KINDS = [Evidence.SAME_BYTES, Evidence.NEAR, Evidence.EMBEDDED, Evidence.SIMILAR, Evidence.REJECTED]


@st.composite
def verified_pairs(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Pairs of four upstream and four downstream pictures at all distances and correlations."""
    places = draw(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1))
    return [
        pair(up, draw(st.sampled_from([10, 31, 32, 90])), draw(st.sampled_from([0.5, 0.9, 0.99, 1.0])),
             draw(st.sampled_from(KINDS))) | {"down_row": down}
        for up, down in sorted(places)
    ]  # fmt: skip


@given(verified_pairs(), st.booleans())
def test_the_evidence_of_pairs_is_the_same_without_those_that_verification_rejected(
    rows: list[dict[str, Any]], is_within: bool
) -> None:
    kept = [row for row in rows if row["evidence"] != Evidence.REJECTED]
    together = keep_best_matches(pa.Table.from_pylist(rows), is_within=is_within).to_pylist()
    if kept:
        alone = keep_best_matches(pa.Table.from_pylist(kept), is_within=is_within).to_pylist()
        assert [row for row in together if row["evidence"] != Evidence.REJECTED] == alone
    assert len(together) - len(kept) == sum(row["evidence"] == Evidence.REJECTED for row in together)


@given(verified_pairs(), st.data())
def test_within_a_set_the_evidence_of_a_pair_does_not_depend_on_which_picture_comes_first(
    rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    rows = [row | {"down_row": row["down_row"] + 2} for row in rows]  # two pictures are on both sides
    turned = [turned_round(row) if data.draw(st.booleans()) else row for row in rows]
    one, other = (keep_best_matches(pa.Table.from_pylist(each), is_within=True) for each in (rows, turned))
    assert one["evidence"].to_pylist() == other["evidence"].to_pylist()


def turned_round(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"up_row": row["down_row"], "down_row": row["up_row"]}


def test_within_a_set_an_exact_copy_is_the_same_picture_and_does_not_compete() -> None:
    rows = rivals("up").to_pylist()
    rows[0] |= {"evidence": str(Evidence.SAME_BYTES), "correlation": 1.0}
    found = [keep_best_matches(pa.Table.from_pylist(rows), is_within=is_within) for is_within in (True, False)]
    assert [table["evidence"].to_pylist()[1] for table in found] == [str(Evidence.NEAR), str(Evidence.SIMILAR)]
