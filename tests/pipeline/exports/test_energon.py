"""Energon's files cut the tars into samples, find every member by key, and leave rejects out."""

import contextlib
import io
import itertools
import json
import sqlite3
import struct
import tarfile
from pathlib import Path

import yaml

from pipeline.dataset.dataset import Dataset
from tests.conftest import class_folders, jpeg, pack, picture
from tests.pipeline.exports.exporting import export_all, foreign_samples, indexed, labels_by_key, root_of, tars_of
from tests.tars import write_tar


def energon_samples(tar: Path) -> list[list[str]]:
    """Names of the members between each two offsets, as Energon reads a sample."""
    body = Path(f"{tar}.idx").read_bytes()
    offsets = struct.unpack(f"={len(body) // 8}Q", body)
    data = tar.read_bytes()
    samples = []
    for start, end in itertools.pairwise(offsets):
        with tarfile.open(fileobj=io.BytesIO(data[start:end] + bytes(1024))) as archive:
            samples.append(archive.getnames())
    assert data[offsets[-1] :].strip(b"\0") == b""
    return samples


def test_energon_index_cuts_the_tars_into_samples(exported: Dataset) -> None:
    root = root_of(exported)
    counts = json.loads((root / ".nv-meta/.info.json").read_text())["shard_counts"]
    assert [root / path for path in counts] == tars_of(exported)
    for row, tar in zip(exported.shards, tars_of(exported), strict=True):
        keys = exported.samples(row["shard"])["key"].to_pylist()
        assert energon_samples(tar) == [[f"{key}.jpg", f"{key}.cls", f"{key}.json"] for key in keys]
        assert counts[row["path"]] == len(keys)
    split = yaml.safe_load((root / ".nv-meta/split.yaml").read_text())
    assert split == {"split_parts": {"train": list(counts), "val": [], "test": []}, "exclude": []}
    described = yaml.safe_load((root / ".nv-meta/dataset.yaml").read_text())
    assert described["sample_type"] == {"__module__": "megatron.energon", "__class__": "ImageClassificationSample"}
    assert described["field_map"] == {"image": "jpg", "label": "cls"}


def test_energon_finds_every_member_by_key(exported: Dataset) -> None:
    tars = [tar.read_bytes() for tar in tars_of(exported)]
    query = (
        "SELECT tar_file_id, sample_key, part_name, content_byte_offset, content_byte_size, byte_offset, byte_size "
        "FROM sample_parts JOIN samples USING (tar_file_id, sample_index)"
    )
    found = {}
    with contextlib.closing(sqlite3.connect(root_of(exported) / ".nv-meta/index.sqlite")) as database:
        for tar, key, part, offset, size, start, length in database.execute(query):
            assert start + 512 <= offset <= offset + size <= start + length
            found[f"{key}.{part}"] = tars[tar][offset : offset + size]
    for key, label in labels_by_key(exported).items():
        assert found.pop(f"{key}.cls") == str(label).encode()
        assert found.pop(f"{key}.jpg").startswith(b"\xff\xd8")
        assert json.loads(found.pop(f"{key}.json"))["labels"] == [label]
    assert not found


def test_energon_files_of_foreign_tars_exclude_rejects(adopted: Dataset) -> None:
    meta = root_of(adopted) / ".nv-meta"
    counts = json.loads((meta / ".info.json").read_text())["shard_counts"]
    assert counts == {"a.tar": 8, "more/b.tar": 5}  # with the reject, without folder of metadata and README
    for path, count in counts.items():
        samples = energon_samples(root_of(adopted) / path)
        assert len(samples) == count
        assert all(len({Path(name).stem for name in names if "__meta__" not in name}) <= 1 for names in samples)
    assert yaml.safe_load((meta / "split.yaml").read_text())["exclude"] == ["a.tar/some folder/9000"]
    fields = yaml.safe_load((meta / "dataset.yaml").read_text())["field_map"]
    assert fields == {"image": "JPG", "label": "json[label]"}


def test_a_cls_member_comes_before_fields_of_the_json(tmp_path: Path) -> None:
    body = jpeg(picture(1))
    write_tar(tmp_path / "a.tar", [("1.jpg", body), ("1.cls", b"4"), ("1.json", b'{"label": 5}')])
    export_all(indexed(tmp_path), "energon", "timm")
    fields = yaml.safe_load((tmp_path / ".nv-meta/dataset.yaml").read_text())["field_map"]
    assert fields == {"image": "jpg", "label": "cls"}
    assert "alt_label" not in json.loads((tmp_path / "_info.json").read_text())["splits"]["train"]


def test_other_splits_have_the_names_that_the_tools_take(tmp_path: Path) -> None:
    for split, part, name in (("validation", "val", "validation"), ("train-2", "train-2", "train_2")):
        dataset = pack(class_folders(tmp_path / split / "in", each=1), str(tmp_path / split / "set"), split=split)
        export_all(dataset, "energon", "huggingface")
        parts = yaml.safe_load((root_of(dataset) / ".nv-meta/split.yaml").read_text())["split_parts"]
        assert parts[part] == [row["path"] for row in dataset.shards]
        front = (root_of(dataset) / "README.md").read_text().split("---\n")[1]
        assert [one["split"] for one in yaml.safe_load(front)["configs"][0]["data_files"]] == [name]


def test_keys_that_occur_twice_cost_only_the_index_by_key(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / name, foreign_samples(0, 2))
    (written,) = export_all(indexed(tmp_path), "energon")
    assert "--tar-index-only" in written.how_to_use
    assert not (tmp_path / ".nv-meta/index.sqlite").exists()
    assert not (tmp_path / ".nv-meta/index.uuid").exists()
    assert (tmp_path / "b.tar.idx").exists()
