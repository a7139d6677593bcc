"""The report of an audit: offline pages, verdicts of people, lists to exclude."""

import csv
import json
import re
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.audit.base.sets import picture_name, samples_of
from cluster.audit.base.tables import (
    HUB_SCHEMA,
    STATE_SCHEMA,
    UNCHECKED_SCHEMA,
    AuditConfig,
    AuditTables,
    Evidence,
    unreadable_row,
)
from cluster.audit.coordinator import pin_sides
from cluster.audit.report.apply_verdicts import import_verdicts
from cluster.audit.report.publish import publish_audit, read_summary
from cluster.audit.report.recorded_verdicts import read_verdicts
from cluster.audit.report.unchecked_page import write_unchecked
from cluster.audit.result.human_review import Verdict
from cluster.audit.result.states import audit_tables
from pipeline.base.errors import ConfigError, Conflict
from pipeline.dataset.dataset import Address, Dataset, open_dataset
from pipeline.store.url import open_store
from pipeline.streaming.choose import listed_rows
from tests.cluster.audit.audits import contents, local_job, predictions
from tests.conftest import class_folders, pack, run_cli
from trainer.scores.predictions import NAMED_PREDICTION_SCHEMA


def publish(out: Path, config: AuditConfig, found: AuditTables, models: dict[str, pa.Table]) -> dict[str, Any]:
    return publish_audit(open_store(str(out)), config, pin_sides(config), found, models, local_job(out / "work"))


def test_the_folder_opens_offline_and_leads_to_every_picture(
    found: AuditTables, config: AuditConfig, sets: tuple[Path, Path], tmp_path: Path
) -> None:
    summary = publish(tmp_path, config, found, {"<b>model</b>": predictions(open_dataset(str(sets[1])), {1, 2})})
    pages = {path.name: path.read_text() for path in tmp_path.glob("*.html")}
    assert {"index.html", "pairs.html", "pairs-0001.html", "review.html", "unchecked.html"} == set(pages)
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
        assert {pair["down_source"], pair["up_source"]} <= set(re.findall(r"class\d/[\w.-]+", pages["pairs.html"]))
        with Path(pair["down_url"]).open("rb") as tar:
            tar.seek(int(pair["down_offset"]))
            assert tar.read(3) == b"\xff\xd8\xff"
    assert read_summary(open_store(str(tmp_path))) == summary


def test_unchecked_pictures_are_shown_with_their_reason(
    found: AuditTables, config: AuditConfig, tmp_path: Path
) -> None:
    rows = found.downstream.to_pylist()
    flat, hub = rows[0], next(row for row in rows[1:] if row["state"] == "clean")
    flat |= {"state": "unchecked", "quality": 3}
    hub["state"] = "unchecked"
    hubs = pa.Table.from_pylist([{"shard": hub["shard"], "row": hub["row"], "num_matches": 30}], schema=HUB_SCHEMA)
    shown = replace(
        found, downstream=pa.Table.from_pylist(rows, schema=STATE_SCHEMA), found=replace(found.found, hubs=hubs)
    )
    sides = pin_sides(config)
    write_unchecked(open_store(str(tmp_path)), sides, shown)
    page = (tmp_path / "unchecked.html").read_text()
    names = [picture_name(sides.downstream, Address(row["shard"], row["row"])) for row in (flat, hub)]
    sections = page.split("<h3>")[1:]
    assert [section.split(":")[0] for section in sections] == [
        "too flat to compare", "more candidates than were verified",
    ]  # fmt: skip
    assert all(name in section and section.count("<img") == 1 for name, section in zip(names, sections, strict=True))


def test_publishing_again_changes_nothing_and_another_audit_is_refused(
    found: AuditTables, config: AuditConfig, tmp_path: Path
) -> None:
    publish(tmp_path, config, found, {})
    before = contents(tmp_path)
    publish(tmp_path, config, found, {})
    assert before == contents(tmp_path)
    with pytest.raises(Conflict, match="another audit: radius 62 instead of 31; choose another destination"):
        publish(tmp_path, config.model_copy(update={"radius": 31}), found, {})


def test_a_report_from_before_a_setting_was_there_is_published_again(
    found: AuditTables, config: AuditConfig, tmp_path: Path
) -> None:
    settings = json.loads(config.to_json())
    del settings["insets"]
    (tmp_path / "audit.json").write_text(json.dumps(settings))
    publish(tmp_path, config, found, {})
    with pytest.raises(Conflict, match="insets False instead of True"):
        publish(tmp_path, config.model_copy(update={"insets": True}), found, {})


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
    with pytest.raises(ConfigError, match=r"1 of 1 verdicts are on pairs that .* did not compare"):
        import_verdicts(open_store(str(tmp_path)), {"feed": Verdict(verdict="0")}, local_job(tmp_path / "work"))
    first, second, *_ = given
    later = {first: Verdict(verdict=given[first], by="bob", at="later"), "feed": Verdict(verdict="0")}
    later[second] = Verdict(verdict="2", by="bob", at="later")
    import_verdicts(open_store(str(tmp_path)), later, local_job(tmp_path / "work"))
    recorded = read_verdicts(open_store(str(tmp_path)))
    assert set(recorded) == set(given)  # what this report did not compare is left out
    assert (recorded[first].by == "bob", recorded[second].by) == (False, "bob")  # said before, and changed


def test_a_verdict_decides_its_pair_in_states_lists_accuracies_and_pages(
    found: AuditTables, config: AuditConfig, sets: tuple[Path, Path], tmp_path: Path
) -> None:
    model = predictions(open_dataset(str(sets[1])), {1, 2})
    before = publish(tmp_path, config, found, {"model": model})
    pairs = pq.read_table(tmp_path / "pairs.parquet").to_pylist()
    refused, other = pairs[0], pairs[1]
    given = {"audit": "x", "verdicts": {refused["pair"]: "no", other["pair"]: "0"}}
    (tmp_path / "saved.json").write_text(json.dumps(given))
    done = run_cli("cluster", "audit-review", str(tmp_path), str(tmp_path / "saved.json"), "--by", "Ada")
    assert done.returncode == 0, done.stderr
    after = read_summary(open_store(str(tmp_path)))
    assert after["states"]["duplicate"] == before["states"]["duplicate"] - 1
    assert after["accuracy"]["model"][-1]["duplicates"]["num_samples"] == before["states"]["duplicate"] - 1
    states = {(row["shard"], row["row"]): row for row in pq.read_table(tmp_path / "downstream.parquet").to_pylist()}
    assert states[refused["down_shard"], refused["down_row"]]["state"] == "clean"
    for side in ("up", "down"):
        listed = pq.read_table(tmp_path / f"exclude-{side}stream.parquet").to_pylist()
        places = {(row["shard"], row["row"]) for row in listed}
        assert (refused[f"{side}_shard"], refused[f"{side}_row"]) not in places
        assert (other[f"{side}_shard"], other[f"{side}_row"]) in places
    judged = {row["pair"]: row for row in pq.read_table(tmp_path / "pairs.parquet").to_pylist() if row["verdict"]}
    assert {pair: (row["verdict"], row["judged_by"], row["evidence"]) for pair, row in judged.items()} == {
        refused["pair"]: ("no", "Ada", "rejected"), other["pair"]: ("0", "Ada", other["evidence"]),
    }  # fmt: skip
    assert all(datetime.fromisoformat(row["judged_at"]).utcoffset() == timedelta(0) for row in judged.values())
    page = (tmp_path / "pairs-0001.html").read_text()
    assert re.search(rf'id="{refused["pair"]}" data-evidence="rejected"', page)
    assert publish(tmp_path, config, found, {"model": model}) == after, "a rerun keeps what people decided"


def test_a_pair_that_the_rules_rejected_counts_once_it_is_judged_a_copy(
    found: AuditTables, config: AuditConfig, tmp_path: Path
) -> None:
    evidence = [str(Evidence.REJECTED)] * found.found.pairs.num_rows
    pairs = found.found.pairs.set_column(
        found.found.pairs.column_names.index("evidence"), "evidence", pa.array(evidence)
    )
    pairs = pairs.set_column(pairs.column_names.index("own_evidence"), "own_evidence", pairs["evidence"])
    rejected = audit_tables(replace(found.found, pairs=pairs), samples_of(pin_sides(config).down), found.canaries)
    publish(tmp_path, config, rejected, {})
    assert pq.read_table(tmp_path / "exclude-upstream.parquet").num_rows == 0
    drawn = json.loads((tmp_path / "review.json").read_text())
    store, job = open_store(str(tmp_path)), local_job(tmp_path / "work")
    summary = import_verdicts(store, {drawn[0]["pair"]: Verdict(verdict="1", by="Ada")}, job)
    assert summary["states"]["duplicate"] == 1
    assert pq.read_table(tmp_path / "exclude-upstream.parquet").num_rows == 1
    assert pq.read_table(tmp_path / "pairs.parquet")["evidence"].to_pylist() == [str(Evidence.JUDGED)]
    taken_back = import_verdicts(store, {drawn[0]["pair"]: Verdict(verdict="no", by="Bob")}, job)
    assert taken_back["states"]["duplicate"] == 0


def test_verdicts_of_earlier_releases_still_decide(found: AuditTables, config: AuditConfig, tmp_path: Path) -> None:
    publish(tmp_path, config, found, {})
    first = pq.read_table(tmp_path / "pairs.parquet")["pair"][0].as_py()
    (tmp_path / "verdicts.json").write_text(json.dumps({first: "no"}))
    assert publish(tmp_path, config, found, {})["states"]["duplicate"] == 5


def test_an_audit_that_finds_nothing_has_a_report(tmp_path: Path) -> None:
    pack(class_folders(tmp_path / "a", each=4), str(tmp_path / "up"))
    pack(class_folders(tmp_path / "b", each=4, seed=90_000), str(tmp_path / "down"))
    done = run_cli("cluster", "audit", "up", "down", "report", "--canaries", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0 of 12 downstream pictures have a duplicate upstream" in done.stdout
    assert "No pair was accepted." in (tmp_path / "report" / "index.html").read_text()


def with_a_hub_and_a_broken_picture(found: AuditTables) -> AuditTables:
    """Return an audit with one clean picture that becomes a hub, and another that could not be read."""
    hub, broken = [row for row in found.downstream.to_pylist() if row["state"] == "clean"][:2]
    hubs = pa.Table.from_pylist([{"shard": hub["shard"], "row": hub["row"], "num_matches": 30}], schema=HUB_SCHEMA)
    rows = [unreadable_row("downstream", broken["shard"], broken["row"], "no picture")]
    unchecked = pa.Table.from_pylist(rows, schema=UNCHECKED_SCHEMA)
    return replace(found, found=replace(found.found, hubs=hubs, unchecked=unchecked))


def named_predictions(down: Dataset) -> pa.Table:
    """Return predictions as `trainer` writes them today."""
    rows = predictions(down, {1, 2}).to_pylist()
    names = {"key": "k", "label_names": ["class0"], "prediction_name": "class1"}
    named = [row | names | {"source": picture_name(down, Address(row["shard"], row["row"]))} for row in rows]
    return pa.Table.from_pylist(named, schema=NAMED_PREDICTION_SCHEMA)


def test_every_list_names_its_pictures_and_their_classes(
    found: AuditTables, config: AuditConfig, sets: tuple[Path, Path], tmp_path: Path
) -> None:
    up, down = (open_dataset(str(url)) for url in sets)
    models = {"named": named_predictions(down), "old": predictions(down, {1})}
    publish(tmp_path, config, with_a_hub_and_a_broken_picture(found), models)
    for name, dataset, prefix in (
        ("exclude-upstream", up, ""), ("exclude-downstream", down, ""), ("hubs", down, ""),
        ("canaries", down, "down_"),
    ):  # fmt: skip
        rows = pq.read_table(tmp_path / f"{name}.parquet").to_pylist()
        assert rows, name
        for row in rows:
            address = Address(row[f"{prefix}shard"], row[f"{prefix}row"])
            assert row[f"{prefix}source"] == dataset.read_about(address)["source"]
            assert row[f"{prefix}classes"] == Path(row[f"{prefix}source"]).parent.name, "classes are folders here"
    states = pq.read_table(tmp_path / "downstream.parquet").to_pylist()
    sources = [down.read_about(Address(row["shard"], row["row"]))["source"] for row in states]
    assert [row["classes"] for row in states] == [Path(source).parent.name for source in sources]
    assert [row["source"] for row in states] == [
        None if row["state"] == "clean" else source for row, source in zip(states, sources, strict=True)
    ]
    broken = pq.read_table(tmp_path / "unchecked.parquet").to_pylist()
    assert [row["source"] for row in broken] == [
        down.read_about(Address(row["shard"], row["row"]))["source"] for row in broken
    ]
    listed = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    assert {row["source"] for row in listed if row["model"] == "named"} == set(sources)
    assert {row["source"] for row in listed if row["model"] == "old"} == {None}


def test_lists_of_earlier_releases_without_names_exclude_the_same_and_verdicts_change_them_alike(
    found: AuditTables, config: AuditConfig, sets: tuple[Path, Path], tmp_path: Path
) -> None:
    models = {"old": predictions(open_dataset(str(sets[1])), {1})}
    for folder in ("new", "old"):
        publish(tmp_path / folder, config, with_a_hub_and_a_broken_picture(found), models)
    named = {"source", "classes", "digest", "down_source", "down_classes", *NAMED_PREDICTION_SCHEMA.names[6:]}
    for name in ("exclude-upstream", "exclude-downstream", "hubs", "canaries", "predictions", "downstream"):
        path = tmp_path / "old" / f"{name}.parquet"
        table = pq.read_table(path)
        kept = [column for column in table.column_names if column not in named - set(STATE_SCHEMA.names)]
        assert len(kept) < len(table.column_names)
        pq.write_table(table.select(kept), path)
    for name in ("exclude-upstream", "exclude-downstream"):
        new, old = (listed_rows(str(tmp_path / folder / f"{name}.parquet")) for folder in ("new", "old"))
        assert {shard: rows.tolist() for shard, rows in new.items()} == {s: rows.tolist() for s, rows in old.items()}
        assert new
    verdict = {pq.read_table(tmp_path / "new" / "pairs.parquet")["pair"][0].as_py(): Verdict(verdict="no")}
    for folder in ("new", "old"):
        import_verdicts(open_store(str(tmp_path / folder)), verdict, local_job(tmp_path / folder / "work"))
    assert contents(tmp_path / "new") == contents(tmp_path / "old")


def test_an_empty_list_excludes_nothing(tmp_path: Path) -> None:
    empty = pa.table({"shard": pa.array([], pa.int32()), "row": pa.array([], pa.int32())})
    pq.write_table(empty, tmp_path / "exclude-upstream.parquet")
    assert listed_rows(str(tmp_path / "exclude-upstream.parquet")) == {}


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
    swapped = run_cli(*[part.replace("exclude-down", "exclude-up") for part in commands[-1]], cwd=tmp_path)
    assert swapped.returncode == 2
    assert "lists samples of another dataset than" in swapped.stderr
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


@pytest.mark.parametrize(
    "command", [["audit", "up", "down"], ["audit-within", "up"], ["fingerprint", "up/tars"], ["audit", "up", "s.toml"]]
)
def test_results_are_not_written_among_other_files(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"mine")
    (tmp_path / "s.toml").write_text('[one]\nurl = "down"\n')
    options = ["--against-many"] if "s.toml" in command else []
    done = run_cli("cluster", *command, "photos", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert "photos holds other things and no " in done.stderr
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["1.jpg"]
