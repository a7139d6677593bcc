"""Published files become datasets of ours, with the task's splits and classes; what does not fit is refused before."""

import json
from pathlib import Path

import pytest

from pipeline.base.errors import ConfigError
from pipeline.dataset.dataset import Dataset, open_dataset
from pipeline.work.pools import InProcess
from tests.conftest import run_cli
from tests.contents import abouts
from tests.trainer.tasks import files
from trainer.tasks.catalogue import task_named
from trainer.tasks.originals.open import open_original
from trainer.tasks.prepare import prepare


def prepared(name: str, root: Path, out: Path) -> dict[str, Dataset]:
    task = task_named(name)
    prepare(task, open_original(str(root), task), str(out), InProcess(), any_size=True)
    return {split: open_dataset(str(out / split)) for split in task.splits}


def test_pictures_in_arrays_keep_names_labels_and_splits(tmp_path: Path) -> None:
    files.cifar_pickled(tmp_path / "in")
    found = prepared("vtab/cifar100", tmp_path / "in", tmp_path / "out")
    assert {split: dataset.version.num_samples for split, dataset in found.items()} == {
        "train": 30, "train800": 27, "val200": 3, "test": 10,
    }  # fmt: skip
    for dataset in found.values():
        assert dataset.classes == tuple(f"kind{number}" for number in range(100))
    sources = {
        split: {about["source"]: about["labels"] for about in abouts(dataset)} for split, dataset in found.items()
    }
    assert sources["train"] == sources["train800"] | sources["val200"]
    assert sources["test"] == {f"test/{number:02d}.png": [number] for number in range(10)}
    about = json.loads((tmp_path / "out" / "task.json").read_text())
    assert (about["task"], about["order"]) == ("vtab/cifar100", "random, always the same")


def test_files_are_packed_as_they_are(tmp_path: Path) -> None:
    root = files.pets(tmp_path / "in")
    task = task_named("pets")
    with pytest.raises(ConfigError, match="train has 6 pictures and should have 3,680"):
        prepare(task, open_original(str(root), task), str(tmp_path / "out"), InProcess())
    with pytest.raises(ConfigError, match="pets has 37 classes, and the files 2"):
        prepare(task, open_original(str(root), task), str(tmp_path / "out"), InProcess(), any_size=True)
    assert not (tmp_path / "out").exists()


def test_a_rerun_packs_nothing_again_and_keeps_the_version(tmp_path: Path) -> None:
    files.smallnorb(tmp_path)
    first = prepared("vtab/smallnorb-azimuth", tmp_path, tmp_path / "out")
    again = prepared("vtab/smallnorb-azimuth", tmp_path, tmp_path / "out")
    assert {split: dataset.version for split, dataset in first.items()} == {
        split: dataset.version for split, dataset in again.items()
    }
    assert first["test"].version.num_samples == 18  # half of the published test split


def test_the_commands_list_show_and_prepare(tmp_path: Path) -> None:
    listed = run_cli("trainer", "task", "list", "--json")
    rows = [json.loads(line) for line in listed.stdout.splitlines()]
    assert len(rows) == 24
    assert [row["num_pictures"]["train"] for row in rows if row["group"]] == [1000] * 19
    shown = run_cli("trainer", "task", "show", "vtab/dsprites-location").stdout
    assert "flip off, crop off" in shown
    assert "test: 73,728 pictures, train 90 % to 100 %" in shown

    toml = tmp_path / "own.toml"
    toml.write_text(
        'name = "own"\nclasses = ["a", "b"]\npublished = {train = 4, test = 2}\ncrop = false\n'
        'splits = {train = ["train"], test = ["test"]}\n'
    )
    names = [f"train/{kind}/{number}.jpg" for kind in "ab" for number in (1, 2)] + ["test/a/3.jpg", "test/b/3.jpg"]
    files.photos(tmp_path / "in", names)
    done = run_cli("trainer", "task", "prepare", str(toml), "--from", str(tmp_path / "in"), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("test: 2 pictures, 2 classes\nfine-tuning on it goes without random crop\n")
    sources = {about["source"] for about in abouts(open_dataset(str(tmp_path / "out" / "train")))}
    assert sources == {"train/a/1.jpg", "train/a/2.jpg", "train/b/1.jpg", "train/b/2.jpg"}
    files.photos(tmp_path / "in", ["test/c/4.jpg"])
    failed = run_cli("trainer", "task", "prepare", str(toml), "--from", str(tmp_path / "in"), str(tmp_path / "other"))
    assert failed.returncode != 0
    assert "has folders of no class of own: c" in failed.stderr
