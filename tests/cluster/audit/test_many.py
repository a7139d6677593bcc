"""Many test sets share one overview."""

import csv
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.dataset.dataset import open_dataset
from tests.cluster.audit.audits import predictions
from tests.conftest import class_folders, pack, run_cli


def test_many_test_sets_share_one_overview(sets: tuple[Path, Path], tmp_path: Path) -> None:
    pack(class_folders(tmp_path / "b", each=4, seed=90_000), str(tmp_path / "clean"))
    pq.write_table(predictions(open_dataset(str(sets[1])), {0}), tmp_path / "m.parquet")
    (tmp_path / "tests.toml").write_text(
        f'[leaky]\nurl = "{sets[1]}"\npredictions = {{ m = "{tmp_path}/m.parquet" }}\n[clean]\nurl = "clean"\n'
    )
    arguments = ["cluster", "audit", str(sets[0]), "tests.toml", "out", "--against-many", "--canaries", "0"]
    done = run_cli(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "overview.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["cut"] == "all duplicates"]
    assert [(row["downstream"], row["num_duplicates"], row["model"]) for row in rows] == [
        ("leaky", "6", "m"), ("clean", "0", ""),
    ]  # fmt: skip
    assert float(rows[0]["full_accuracy"]) == pytest.approx(35 / 36)
    listed = pq.read_table(tmp_path / "out" / "leaky" / "pairs.parquet").to_pylist()
    verdicts = {row["pair"]: "no" for row in listed if row["evidence"] not in ("same bytes", "same pixels")}
    (tmp_path / "verdicts.json").write_text(json.dumps({"verdicts": verdicts}))
    judged = run_cli("cluster", "audit-review", "out/leaky", "verdicts.json", cwd=tmp_path)
    assert "the overview above it is written anew" in judged.stdout, judged.stderr
    with (tmp_path / "out" / "overview.csv").open() as file:
        again = [row for row in csv.DictReader(file) if row["cut"] == "all duplicates"]
    assert [row["downstream"] for row in again] == ["leaky", "clean"]
    assert int(again[0]["num_duplicates"]) < 6
    page = (tmp_path / "out" / "index.html").read_text()
    for target in re.findall(r'href="(?!data:)([^"]+)"', page):
        assert (tmp_path / "out" / target).exists(), target
