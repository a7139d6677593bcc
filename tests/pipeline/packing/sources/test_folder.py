"""Of a folder every image in a class folder is packed, and every other file is ignored and counted."""

import os
from pathlib import Path

import pytest

from pipeline.base.errors import ConfigError
from pipeline.dataset.dataset import open_dataset
from pipeline.packing.plan import Plan
from tests.conftest import class_folders, cli, jpeg, pack, picture
from tests.contents import abouts, original_names, source_counts


def test_hidden_and_other_files_are_ignored_counted_and_kept_with_the_plan(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", classes=2, each=2)
    expected = original_names(source)
    for name in (
        ".git/x.jpg",
        "__MACOSX/class0/._000.jpg",
        "class0/.ipynb_checkpoints/000.jpg",
        "class0/._000.jpg",
        "class0/Thumbs.db",
        "class1/notes.TXT",
        "class1/logo.svg",
        "class1/README",
        "outside.jpg",
    ):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(jpeg(picture(7)))
    printed = cli("shard", source, tmp_path / "set")
    assert "ignored 9 files" in printed
    for part in (
        "5 hidden or system (.git/x.jpg, __MACOSX/class0/._000.jpg, ...)",
        "1 .txt (class1/notes.TXT)",
        "1 .svg (class1/logo.svg)",
        "1 without an extension (class1/README)",
        "1 images outside of a class folder (outside.jpg)",
    ):
        assert part in printed
    dataset = open_dataset(str(tmp_path / "set"))
    assert dataset.classes == ("class0", "class1")
    assert source_counts(dataset) == dict.fromkeys(expected, 1)
    [stored] = (tmp_path / "set").glob("plans/*/plan.json")
    plan = Plan.model_validate_json(stored.read_bytes())
    assert plan.num_ignored == sum(kind.count for kind in plan.ignored) == 9
    assert cli("shard", source, tmp_path / "set").partition("published")[0] == printed.partition("published")[0]


def test_other_names_of_jpeg_are_images(tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    for number, name in enumerate(("x.jfif", "y.jpe", "z.JPG")):
        (tmp_path / "in" / "a" / name).write_bytes(jpeg(picture(number)))
    assert pack(tmp_path / "in", str(tmp_path / "set")).version.num_samples == 3


def test_a_pipe_called_as_an_image_is_rejected_and_does_not_hang(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", classes=1, each=2)
    os.mkfifo(source / "class0" / "x.jpg")
    cli("shard", source, tmp_path / "set", "--max-reject-fraction", 0.5)
    [row] = open_dataset(str(tmp_path / "set")).rejects.to_pylist()
    assert (row["source"], row["reason"]) == ("class0/x.jpg", "not-a-file")


def test_images_without_class_folders_need_no_labels(tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "deep" / "er").mkdir(parents=True)
    for number, name in enumerate(("a.jpg", "deep/b.jpg", "deep/er/c.jpg")):
        (source / name).write_bytes(jpeg(picture(number)))
    (source / "deep").rename(tmp_path / "aside")
    assert "--no-labels packs images without class folders" in cli("shard", source, tmp_path / "set", code=1)
    (tmp_path / "aside").rename(source / "deep")
    cli("shard", source, tmp_path / "set", "--no-labels")
    dataset = open_dataset(str(tmp_path / "set"))
    assert {about["source"]: about["labels"] for about in abouts(dataset)} == {
        "a.jpg": [],
        "deep/b.jpg": [],
        "deep/er/c.jpg": [],
    }


@pytest.mark.parametrize("names", [["Train", "TEST"], ["train", "val", "extra"]])
def test_splits_are_no_classes(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "1.jpg").write_bytes(jpeg(picture(1)))
    with pytest.raises(ConfigError, match="holds the splits"):
        pack(tmp_path / "in", str(tmp_path / "set"))


def test_classes_of_another_dataset_number_this_one(tmp_path: Path) -> None:
    cli("shard", class_folders(tmp_path / "train", classes=3, each=1), tmp_path / "set")
    test = class_folders(tmp_path / "test", classes=3, each=1, seed=9)
    for name in ("class0", "class1"):
        (test / name / "000.jpg").unlink()
    printed = cli("shard", test, tmp_path / "tested", "--classes-from", tmp_path / "set")
    assert "2 of 3 classes have no image: class0, class1" in printed
    dataset = open_dataset(str(tmp_path / "tested"))
    assert dataset.classes == ("class0", "class1", "class2")
    assert [about["labels"] for about in abouts(dataset)] == [[2]]
    (test / "class2").rename(test / "owl")
    printed = cli("shard", test, tmp_path / "other", "--classes-from", tmp_path / "set", code=2)
    assert "class 'owl' is not in the class list (owl/000.jpg)" in printed


def test_another_setting_is_named_by_its_option(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", classes=2, each=1)
    cli("shard", source, tmp_path / "set")
    printed = cli("shard", source, tmp_path / "set", "--jpeg-quality", 80, "--shard-mb", 1, code=2)
    assert "--shard-mb was 256.0 and is 1.0; --jpeg-quality was 95 and is 80" in printed
    (source / "class2").mkdir()
    (source / "class2" / "1.jpg").write_bytes(jpeg(picture(5)))
    printed = cli("shard", source, tmp_path / "set", code=2)
    assert "its classes differ (+class2); it was packed from 2 images, the sources have 3" in printed
