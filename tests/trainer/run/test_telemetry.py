"""What a run tells of its data: metric rows, a line a second, Ray's metrics, and every sample it had to replace."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import CorruptShard
from pipeline.dataset.dataset import Dataset
from pipeline.store.url import open_store
from pipeline.streaming.stream import LoaderConfig
from tests.conftest import pack
from tests.trainer.runs import config, damage_a_picture
from trainer.jobs.pretrain import pretrain
from trainer.run.folder import write_quarantine
from trainer.run.metrics import read_metrics
from trainer.run.progress import metrics_line
from trainer.run.telemetry import _LoaderLog
from trainer.step.ranks import alone


def quarantine(out: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        path.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((out / "quarantine").glob("*"))
    }


def test_metric_rows_tell_of_the_loader_and_what_limits_it(small_dataset: Dataset, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    pretrain(config(small_dataset, tmp_path), alone(), rows.append)
    assert read_metrics(open_store(str(tmp_path))) == rows
    assert rows[0]["reads"] > 0
    assert rows[0]["read_mb_per_second"] > 0
    for row in rows:
        assert {"retries", "hedges", "cache_hits", "bad_samples"} <= row.keys()
        assert 0 <= row["data_wait_fraction"] <= 1
        assert row["limiting_stage"] in ("reading", "decoding", "the consumer")
        assert ("(" in metrics_line(row)) == (row["limiting_stage"] != "the consumer")


def test_the_loader_log_counts_every_picture_and_goes_on_after_a_restart(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    log = tmp_path / "logs" / "loader.jsonl"
    settings = config(small_dataset, tmp_path / "run", loader_log=str(log))
    pretrain(settings, alone(), lambda row: None)
    rows = [json.loads(line) for line in (log.parent / "loader-rank0.jsonl").read_text().splitlines()]
    assert sum(row["images"] for row in rows) == 8 * 24
    assert rows[-1]["step"] == 8
    assert all(before["step"] < after["step"] for before, after in pairwise(rows))
    other = config(small_dataset, tmp_path / "run", loader_log=str(tmp_path / "elsewhere.jsonl"))
    pretrain(other, alone(), lambda row: None)  # is finished: changes nothing, and is no other run
    assert (tmp_path / "elsewhere-rank0.jsonl").read_text() == ""


def test_a_log_line_at_every_step_counts_every_picture_once(small_dataset: Dataset, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("trainer.run.telemetry._LINE_SECONDS", 0.0)
    pretrain(config(small_dataset, tmp_path / "run", loader_log=str(tmp_path / "log")), alone(), lambda row: None)
    rows = [json.loads(line) for line in (tmp_path / "log-rank0.jsonl").read_text().splitlines()]
    assert [(row["step"], row["images"]) for row in rows] == [(step, 24) for step in range(1, 9)]


def test_a_relative_loader_log_lies_where_the_command_was_given(small_dataset: Dataset, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = config(small_dataset, "run", loader_log="loader.jsonl").loader_log
    assert told == str(tmp_path / "loader.jsonl")


def test_on_s3_the_loader_log_is_an_object_for_each_part(s3_url) -> None:
    log = _LoaderLog(s3_url("logs/loader.jsonl"), rank=3)
    for step in (1, 2):
        log.write({"step": step})
    log.flush()
    log.write({"step": 3})
    log.flush()
    log.flush()
    store = open_store(s3_url("logs"))
    parts = [entry.key for entry in store.list("loader-rank3-")]
    assert [store.read(key).decode() for key in parts] == ['{"step": 1}\n{"step": 2}\n', '{"step": 3}\n']


def test_a_loader_log_that_cannot_be_written_does_not_stop_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = _LoaderLog(str(tmp_path / "logs" / "loader.jsonl"), rank=0)
    (tmp_path / "logs" / "loader-rank0.jsonl").unlink()
    (tmp_path / "logs").rmdir()
    log.write({"step": 1})
    assert "the loader's log cannot be written" in caplog.text


def test_every_replaced_sample_becomes_a_line_of_the_run_folder(small_folder: Path, tmp_path: Path) -> None:
    dataset = pack(small_folder, str(tmp_path / "set"), shard_bytes=150_000, block_bytes=40_000)
    damage_a_picture(dataset)
    rows: list[dict[str, Any]] = []
    pretrain(config(dataset, tmp_path / "run"), alone(), rows.append)
    written = quarantine(tmp_path / "run")
    bad = [row for lines in written.values() for row in lines]
    assert len(bad) == sum(row["bad_samples"] for row in rows) == 2  # once in each of two epochs
    assert {(row["shard"], row["path"], row["reason"]) for row in bad} == {(0, dataset.shard_path(0), "checksum")}
    for name, lines in written.items():
        step, _, rank = name.removesuffix(".jsonl").partition("-")
        assert rank == "rank0"
        assert all(int(step) - 3 <= row["step"] < int(step) for row in lines)


def test_the_samples_that_stopped_a_run_are_written_too(small_folder: Path, tmp_path: Path) -> None:
    dataset = pack(small_folder, str(tmp_path / "set"), shard_bytes=150_000, block_bytes=40_000)
    (Path(dataset.store.url) / dataset.shard_path(0)).unlink()
    settings = config(dataset, tmp_path / "run", loader=LoaderConfig(max_bad_fraction=0.0))
    with pytest.raises(CorruptShard, match="samples were bad") as stop:
        pretrain(settings, alone(), lambda row: None)
    num_bad = int(str(stop.value).split(" ", 1)[0])
    assert sum(len(lines) for lines in quarantine(tmp_path / "run").values()) == num_bad > 16


def test_a_repeated_stretch_adds_to_the_quarantine_only_what_is_new(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for rows in ([{"row": 1}], [{"row": 1}], [{"row": 1}, {"row": 2}], []):
        write_quarantine(store, 3, 0, rows)
    names = sorted(path.name for path in (tmp_path / "quarantine").iterdir())
    assert len(names) == 2
    assert names[1] == "000000003-rank0.jsonl"
    assert (tmp_path / "quarantine" / names[1]).read_text() == '{"row": 1}\n'
    assert (tmp_path / "quarantine" / names[0]).read_text() == '{"row": 1}\n{"row": 2}\n'
