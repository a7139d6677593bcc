"""Exports are of the version that is published, change nothing else, and may be repeated."""

import contextlib
import json
import shutil
import sqlite3
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.base.errors import ConfigError, Conflict
from pipeline.dataset.dataset import Dataset, open_dataset
from pipeline.exports.write import FORMATS, export
from tests.conftest import class_folders, cli, pack
from tests.pipeline.exports.exporting import export_all, labels_by_key, root_of, tars_of


def test_exports_leave_the_dataset_as_it_was(small_dataset: Dataset, exported: Dataset) -> None:
    for path in root_of(small_dataset).rglob("*"):
        if path.is_file():
            assert (root_of(exported) / path.relative_to(root_of(small_dataset))).read_bytes() == path.read_bytes()


def test_a_repeated_export_changes_no_file_and_reports_one_of_each_format(exported: Dataset) -> None:
    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in root_of(exported).rglob("*") if path.is_file()}

    before, counts = content(), list[int]()
    written = list(export(exported, tuple(FORMATS), counts.append))
    assert content() == before
    assert counts == [1] * len(FORMATS) * len(exported.shards)
    assert [one.format for one in written] == list(FORMATS)
    assert all(root_of(exported) / one.key in before and one.how_to_use for one in written)


def test_after_append_an_export_is_of_the_new_version(exported: Dataset, tmp_path: Path) -> None:
    root = tmp_path / "train"
    shutil.copytree(root_of(exported), root)
    more = class_folders(tmp_path / "more", each=4, seed=500)
    cli("append", f"more={more}", root)
    dataset = open_dataset(str(root))
    uuid = (root / ".nv-meta/index.uuid").read_text()
    export_all(dataset)
    assert (root / ".nv-meta/index.uuid").read_text() != uuid
    with contextlib.closing(sqlite3.connect(root / ".nv-meta/index.sqlite")) as database:
        assert dict(database.execute("SELECT sample_key, 1 FROM samples")).keys() == labels_by_key(dataset).keys()
    assert json.loads((root / "_info.json").read_text())["splits"]["train"]["num_samples"] == 102
    # open_clip reads the file beside the first shard only, so that must know the shards of both plans.
    folders = {tar.parent for tar in tars_of(dataset)}
    assert len(folders) == 2
    for folder in folders:
        sizes = json.loads((folder / "sizes.json").read_text())
        assert sizes == {
            tar.name: row["num_samples"] for row, tar in zip(dataset.shards, tars_of(dataset), strict=True)
        }


@pytest.mark.parametrize(
    ("name", "key"),
    [("huggingface", "README.md"), ("timm", "_info.json"), ("wids", "wids.json"), ("energon", ".nv-meta/split.yaml")],
)
def test_what_somebody_else_wrote_stays(name: str, key: str, small_dataset: Dataset, tmp_path: Path) -> None:
    shutil.copytree(small_dataset.store.url, tmp_path / "train")
    path = tmp_path / "train" / key
    path.parent.mkdir(exist_ok=True)
    path.write_text("by hand")
    before = sorted((tmp_path / "train").rglob("*"))
    with pytest.raises(Conflict, match=key):
        export_all(open_dataset(str(tmp_path / "train")), "dali", name)
    assert path.read_text() == "by hand"
    assert sorted((tmp_path / "train").rglob("*")) == before
    with pytest.raises(ConfigError, match="tfrecord"):
        export_all(open_dataset(str(tmp_path / "train")), "tfrecord")


def test_exports_lie_beside_the_shards_in_s3(small_folder: Path, s3_url: Callable[[str], str]) -> None:
    dataset = pack(small_folder, s3_url("set"), shard_bytes=150_000)
    written = export_all(dataset)
    for one in written:
        assert dataset.store.num_bytes(one.key)
    row = dataset.shards[0]
    offsets = struct.unpack("=2Q", dataset.store.read_range(f"{row['path']}.idx", 0, 16))
    head = dataset.store.read_range(row["path"], offsets[1], 512)
    assert tarfile.TarInfo.frombuf(head, "ascii", "strict").name == "000000-000001.jpg"
    assert dataset.store.read(".nv-meta/index.sqlite").startswith(b"SQLite format 3")
    assert export_all(dataset) == written
