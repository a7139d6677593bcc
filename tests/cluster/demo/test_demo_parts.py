"""The demonstration's splits and charts."""

from pathlib import Path

import pytest

from cluster.demo.own_folder import own_folders
from cluster.demo.run import demo_folder
from pipeline.base.charts import Series, histogram, line_chart, point_chart
from pipeline.base.errors import ConfigError, EmptySource, NotFound
from tests.conftest import class_folders


def names(folder: Path) -> set[str]:
    return {path.resolve().relative_to(path.resolve().parents[1]).as_posix() for path in folder.rglob("*.jpg")}


def test_plain_class_folders_are_split_60_20_20_without_overlap(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "data", classes=3, each=20)
    folders = own_folders(data, tmp_path / "out")
    parts = [names(folder) for folder in (folders.upstream, folders.train, folders.test)]
    assert [len(part) for part in parts] == [36, 12, 12]
    assert len(set().union(*parts)) == 60
    for folder in (folders.upstream, folders.train, folders.test):
        assert sorted(path.name for path in folder.iterdir()) == ["class0", "class1", "class2"]


def test_given_splits_are_kept(tmp_path: Path) -> None:
    for split, each in (("train", 8), ("test", 5)):
        class_folders(tmp_path / "data" / split, each=each)
    folders = own_folders(tmp_path / "data", tmp_path / "out")
    assert [len(names(folder)) for folder in (folders.upstream, folders.train, folders.test)] == [18, 6, 15]
    assert "25 % of train/" in folders.about[1]


def test_the_split_is_the_same_every_time(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "data", each=9)
    first = names(own_folders(data, tmp_path / "out").test)
    assert first == names(own_folders(data, tmp_path / "out").test)


def test_a_class_with_the_fewest_pictures_is_in_every_part(tmp_path: Path) -> None:
    folders = own_folders(class_folders(tmp_path / "data", classes=2, each=5), tmp_path / "out")
    for folder in (folders.upstream, folders.train, folders.test):
        assert len(list(folder.iterdir())) == 2


def test_missing_and_poor_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is not a folder"):
        own_folders(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(EmptySource, match="two are needed"):
        own_folders(class_folders(tmp_path / "few", classes=3, each=4), tmp_path / "out")


def test_charts_are_svg_with_a_title_and_escaped_text() -> None:
    line = line_chart([Series("<loss>", [(1, 2.5), (2, 1.0)])], "Curve & co", "step", "loss")
    assert line.startswith("<svg")
    assert "Curve &amp; co" in line
    assert "&lt;loss&gt;" in line
    assert point_chart([Series("a", [(1, 50.0), (1, 60.0), (5, 70.0)])], "t", "x", "y").count("<circle") == 4
    assert histogram([(0.0, 3), (4.0, 1)], "t", "x", 4).count("<rect") == 2
    assert line_chart([], "t", "x", "y") == histogram([], "t", "x", 1) == ""


def test_the_demonstration_never_goes_among_the_users_pictures(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "photos", each=1)
    for out in (tmp_path / "photos", tmp_path / "photos" / "class0"):
        with pytest.raises(ConfigError, match="among the pictures"):
            demo_folder(out, data)
    assert demo_folder(tmp_path, data) != demo_folder(tmp_path, tmp_path / "other" / "photos")
    assert demo_folder(tmp_path, data).parent == tmp_path


def test_a_stray_folder_beside_train_and_test_is_not_taken_for_classes(tmp_path: Path) -> None:
    for split in ("train", "Test"):
        class_folders(tmp_path / "data" / split, each=6)
    (tmp_path / "data" / ".ipynb_checkpoints").mkdir()
    assert "test/" in own_folders(tmp_path / "data", tmp_path / "out").about[1]
    (tmp_path / "data" / "notes").mkdir()
    with pytest.raises(EmptySource, match="expected are train/ with test/"):
        own_folders(tmp_path / "data", tmp_path / "out")
