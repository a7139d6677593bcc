"""Evaluation of a run: whole, by class names, and repeated only where nothing it depends on has changed."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist

from pipeline.base.errors import ConfigError, Conflict, Interrupted
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.schema import table_of, to_parquet
from pipeline.dataset.tables import from_parquet
from pipeline.store.url import open_store
from tests.conftest import class_folders, pack, run_cli
from tests.trainer.checkpoint.test_fallback import flip_a_byte
from trainer.jobs.config import EvaluateConfig
from trainer.jobs.evaluate import evaluate
from trainer.run.classes import stored_classes
from trainer.run.controls import Controls
from trainer.scores.classification import average_precision
from trainer.step.ranks import World, alone


def result_of(run: Path, data: Dataset, out: Path, **fields: Any) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    settings = EvaluateConfig(run=str(run), data=data.store.url, data_version=1, out=str(out), **fields)
    evaluate(settings, alone(), rows.append)
    return rows[0]


def table(out: Path) -> list[dict[str, Any]]:
    return list(from_parquet((out / "predictions.parquet").read_bytes(), "table").to_pylist())


def test_evaluation_of_a_run_counts_every_picture(
    small_dataset: Dataset, small_folder: Path, pretrained: Path, tmp_path: Path
) -> None:
    result = result_of(pretrained, small_dataset, tmp_path)
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert result["num_test"] == 90
    assert 0 <= result["low"] <= result["accuracy"] <= result["high"] <= 1
    for row in table(tmp_path):
        assert len(row["guesses"]) == 3  # of three classes
        assert row["guesses"][0] == row["prediction"]
        assert row["guess_probabilities"] == sorted(row["guess_probabilities"], reverse=True)
        assert row["prediction_name"] == f"class{row['prediction']}"
        assert row["label_names"] == [f"class{label}" for label in row["labels"]]
        assert row["key"]
        assert row["source"].partition("/")[0] == row["label_names"][0]
        assert (small_folder / row["source"]).is_file()


def test_a_test_set_with_more_classes_than_the_model_is_refused_or_cut(pretrained: Path, tmp_path: Path) -> None:
    other = pack(class_folders(tmp_path / "in", classes=5, each=2), str(tmp_path / "set"))
    with pytest.raises(ConfigError, match=r"2 of 5 classes that .* does not know: .class3., .class4."):
        result_of(pretrained, other, tmp_path / "out")
    assert result_of(pretrained, other, tmp_path / "out", ignore_unknown_classes=True)["num_test"] == 6


def test_classes_are_matched_by_name_whatever_their_order_and_number(
    small_dataset: Dataset, small_folder: Path, pretrained: Path, tmp_path: Path
) -> None:
    straight = result_of(pretrained, small_dataset, tmp_path / "straight")
    names = tmp_path / "names.txt"
    names.write_text("class2\nclass0\nclass1\n")
    done = run_cli("pipeline", "shard", str(small_folder), str(tmp_path / "turned"), "--classes", str(names))
    assert done.returncode == 0, done.stderr
    turned = result_of(pretrained, pack_again(tmp_path / "turned"), tmp_path / "by-name")
    assert turned["num_correct"] == straight["num_correct"]
    few = tmp_path / "few"
    (few / "class1").mkdir(parents=True)
    for path in sorted((small_folder / "class1").iterdir())[:4]:
        (few / "class1" / path.name).write_bytes(path.read_bytes())
    subset = result_of(pretrained, pack(few, str(tmp_path / "subset")), tmp_path / "few-out")
    by_key = [row["correct"] for row in table(tmp_path / "straight") if row["label_names"] == ["class1"]]
    assert subset["num_test"] == 4
    assert subset["num_correct"] <= sum(by_key)
    assert {name for row in table(tmp_path / "few-out") for name in row["label_names"]} == {"class1"}


def test_an_evaluation_writes_figures_by_class_and_confidence(
    small_dataset: Dataset, pretrained: Path, tmp_path: Path
) -> None:
    result = result_of(pretrained, small_dataset, tmp_path)
    classes, confusions, bins = (
        from_parquet((tmp_path / f"{name}.parquet").read_bytes(), "table")
        for name in ("classes", "confusions", "calibration")
    )
    assert classes["num_test"].to_pylist() == [30, 30, 30]
    assert sum(classes["num_correct"].to_pylist()) == result["num_correct"]
    assert sum(confusions["count"].to_pylist()) == 90 - result["num_correct"]
    assert sum(bins["num_test"].to_pylist()) == 90
    assert 0 <= result["calibration_error"] <= 1


def test_pictures_with_several_labels_are_scored_by_average_precision(
    small_folder: Path, pretrained: Path, tmp_path: Path
) -> None:
    paths = sorted(small_folder.rglob("*.jpg"))[::5]
    rows = [{"image": str(path), "label": [path.parent.name, "class0"]} for path in paths]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = pack(tmp_path / "labels.jsonl", str(tmp_path / "set"))
    softmax = result_of(pretrained, data, tmp_path / "softmax")
    sigmoid = result_of(pretrained, data, tmp_path / "sigmoid", probabilities="sigmoid")
    scores = np.array([row["scores"] for row in table(tmp_path / "sigmoid")])
    targets = np.array([[label in row["labels"] for label in range(3)] for row in table(tmp_path / "sigmoid")])
    assert scores.shape == (18, 3)
    each = [average_precision(scores[:, label], targets[:, label]) for label in range(3)]
    assert sigmoid["macro_average_precision"] == pytest.approx(np.mean(each))
    assert each[0] == 1.0  # all have it
    assert np.allclose(np.array([row["scores"] for row in table(tmp_path / "softmax")]).sum(1), 1)
    assert 0 < softmax["micro_average_precision"] <= 1
    classes = from_parquet((tmp_path / "sigmoid" / "classes.parquet").read_bytes(), "table")
    assert classes["average_precision"].to_pylist() == pytest.approx(each)


def pack_again(folder: Path) -> Dataset:
    from pipeline import open_dataset  # noqa: PLC0415

    return open_dataset(str(folder))


def exclusions(path: Path, rows: list[int]) -> str:
    schema = pa.schema([("shard", pa.int32()), ("row", pa.int32())])
    path.write_bytes(to_parquet(table_of([{"shard": 0, "row": row} for row in rows], schema)))
    return str(path)


def test_a_list_with_another_content_is_another_evaluation(
    small_dataset: Dataset, pretrained: Path, tmp_path: Path
) -> None:
    url = exclusions(tmp_path / "exclude.parquet", [0, 1])
    first = result_of(pretrained, small_dataset, tmp_path / "out", exclude=url)
    assert first["num_test"] == 88
    assert result_of(pretrained, small_dataset, tmp_path / "out", exclude=url) == first
    exclusions(tmp_path / "exclude.parquet", [0, 1, 2])
    with pytest.raises(Conflict, match=r"holds the result of another evaluation \(selection was"):
        result_of(pretrained, small_dataset, tmp_path / "out", exclude=url)


def test_a_moved_result_is_repeated_where_it_lies(small_dataset: Dataset, pretrained: Path, tmp_path: Path) -> None:
    first = result_of(pretrained, small_dataset, tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "two")
    assert result_of(pretrained, small_dataset, tmp_path / "two") == first | {"out": str(tmp_path / "two")}


def test_the_centre_can_be_cut_out_of_pictures_that_keep_their_aspect(
    small_dataset: Dataset, pretrained: Path, tmp_path: Path
) -> None:
    whole = result_of(pretrained, small_dataset, tmp_path / "whole")
    cut = result_of(pretrained, small_dataset, tmp_path / "cut", shorter_side_px=40)
    assert cut["num_test"] == whole["num_test"]
    first, second = (table(tmp_path / name)[0]["guess_probabilities"] for name in ("whole", "cut"))
    assert first != second
    with pytest.raises(ConfigError, match="shorter_side_px=31 is less than the 32 px that are cut out"):
        result_of(pretrained, small_dataset, tmp_path / "other", shorter_side_px=31)


def test_an_evaluation_that_is_stopped_keeps_nothing(small_dataset: Dataset, pretrained: Path, tmp_path: Path) -> None:
    settings = EvaluateConfig(run=str(pretrained), data=small_dataset.store.url, data_version=1, out=str(tmp_path))
    with pytest.raises(Interrupted, match="stopped before all pictures were classified"):
        evaluate(settings, alone(), lambda row: None, Controls(wants_stop=lambda: True))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def _evaluate(rank: int, settings: EvaluateConfig, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/ranks", rank=rank, world_size=2)
    rows: list[dict[str, Any]] = []
    evaluate(settings, World(rank, 2, torch.device("cpu")), rows.append)
    evaluate(settings, World(rank, 2, torch.device("cpu")), rows.append)
    assert len(rows) == (2 if rank == 0 else 0)
    dist.destroy_process_group()


def test_one_rank_of_several_reports_the_result(small_dataset: Dataset, pretrained: Path, tmp_path: Path) -> None:
    out, data = str(tmp_path / "out"), small_dataset.store.url
    settings = EvaluateConfig(run=str(pretrained), data=data, data_version=1, out=out)
    torch.multiprocessing.spawn(_evaluate, (settings, str(tmp_path)), nprocs=2)


def test_a_checkpoint_is_chosen_by_its_step(small_dataset: Dataset, pretrained: Path, tmp_path: Path) -> None:
    command = ("trainer", "evaluate", f"{pretrained}@6", small_dataset.store.url, str(tmp_path), "--workers", "0")
    done = run_cli(*command)
    assert done.returncode == 0, done.stderr
    assert "step 6, at 32 px" in done.stdout
    assert done.stdout.startswith("accuracy ")
    again = run_cli(*command, "--json")
    assert json.loads(again.stdout)["step"] == 6


def test_a_run_keeps_the_names_of_its_classes(pretrained: Path) -> None:
    assert stored_classes(open_store(str(pretrained))) == ("class0", "class1", "class2")


def test_the_result_of_a_run_with_a_damaged_newest_checkpoint_is_repeated(
    small_dataset: Dataset, pretrained: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(pretrained, tmp_path / "run"))
    flip_a_byte(run)
    first = result_of(run, small_dataset, tmp_path / "out")
    assert first["step"] == 6
    assert result_of(run, small_dataset, tmp_path / "out") == first
