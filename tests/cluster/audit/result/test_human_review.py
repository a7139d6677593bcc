"""Pairs for review are drawn by band and stay drawn; verdicts become precision."""

from typing import Any

import pyarrow as pa
import pytest

from cluster.audit.base.tables import PAIR_SCHEMA
from cluster.audit.result.best_match import keep_best_matches
from cluster.audit.result.human_review import Verdict, decide, draw_pairs, parse_verdicts, precision_by_band
from pipeline.base.errors import ConfigError


def rows_of(count: int, distance: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"pair": f"{number:04d}", "evidence": "near-duplicate", "distance": distance}
        for number in range(first, first + count)
    ]


def test_review_draws_as_many_of_each_band_and_keeps_them_when_pairs_come_and_go() -> None:
    pairs = [*rows_of(100, 10), *rows_of(3, 40, 1000), {"pair": "same", "evidence": "same bytes", "distance": 0}]
    drawn = draw_pairs(pairs, 62, 20, seed=0)
    assert [row["band_size"] for row in drawn] == [100] * 20 + [3] * 3
    again = draw_pairs(pairs[50:], 62, 20, seed=0)
    left = {row["pair"] for row in drawn} & {row["pair"] for row in pairs[50:]}
    assert left <= {row["pair"] for row in again}


def test_precision_weighs_bands_by_their_size() -> None:
    drawn = draw_pairs([*rows_of(90, 10), *rows_of(10, 40, 1000)], 62, 10, seed=0)
    verdicts = {row["pair"]: "0" if row["distance"] == 10 else "2" for row in drawn}
    close, far, everything = precision_by_band(drawn, verdicts)
    assert (close["share"], far["share"]) == (1.0, 0.0)
    assert everything["share"] == pytest.approx(0.9)
    assert everything["low"] < 0.9 < everything["high"]


def test_a_further_copy_counts_once_the_closer_match_is_judged_to_be_none() -> None:
    rows = [
        {"up_shard": 0, "up_row": up, "down_shard": 0, "down_row": 0, "distance": distance, "element": 0, "quality": 90,
         "correlation": 0.99, "evidence": evidence}
        for up, distance, evidence in ((0, 2, "near-duplicate"), (1, 50, "further copy"), (2, 90, "further copy"))
    ]  # fmt: skip
    pairs = pa.Table.from_pylist(rows, schema=PAIR_SCHEMA)
    for verdict, expected in (
        ("no", ["rejected", "near-duplicate", "verified embedding"]),
        ("2", ["very similar", "near-duplicate", "verified embedding"]),
        ("1", ["near-duplicate", "further copy", "further copy"]),
    ):
        decided = decide(pairs, ["a", "b", "c"], {"a": Verdict(verdict=verdict)}, 62)
        assert decided["evidence"].to_pylist() == expected


def competing_pairs() -> pa.Table:
    """Return two test pictures that match one upstream picture, the second one far worse."""
    rows = [
        {"up_shard": 0, "up_row": 0, "down_shard": 0, "down_row": down, "distance": 50, "element": 0, "quality": 90,
         "correlation": correlation, "evidence": "near-duplicate"}
        for down, correlation in ((0, 0.999), (1, 0.96))
    ]  # fmt: skip
    pairs = pa.Table.from_pylist(rows, schema=PAIR_SCHEMA)
    by_rule = keep_best_matches(pairs)
    assert by_rule["evidence"].to_pylist() == ["near-duplicate", "very similar"]
    return by_rule.append_column("own_evidence", pairs["evidence"])


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ({}, ["near-duplicate", "very similar"]),
        ({"a": "no"}, ["rejected", "near-duplicate"]),
        ({"a": "2"}, ["very similar", "very similar"]),
        ({"a": "no", "b": "2"}, ["rejected", "very similar"]),
        ({"b": "1"}, ["near-duplicate", "judged a copy"]),
    ],
)
def test_a_match_that_a_person_rejects_demotes_no_other(verdicts: dict[str, str], expected: list[str]) -> None:
    given = {pair: Verdict(verdict=verdict) for pair, verdict in verdicts.items()}
    assert decide(competing_pairs(), ["a", "b"], given, 62)["evidence"].to_pylist() == expected


def test_pairs_of_earlier_releases_stay_demoted() -> None:
    pairs = competing_pairs().drop_columns(["own_evidence"])
    assert decide(pairs, ["a", "b"], {}, 62)["evidence"].to_pylist() == ["near-duplicate", "very similar"]
    decided = decide(pairs, ["a", "b"], {"a": Verdict(verdict="no")}, 62)
    assert decided["evidence"].to_pylist() == ["rejected", "very similar"]


@pytest.mark.parametrize("body", [b"{}", b"a,b\n1,2\n", b'{"verdicts": {"x": "5"}}', b"\xff\xfe"])
def test_files_without_verdicts_are_refused(body: bytes) -> None:
    with pytest.raises(ConfigError, match=r"holds no verdicts|must be one of"):
        parse_verdicts(body, "file")
