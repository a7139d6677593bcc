"""The report of an audit: accuracies, pictures, verdicts of people, lists to leave out, many test sets."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.audit.base.tables import AuditConfig, AuditTables
from cluster.audit.coordinator import audit, sides_of
from cluster.audit.report.publish import import_verdicts, publish_audit, read_summary
from cluster.audit.result import human_review as review
from cluster.audit.result.scores import cuts, score
from pipeline.base.errors import ConfigError, Conflict
from pipeline.dataset.dataset import Address, Dataset, open_dataset
from pipeline.store.url import open_store
from pipeline.streaming.choose import listed_rows
from tests.cluster.audit.audits import contents, here, leaky_sets
from tests.conftest import class_folders, pack, run_cli
from trainer.scores.predictions import PREDICTION_SCHEMA


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return leaky_sets(tmp_path_factory.mktemp("audit"))


@pytest.fixture(scope="module")
def config(sets: tuple[Path, Path]) -> AuditConfig:
    return AuditConfig(upstream=str(sets[0]), downstream=str(sets[1]), canaries_each=1)


@pytest.fixture(scope="module")
def found(config: AuditConfig, tmp_path_factory: pytest.TempPathFactory) -> AuditTables:
    return audit(config, sides_of(config), here(tmp_path_factory.mktemp("work")))


def publish(out: Path, config: AuditConfig, found: AuditTables, models: dict[str, pa.Table]) -> dict[str, Any]:
    return publish_audit(open_store(str(out)), config, sides_of(config), found, models, here(out / "work"))


def predictions(down: Dataset, wrong: set[int]) -> pa.Table:
    rows = [
        {"shard": 0, "row": row, "labels": [0], "prediction": 0, "probability": 1.0, "correct": row not in wrong}
        for row in range(down.version.num_samples)
    ]
    return pa.Table.from_pylist(rows, schema=PREDICTION_SCHEMA)


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


def test_the_folder_opens_offline_and_leads_to_every_picture(
    found: AuditTables, config: AuditConfig, sets: tuple[Path, Path], tmp_path: Path
) -> None:
    summary = publish(tmp_path, config, found, {"<b>model</b>": predictions(open_dataset(str(sets[1])), {1, 2})})
    pages = {path.name: path.read_text() for path in tmp_path.glob("*.html")}
    assert {"index.html", "pairs.html", "pairs-0001.html", "review.html"} == set(pages)
    for name, page in pages.items():
        for target in re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)([^"']+)""", page):
            assert (tmp_path / target).exists(), (name, target)
        assert "http" not in page, name
    assert pages["pairs-0001.html"].count('src="data:image/jpeg;base64,') == 3 * 6
    assert "<b>model</b>" not in pages["index.html"]
    assert "&lt;b&gt;model&lt;/b&gt;" in pages["index.html"]
    with (tmp_path / "pairs.csv").open() as file:
        pairs = list(csv.DictReader(file))
    assert len(pairs) == summary["num_pairs"] == 6
    for pair in pairs:
        assert f'id="{pair["pair"]}"' in pages["pairs-0001.html"]
        with Path(pair["down_url"]).open("rb") as tar:
            tar.seek(int(pair["down_offset"]))
            assert tar.read(3) == b"\xff\xd8\xff"
    assert read_summary(open_store(str(tmp_path))) == summary


def test_publishing_again_changes_nothing_and_another_audit_is_refused(
    found: AuditTables, config: AuditConfig, tmp_path: Path
) -> None:
    publish(tmp_path, config, found, {})
    before = contents(tmp_path)
    publish(tmp_path, config, found, {})
    assert before == contents(tmp_path)
    with pytest.raises(Conflict, match="choose another destination"):
        publish(tmp_path, config.model_copy(update={"radius": 31}), found, {})


def test_verdicts_become_precision_and_outlive_a_rerun(found: AuditTables, config: AuditConfig, tmp_path: Path) -> None:
    publish(tmp_path, config, found, {})
    drawn = json.loads((tmp_path / "review.json").read_text())
    given = {row["pair"]: verdict for row, verdict in zip(drawn, ("0", "1", "no"), strict=False)}
    saved = tmp_path / "saved.json"
    saved.write_text(json.dumps({"audit": "x", "verdicts": given}))
    done = run_cli("cluster", "audit-review", str(tmp_path), str(saved))
    assert done.returncode == 0, done.stderr
    rows = read_summary(open_store(str(tmp_path)))["review"]
    assert sum(row["num_reviewed"] for row in rows if row["band"] != "all duplicates") == 3
    assert sum(row["num_copies"] for row in rows if row["band"] != "all duplicates") == 2
    assert publish(tmp_path, config, found, {})["review"] == rows
    assert pq.read_table(tmp_path / "pairs.parquet")["verdict"].to_pylist().count("no") == 1
    with pytest.raises(ConfigError, match=r"1 of 1 verdicts are on pairs that .* never asked about"):
        import_verdicts(open_store(str(tmp_path)), {"feed": "0"})


def rows_of(count: int, distance: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"pair": f"{number:04d}", "evidence": "near-duplicate", "distance": distance}
        for number in range(first, first + count)
    ]


def test_review_draws_as_many_of_each_band_and_keeps_them_when_pairs_come_and_go() -> None:
    pairs = [*rows_of(100, 10), *rows_of(3, 40, 1000), {"pair": "same", "evidence": "same bytes", "distance": 0}]
    drawn = review.draw(pairs, 62, 20, seed=0)
    assert [row["band_size"] for row in drawn] == [100] * 20 + [3] * 3
    again = review.draw(pairs[50:], 62, 20, seed=0)
    left = {row["pair"] for row in drawn} & {row["pair"] for row in pairs[50:]}
    assert left <= {row["pair"] for row in again}


def test_precision_weighs_bands_by_their_size() -> None:
    drawn = review.draw([*rows_of(90, 10), *rows_of(10, 40, 1000)], 62, 10, seed=0)
    verdicts = {row["pair"]: "0" if row["distance"] == 10 else "2" for row in drawn}
    close, far, everything = review.precision(drawn, verdicts)
    assert (close["share"], far["share"]) == (1.0, 0.0)
    assert everything["share"] == pytest.approx(0.9)
    assert everything["low"] < 0.9 < everything["high"]


@pytest.mark.parametrize("body", [b"{}", b"a,b\n1,2\n", b'{"verdicts": {"x": "5"}}', b"\xff\xfe"])
def test_files_without_verdicts_are_refused(body: bytes) -> None:
    with pytest.raises(ConfigError, match=r"holds no verdicts|must be one of"):
        review.parse_verdicts(body, "file")


def test_an_audit_that_finds_nothing_still_tells(tmp_path: Path) -> None:
    pack(class_folders(tmp_path / "a", each=4), str(tmp_path / "up"))
    pack(class_folders(tmp_path / "b", each=4, seed=90_000), str(tmp_path / "down"))
    done = run_cli("cluster", "audit", "up", "down", "report", "--canaries", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0 of 12 downstream pictures have a duplicate upstream" in done.stdout
    assert "No pair was accepted." in (tmp_path / "report" / "index.html").read_text()


def test_a_list_of_nothing_leaves_out_nothing(tmp_path: Path) -> None:
    empty = pa.table({"shard": pa.array([], pa.int32()), "row": pa.array([], pa.int32())})
    pq.write_table(empty, tmp_path / "exclude-upstream.parquet")
    assert listed_rows(str(tmp_path / "exclude-upstream.parquet")) == {}


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
    page = (tmp_path / "out" / "index.html").read_text()
    for target in re.findall(r'href="(?!data:)([^"]+)"', page):
        assert (tmp_path / "out" / target).exists(), target


def test_both_experiments_clean_upstream_and_clean_test_set(sets: tuple[Path, Path], tmp_path: Path) -> None:
    """The paper's two ways out: pretrain without the leaked pictures, or test without those that leaked."""
    tiny = ["--workers", "0", "--set", "batch_size=16"]
    steps = {"epochs": 1, "batch_size": 16, "warmup_steps": 1, "resolution_px": 32}
    settings = [part for name, value in steps.items() for part in ("--set", f"recipe.{name}={value}")]
    commands = [
        ["cluster", "audit", str(sets[0]), str(sets[1]), "report", "--canaries", "0"],
        ["trainer", "pretrain", str(sets[0]), "run", "--model", "R14x0.5", "--recipe", "bit-s", "--workers", "0",
         *settings, "--exclude", "report/exclude-upstream.parquet"],
        ["trainer", "evaluate", "run", str(sets[1]), "full", *tiny],
        ["trainer", "evaluate", "run", str(sets[1]), "clean", *tiny, "--exclude", "report/exclude-downstream.parquet"],
    ]  # fmt: skip
    for command in commands:
        done = run_cli(*command, cwd=tmp_path)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    states = pq.read_table(tmp_path / "report" / "downstream.parquet").to_pylist()
    copies = {(row["shard"], row["row"]) for row in states if row["state"] == "duplicate"}
    tested = [pq.read_table(tmp_path / name / "predictions.parquet") for name in ("full", "clean")]
    kept = [set(zip(t["shard"].to_pylist(), t["row"].to_pylist(), strict=True)) for t in tested]
    assert len(copies) == 6
    assert kept[1] == kept[0] - copies
    upstream = pq.read_table(tmp_path / "report" / "exclude-upstream.parquet")
    up = open_dataset(str(sets[0]))
    sources = {up.read_about(Address(row["shard"], row["row"]))["source"] for row in upstream.to_pylist()}
    assert sources == {"class1/same.jpg", *(f"class0/leak-{number}.png" for number in (3, 7, 11, 19, 23))}
