"""Several sources at once keep their names apart, and a class list numbers them."""

from pathlib import Path

import pytest

from pipeline.base.errors import ConfigError
from pipeline.dataset.dataset import open_dataset
from pipeline.packing.sources.open import open_sources
from pipeline.packing.sources.table import Columns
from tests.conftest import class_folders, run_here
from tests.contents import abouts


def test_several_sources_keep_their_names_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        class_folders(tmp_path / name / "train", classes=2, each=2, seed=ord(name))
    done = run_here("shard", f"one={tmp_path}/a/train", f"two={tmp_path}/b/train", str(tmp_path / "set"))
    assert done.returncode == 0, done.stderr
    found = abouts(open_dataset(str(tmp_path / "set")))
    assert {about["source"] for about in found} == {
        f"{name}/class{label}/{number:03d}.jpg" for name in ("one", "two") for label in (0, 1) for number in (0, 1)
    }
    with pytest.raises(ConfigError, match="NAME=URL"):
        open_sources([f"{tmp_path}/a/train", f"{tmp_path}/b/train"], Columns())


def test_a_class_list_numbers_folders(small_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "names").write_text("class2\nclass0\nother\nclass1\n")
    done = run_here("shard", str(small_folder), str(tmp_path / "set"), "--classes", str(tmp_path / "names"))
    assert done.returncode == 0, done.stderr
    dataset = open_dataset(str(tmp_path / "set"))
    assert dataset.version.num_classes == 4
    assert {(about["source"][:6], about["labels"][0]) for about in abouts(dataset)} == {
        ("class0", 1),
        ("class1", 3),
        ("class2", 0),
    }
