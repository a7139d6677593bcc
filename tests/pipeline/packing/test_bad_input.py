"""Every wrong input ends in one clear sentence, a non-zero exit code, no traceback and nothing published."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.stack.services import Stack
from tests.conftest import BUCKET, class_folders, jpeg, picture, run_cli, run_here


def no_such_folder(folder: Path) -> list[str]:
    return [str(folder / "nowhere")]


def empty_folder(folder: Path) -> list[str]:
    (folder / "empty").mkdir()
    return [str(folder / "empty")]


def not_an_image(folder: Path) -> list[str]:
    class_folders(folder / "in", each=2)
    (folder / "in" / "class0" / "text.jpg").write_text("hello")
    return [str(folder / "in")]


def splits_instead_of_classes(folder: Path) -> list[str]:
    for split in ("train", "test"):
        class_folders(folder / "in" / split, each=1)
    return [str(folder / "in")]


def unknown_column(folder: Path) -> list[str]:
    (folder / "labels.csv").write_text("path,label\nx.jpg,1\n")
    return [str(folder / "labels.csv")]


def missing_picture(folder: Path) -> list[str]:
    (folder / "a.jpg").write_bytes(jpeg(picture(1)))
    (folder / "labels.csv").write_text("image,label\na.jpg,0\ngone.jpg,1\n")
    return [str(folder / "labels.csv")]


def missing_table(folder: Path) -> list[str]:
    return [str(folder / "labels.csv")]


def table_without_rows(folder: Path) -> list[str]:
    (folder / "labels.csv").write_text("image,label\n")
    return [str(folder / "labels.csv")]


def broken_parquet(folder: Path) -> list[str]:
    (folder / "labels.parquet").write_bytes(b"PAR1 not really")
    return [str(folder / "labels.parquet")]


def unknown_class(folder: Path) -> list[str]:
    (folder / "names").write_text("cat\ndog\n")
    (folder / "labels.csv").write_text("image,label\na.jpg,fish\n")
    return [str(folder / "labels.csv"), "--classes", str(folder / "names")]


def negative_label(folder: Path) -> list[str]:
    (folder / "labels.csv").write_text("image,label\na.jpg,-4\n")
    return [str(folder / "labels.csv")]


def odd_split_name(folder: Path) -> list[str]:
    class_folders(folder / "in", each=1)
    return [str(folder / "in"), "--split", "a/b"]


def repeated_class(folder: Path) -> list[str]:
    (folder / "names").write_text("cat\ncat\n")
    (folder / "labels.csv").write_text("image,label\na.jpg,cat\n")
    return [str(folder / "labels.csv"), "--classes", str(folder / "names")]


def reserved_column(folder: Path) -> list[str]:
    (folder / "labels.csv").write_text("image,label,source\na.jpg,1,flickr\n")
    return [str(folder / "labels.csv")]


def enormous_label(folder: Path) -> list[str]:
    (folder / "labels.csv").write_text("image,label\na.jpg,20000000\n")
    return [str(folder / "labels.csv")]


def odd_labels(folder: Path) -> list[str]:
    (folder / "labels.jsonl").write_text('{"image": "a.jpg", "label": {"x": 1}}\n')
    return [str(folder / "labels.jsonl")]


def name_that_is_not_utf8(folder: Path) -> list[str]:
    class_folders(folder / "in", each=1)
    Path(os.fsdecode(os.fsencode(folder / "in" / "class0") + b"/\xff.jpg")).write_bytes(jpeg(picture(1)))
    return [str(folder / "in")]


def unreadable_size(folder: Path) -> list[str]:
    class_folders(folder / "in", each=1)
    return [str(folder / "in"), "--shard-mb", "nan"]


CASES: list[tuple[Callable[[Path], list[str]], str]] = [
    (no_such_folder, "nowhere is not a folder"),
    (empty_folder, "holds no picture below a class folder"),
    (not_an_image, "class0/text.jpg: not-an-image"),
    (splits_instead_of_classes, "not classes; shard"),
    (unknown_column, "no column 'image'; it has path, label"),
    (missing_picture, "gone.jpg: missing"),
    (missing_table, "labels.csv does not exist"),
    (table_without_rows, "has no row"),
    (broken_parquet, "cannot be read as a table"),
    (unknown_class, "class 'fish' is not in the class list"),
    (negative_label, "label -4 is not a class number"),
    (odd_split_name, "--split 'a/b'"),
    (repeated_class, "line 2 repeats 'cat'"),
    (reserved_column, "rename the columns source"),
    (enormous_label, "label 20000000 is not a class number"),
    (odd_labels, "labels are all numbers or all names"),
    (name_that_is_not_utf8, "is not UTF-8; rename it"),
    (unreadable_size, "--shard-mb nan"),
]


@pytest.mark.parametrize(("make", "message"), CASES, ids=[make.__name__ for make, _ in CASES])
def test_bad_source_is_refused(tmp_path: Path, make: Callable[[Path], list[str]], message: str) -> None:
    source, *options = make(tmp_path)
    done = run_here("shard", source, str(tmp_path / "set"), *options)
    assert done.returncode in (1, 2)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert message in errors[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "set" / "MANIFEST.json").exists()


def test_a_process_that_refuses_its_source_ends_with_one_sentence(tmp_path: Path) -> None:
    done = run_cli("pipeline", "shard", unknown_column(tmp_path)[0], str(tmp_path / "set"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")


def test_debug_adds_the_traceback(tmp_path: Path) -> None:
    done = run_cli("pipeline", "shard", str(tmp_path / "nowhere"), str(tmp_path / "set"), "--debug")
    assert "Traceback" in done.stderr
    assert "error: " in done.stderr


def test_a_wrong_secret_is_refused(s3: Stack, small_folder: Path) -> None:
    done = run_cli("pipeline", "shard", str(small_folder), f"s3://{BUCKET}/secret", AWS_SECRET_ACCESS_KEY="wrong")
    assert done.returncode == 1
    assert "the secret is wrong; check AWS_SECRET_ACCESS_KEY" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_destination_that_cannot_be_written_is_refused(small_folder: Path) -> None:
    done = run_here("shard", str(small_folder), "/proc/nothing/here")
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_reading_what_is_not_a_dataset_says_so(tmp_path: Path) -> None:
    for command in ("inspect", "verify"):
        done = run_here(command, str(tmp_path))
        assert done.returncode == 1
        assert "holds no published dataset" in done.stderr


def test_an_unknown_option_shows_the_usage(tmp_path: Path) -> None:
    done = run_here("shard", "a", "b", "--nonsense")
    assert done.returncode == 2
    assert "No such option" in done.stderr


def test_a_foreign_manifest_is_not_touched(small_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "MANIFEST.json").write_text("{}")
    done = run_here("shard", str(small_folder), str(tmp_path / "set"))
    assert done.returncode == 2
    assert "not of a dataset that this release wrote" in done.stderr
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["MANIFEST.json"]
