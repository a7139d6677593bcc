"""Predictions and embeddings of pictures of every kind of source: each picture exactly once, whatever is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist

from cluster.stack.services import Stack
from pipeline.base.errors import Conflict, Interrupted
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.tables import from_parquet
from pipeline.store.base import Store
from pipeline.store.url import open_store
from tests.conftest import class_folders, jpeg, pack, picture, run_cli
from tests.trainer.jobs.test_evaluate import result_of, table
from tests.waiting import wait_until
from trainer.checkpoint.record import require_latest
from trainer.checkpoint.weights import load_model
from trainer.jobs.config import InferenceConfig
from trainer.jobs.pictures import LISTED_SCHEMA, absolute_sources, block_parts, cut
from trainer.jobs.predict import infer
from trainer.run.controls import Controls
from trainer.step.ranks import World, alone


def settings(run: Path, sources: Sequence[Path | str], out: Path, **fields: Any) -> InferenceConfig:
    given = {"output": "predictions", "part_size": 20, "batch_size": 8} | fields
    return InferenceConfig(run=str(run), sources=tuple(map(str, sources)), out=str(out), **given)


def rows_of(out: Path, output: str = "predictions") -> list[dict[str, Any]]:
    paths = sorted((out / output).iterdir())
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def by_source(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {row["source"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def results(run: Path, sources: Sequence[Path | str], out: Path, **fields: Any) -> list[dict[str, Any]]:
    infer(settings(run, sources, out, **fields), alone(), lambda row: None)
    return rows_of(out, fields.get("output", "predictions"))


def test_predictions_of_a_dataset_are_those_of_its_evaluation(
    small_dataset: Dataset, pretrained: Path, tmp_path: Path
) -> None:
    found = results(pretrained, [small_dataset.store.url], tmp_path / "out", data_version=1)
    result_of(pretrained, small_dataset, tmp_path / "evaluation")
    expected = table(tmp_path / "evaluation")
    assert len(list((tmp_path / "out" / "predictions").iterdir())) > 1
    for name in ("source", "prediction", "prediction_name", "guesses"):
        assert [row[name] for row in found] == [row[name] for row in expected]
    assert [row["labels"] for row in found] == [row["label_names"] for row in expected]
    assert np.allclose([row["probability"] for row in found], [row["probability"] for row in expected], atol=1e-6)
    assert all(row["guess_names"][0] == row["prediction_name"] and row["error"] is None for row in found)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unlabelled")
    for number in range(45):
        place = folder / f"part{number % 2}" / f"{number:02d}.jpg"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(jpeg(picture(number)))
    return folder


def _as_tar(pictures: Path, out: Path) -> Path:
    with tarfile.open(out, "w") as tar:
        for path in sorted(pictures.rglob("*.jpg")):
            tar.add(path, path.name)
    return out


def _as_table(pictures: Path, out: Path) -> Path:
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(pictures.rglob("*.jpg"))]
    pq.write_table(pa.table({"image": images}), out, row_group_size=16)
    return out


def test_folders_pictures_tars_and_tables_of_the_same_pictures_give_the_same_predictions(
    pictures: Path, pretrained: Path, tmp_path: Path
) -> None:
    names = sorted(pictures.rglob("*.jpg"))
    from_folder = by_source(results(pretrained, [pictures], tmp_path / "folder"))
    from_files = results(pretrained, names, tmp_path / "files")
    assert [row["source"] for row in from_files] == [str(path) for path in names]
    assert from_folder.keys() == {str(path.relative_to(pictures)) for path in names}
    for row in from_files:
        assert row["prediction"] == from_folder[str(Path(row["source"]).relative_to(pictures))]["prediction"]
    by_guesses = {str(row["guesses"]) + f"{row['probability']:.4f}" for row in from_files}
    for source in (_as_tar(pictures, tmp_path / "all.tar"), _as_table(pictures, tmp_path / "all.parquet")):
        found = results(pretrained, [source], tmp_path / f"of-{source.name}")
        assert len({row["source"] for row in found}) == 45
        assert {str(row["guesses"]) + f"{row['probability']:.4f}" for row in found} == by_guesses


def test_several_sources_keep_their_pictures_apart(pictures: Path, pretrained: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "again")
    found = results(pretrained, [f"one={pictures}", f"two={tmp_path / 'again'}"], tmp_path / "out")
    assert len({row["source"] for row in found}) == 90
    assert {row["source"].partition("/")[0] for row in found} == {"one", "two"}


def test_a_picture_that_cannot_be_read_has_a_row_that_says_why(
    pictures: Path, pretrained: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(pictures, tmp_path / "in"))
    (folder / "part0" / "broken.jpg").write_bytes(b"no picture")
    reported: list[dict[str, Any]] = []
    infer(settings(pretrained, [folder], tmp_path / "out"), alone(), reported.append)
    bad = [row for row in rows_of(tmp_path / "out") if row["error"]]
    assert [row["source"] for row in bad] == ["part0/broken.jpg"]
    assert bad[0]["prediction"] is None
    assert reported[-1]["num_pictures"] == 46
    assert reported[-1]["num_unreadable"] == 1


@pytest.mark.parametrize("sources", ["dataset", "folder"])
def test_embeddings_are_the_features_before_the_head(
    sources: str, small_dataset: Dataset, small_folder: Path, pretrained: Path, tmp_path: Path
) -> None:
    url, version = (small_dataset.store.url, 1) if sources == "dataset" else (str(small_folder), None)
    found = results(pretrained, [url], tmp_path / "out", data_version=version, output="embeddings")
    predicted = results(pretrained, [url], tmp_path / "predicted", data_version=version)
    model = load_model(open_store(str(pretrained)), alone(), require_latest(open_store(str(pretrained))))
    features = torch.tensor([row["embedding"] for row in found])[:, :, None, None]
    with torch.inference_mode():
        probabilities = model.head(features).softmax(1).max(1).values
    assert [row["source"] for row in found] == [row["source"] for row in predicted]
    assert torch.allclose(probabilities, torch.tensor([row["probability"] for row in predicted]), atol=1e-5)


def test_a_stopped_job_goes_on_and_does_nothing_twice(pictures: Path, pretrained: Path, tmp_path: Path) -> None:
    asked = settings(pretrained, [pictures], tmp_path / "out", part_size=8)
    seen = iter(range(1000))
    with pytest.raises(Interrupted, match="what is done is kept"):
        infer(asked, alone(), lambda row: None, Controls(wants_stop=lambda: next(seen) > 40))
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "predictions").iterdir()}
    assert 0 < len(before) < 6
    for path in pictures.rglob("0?.jpg"):  # the list was made at the first start
        shutil.copy(path, path.with_name(f"new-{path.name}"))
    try:
        infer(asked, alone(), lambda row: None)
    finally:
        for path in pictures.rglob("new-*.jpg"):
            path.unlink()
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "predictions").iterdir()}
    assert before.items() <= after.items()
    names = [row["source"] for row in rows_of(tmp_path / "out")]
    assert len(names) == len(set(names)) == 45
    reported: list[dict[str, Any]] = []
    infer(asked, alone(), reported.append)  # a finished job is repeated from its result
    assert reported[0]["num_pictures"] == 45


def test_a_folder_of_other_results_is_refused(pictures: Path, pretrained: Path, tmp_path: Path) -> None:
    results(pretrained, [pictures], tmp_path / "out")
    with pytest.raises(Conflict, match=r"holds other results \(resolution_px was 32, is 40\)"):
        results(pretrained, [pictures], tmp_path / "out", resolution_px=40)


def predicted(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_cli("trainer", "predict", *map(str, arguments), "--workers", "0")


def test_a_start_whose_sources_could_not_be_read_binds_nothing(
    pictures: Path, pretrained: Path, tmp_path: Path
) -> None:
    names = [str(path) for path in sorted(pictures.rglob("*.jpg"))[:3]]
    pq.write_table(pa.table({"url": names}), tmp_path / "table.parquet")
    command = (pretrained, tmp_path / "table.parquet", tmp_path / "out")
    first = predicted(*command)
    assert first.returncode == 2
    assert "try --image-column 'url'" in first.stderr
    second = predicted(*command, "--image-column", "url")
    assert second.returncode == 0, second.stderr
    assert len(rows_of(tmp_path / "out")) == 3


def test_a_job_goes_on_with_the_version_that_it_was_begun_with(pretrained: Path, tmp_path: Path) -> None:
    photos, data, out = tmp_path / "photos", tmp_path / "data", tmp_path / "out"
    pack(class_folders(photos, each=20), str(data), block_bytes=10_000)
    seen = iter(range(1000))
    asked = settings(pretrained, [data], out, data_version=1, part_size=5, top=5)
    with pytest.raises(Interrupted):
        infer(asked, alone(), lambda row: None, Controls(wants_stop=lambda: next(seen) > 50))
    assert 0 < len(rows_of(out)) < 60
    (photos / "class0" / "new.jpg").write_bytes(jpeg(picture(999)))
    assert run_cli("pipeline", "append", str(photos), str(data)).returncode == 0
    done = predicted(pretrained, data, out, "--set", "part_size=5")
    assert done.returncode == 0, done.stderr
    assert len(rows_of(out)) == 60
    fresh = predicted(pretrained, data, tmp_path / "fresh")
    assert fresh.stdout.startswith("61 pictures\n")


def test_a_picture_whose_name_has_an_equals_sign_is_read(
    pictures: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(next(pictures.rglob("*.jpg")), tmp_path / "score=0.9.jpg")
    monkeypatch.chdir(tmp_path)
    assert absolute_sources(["score=0.9.jpg", "name=photos"]) == (
        str(tmp_path / "score=0.9.jpg"), f"name={tmp_path}/photos",
    )  # fmt: skip
    found = results(pretrained, absolute_sources(["score=0.9.jpg"]), tmp_path / "out")
    assert [row["error"] for row in found] == [None]


def _infer(rank: int, asked: InferenceConfig, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/ranks", rank=rank, world_size=2)
    infer(asked, World(rank, 2, torch.device("cpu")), lambda row: None)
    dist.destroy_process_group()


def test_two_ranks_share_the_pictures(pictures: Path, pretrained: Path, tmp_path: Path) -> None:
    alone_rows = results(pretrained, [pictures], tmp_path / "one", part_size=8)
    torch.multiprocessing.spawn(
        _infer, (settings(pretrained, [pictures], tmp_path / "two", part_size=8), str(tmp_path)), nprocs=2
    )
    assert [row["source"] for row in rows_of(tmp_path / "two")] == [row["source"] for row in alone_rows]


def starts(store: Store) -> list[dict[str, Any]]:
    return [json.loads(store.read(entry.key)) for entry in store.list("attempts/")]


def test_a_killed_worker_on_ray_leaves_each_picture_predicted_once(
    cluster: Stack, small_folder: Path, pretrained: Path, s3_url: Callable[[str], str]
) -> None:
    data, out = s3_url("data"), s3_url("out")
    pack(small_folder, data, shard_bytes=150_000, block_bytes=20_000)
    settings = ("--set", "part_size=4", "--set", "batch_size=4", "--resolution", "256")  # slow enough to be killed
    command = [
        str(Path(sys.executable).parent / "cluster"), "submit", "--", "trainer", "predict", str(pretrained), data, out,
        "--workers", "2", *settings,
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    store = open_store(out)
    wait_until(lambda: process.poll() is not None or any(True for _ in store.list("predictions/")), "a first part")
    os.kill(starts(store)[0]["ranks"][1]["pid"], signal.SIGKILL)
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    assert len(starts(store)) == 2
    assert "90 pictures\n" in printed
    tables = [from_parquet(store.read(entry.key), "table") for entry in store.list("predictions/")]
    names = [name for found in tables for name in found["source"].to_pylist()]
    assert len(names) == len(set(names)) == 90


def test_parts_hold_whole_blocks_and_whole_runs() -> None:
    assert block_parts(np.array([5, 0, 7, 3, 20, 1]), 10) == [range(3), range(3, 5), range(5, 6)]
    names = ["a"] * 3 + ["b"] * 4 + [None] * 5
    listed: list[dict[str, Any]] = [{"source": str(row), "run": run} for row, run in enumerate(names)]
    rows = pa.Table.from_pylist(listed, LISTED_SCHEMA)
    for tables in ([rows], [rows.slice(0, 5), rows.slice(5)]):
        parts = [part["run"].to_pylist() for part in cut(tables, 2)]
        assert parts == [["a"] * 3, ["b"] * 4, [None] * 2, [None] * 2, [None]]


def test_the_command_predicts_without_labels_and_prints_where(pictures: Path, pretrained: Path, tmp_path: Path) -> None:
    first = next(pictures.rglob("*.jpg"))
    done = run_cli(
        "trainer", "predict", str(pretrained), str(first), str(tmp_path / "out"), "--workers", "0", "--top", "2"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 picture\n")
    assert len(rows_of(tmp_path / "out")[0]["guesses"]) == 2
    again = run_cli(
        "trainer",
        "predict",
        str(pretrained),
        str(first),
        str(tmp_path / "out"),
        "--workers",
        "0",
        "--top",
        "2",
        "--json",
    )
    assert json.loads(again.stdout)["num_pictures"] == 1
