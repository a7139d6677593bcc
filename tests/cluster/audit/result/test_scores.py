"""Accuracies with and without duplicates leave out exactly those that count."""

from pathlib import Path

import pytest

from cluster.audit.base.tables import AuditTables
from cluster.audit.result.scores import cuts, score
from pipeline.base.errors import ConfigError
from pipeline.dataset.dataset import open_dataset
from tests.cluster.audit.audits import predictions


def test_accuracy_without_duplicates_leaves_exactly_them_out(found: AuditTables, sets: tuple[Path, Path]) -> None:
    rows = found.downstream.to_pylist()
    others = [row["row"] for row in rows if row["state"] != "duplicate"]
    table = predictions(open_dataset(str(sets[1])), set(others[:10]))
    by_name = {cut.name: score(table, found.downstream, cut) for cut in cuts(62)}
    result = by_name["all duplicates"]
    assert (result["full"]["num_correct"], result["full"]["num_samples"]) == (26, 36)
    assert (result["dedup"]["num_correct"], result["dedup"]["num_samples"]) == (20, 30)
    assert (result["duplicates"]["num_correct"], result["duplicates"]["num_samples"]) == (6, 6)
    assert result["difference"] == pytest.approx(20 / 30 - 26 / 36)
    assert result["difference_low"] <= result["difference"] <= result["difference_high"]
    assert by_name["same bytes"]["duplicates"]["num_samples"] == 1
    bits = [by_name[f"≤ {most} bits"]["duplicates"]["num_samples"] for most in (31, 46, 62)]
    assert bits == sorted(bits)


def test_predictions_of_another_set_are_refused(found: AuditTables, sets: tuple[Path, Path]) -> None:
    short = predictions(open_dataset(str(sets[1])), set()).slice(0, 20)
    with pytest.raises(ConfigError, match="the predictions cover 20 pictures, the test set has 36"):
        score(short, found.downstream, cuts(62)[-1])
