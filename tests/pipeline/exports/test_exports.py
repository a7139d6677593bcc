"""Exports: every offset, name and count in them is that of the tars, by independent readers."""

import contextlib
import io
import itertools
import json
import shutil
import sqlite3
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset
import yaml

from pipeline.base.errors import ConfigError, Conflict
from pipeline.dataset.dataset import Dataset, open_dataset
from pipeline.exports.base import Written
from pipeline.exports.huggingface import patterns, size_category
from pipeline.exports.layout import layout_by_rule, scanned_layout
from pipeline.exports.write import FORMATS, export
from tests.conftest import class_folders, jpeg, pack, picture, run_cli


def export_all(dataset: Dataset, *formats: str) -> list[Written]:
    return list(export(dataset, formats or tuple(FORMATS), lambda count: None))


def root_of(dataset: Dataset) -> Path:
    return Path(dataset.store.url)


def tars_of(dataset: Dataset) -> list[Path]:
    return [root_of(dataset) / row["path"] for row in dataset.shards]


def members_of(tar: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(tar) as archive:
        return archive.getmembers()


def labels_by_key(dataset: Dataset) -> dict[str, int]:
    rows = dataset.all_samples(["key", "labels"]).to_pylist()
    return {row["key"]: row["labels"][0] for row in rows}


@pytest.fixture(scope="module")
def exported(small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A copy of the small dataset with all exports."""
    copy = tmp_path_factory.mktemp("exported") / "train"
    shutil.copytree(small_dataset.store.url, copy)
    dataset = open_dataset(str(copy))
    export_all(dataset)
    return dataset


def write_tar(path: Path, files: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, body in files:
            about = tarfile.TarInfo(name)
            about.size, about.mtime = len(body), 0.5  # a fraction makes a PAX header before every member
            archive.addfile(about, io.BytesIO(body))


def foreign_samples(first: int, count: int) -> list[tuple[str, bytes]]:
    files: list[tuple[str, bytes]] = []
    for number in range(first, first + count):
        files.append((f"some folder/{number:04d}.JPG", jpeg(picture(number))))
        files.append((f"some folder/{number:04d}.json", json.dumps({"label": number % 3}).encode()))
    return files


@pytest.fixture(scope="module")
def adopted(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Another tool's tars: blanks, capitals, labels in JSON, a folder of metadata, and pictures that do not decode."""
    root = tmp_path_factory.mktemp("adopted")
    (root / "more").mkdir()
    broken = [("some folder/9000.JPG", b"no picture"), ("some folder/9000.json", b"{}")]
    write_tar(root / "a.tar", [("__meta__/about.json", b"{}"), *foreign_samples(0, 4), *broken, *foreign_samples(4, 3)])
    write_tar(root / "more" / "b.tar", [("README", b"nothing"), *foreign_samples(10, 5)])
    done = run_cli("pipeline", "index", str(root), "--workers", "1")
    assert done.returncode == 0, done.stderr
    dataset = open_dataset(str(root))
    assert dataset.version.num_samples == 12
    export_all(dataset)
    return dataset


@pytest.mark.parametrize("options", [[], ["--no-labels"]])
def test_the_rule_places_members_where_tarfile_finds_them(options: list[str], tmp_path: Path) -> None:
    pictures = class_folders(tmp_path / "pictures", classes=11, each=2)  # one- and two-digit labels
    done = run_cli("pipeline", "shard", str(pictures), str(tmp_path / "set"), *options)
    assert done.returncode == 0, done.stderr
    dataset = open_dataset(str(tmp_path / "set"))
    for row, tar in zip(dataset.shards, tars_of(dataset), strict=True):
        table = dataset.samples(row["shard"])
        with tar.open("rb") as file:
            assert layout_by_rule(table) == scanned_layout(file, "", frozenset(table["image_offset"].to_pylist()))


def test_hugging_face_reads_every_sample_with_its_label(exported: Dataset, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    read = datasets.load_dataset(str(root_of(exported)), cache_dir=str(tmp_path))
    assert list(read) == ["train"]
    assert dict(zip(read["train"]["__key__"], read["train"]["cls"], strict=True)) == labels_by_key(exported)
    assert read["train"][0]["jpg"].size == (64, 48)


def test_webdataset_reads_the_shards_that_timm_is_told_of(exported: Dataset) -> None:
    root = root_of(exported)
    split = json.loads((root / "_info.json").read_text())["splits"]["train"]
    assert split["name"] == "train"
    read = {}
    for name, length in zip(split["filenames"], split["shard_lengths"], strict=True):
        found = {s["__key__"]: int(s["cls"]) for s in webdataset.WebDataset(str(root / name), shardshuffle=False)}
        assert len(found) == length
        read |= found
    assert read == labels_by_key(exported)
    assert split["num_samples"] == len(read)


def test_wids_and_open_clip_count_what_is_in_the_tars(exported: Dataset) -> None:
    root = root_of(exported)
    wids = json.loads((root / "wids.json").read_text())
    assert wids["wids_version"] == 1
    assert [root / shard["url"] for shard in wids["shardlist"]] == tars_of(exported)
    for shard in wids["shardlist"]:
        tar = root / shard["url"]
        assert shard["nsamples"] * 3 == len(members_of(tar))
        assert shard["filesize"] == tar.stat().st_size
        assert json.loads((tar.parent / "sizes.json").read_text())[tar.name] == shard["nsamples"]


def read_dali_index(path: Path) -> list[list[tuple[str, int, int, str]]]:
    head, *lines = path.read_text().splitlines()
    assert head == f"v1.2 {len(lines)}"
    samples = []
    for line in lines:
        words = iter(line.split(" "))
        samples.append([(e, int(o), int(n), name) for e, o, n, name in zip(words, words, words, words, strict=True)])
    return samples


def test_dali_index_has_every_member_as_tarfile_finds_it(exported: Dataset) -> None:
    for tar in tars_of(exported):
        index = root_of(exported) / "exports/dali" / tar.relative_to(root_of(exported)).with_suffix(".idx")
        found = [member for sample in read_dali_index(index) for member in sample]
        expected = [(m.name.partition(".")[2], m.offset_data, m.size, m.name) for m in members_of(tar)]
        assert found == expected


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


def test_exports_leave_the_dataset_as_it_was(small_dataset: Dataset, exported: Dataset) -> None:
    for path in root_of(small_dataset).rglob("*"):
        if path.is_file():
            assert (root_of(exported) / path.relative_to(root_of(small_dataset))).read_bytes() == path.read_bytes()


def test_a_repeated_export_changes_no_file_and_tells_one_of_each_format(exported: Dataset) -> None:
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
    done = run_cli("pipeline", "append", f"more={more}", str(root))
    assert done.returncode == 0, done.stderr
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


def test_dali_index_of_foreign_tars_leaves_rejects_out(adopted: Dataset) -> None:
    for row, tar in zip(adopted.shards, tars_of(adopted), strict=True):
        members = {m.name: m for m in members_of(tar)}
        index = root_of(adopted) / "exports/dali" / Path(row["path"]).with_suffix(".idx")
        samples = read_dali_index(index)
        assert len(samples) == row["num_samples"]
        keys = adopted.samples(row["shard"])["key"].to_pylist()
        for key, sample in zip(keys, samples, strict=True):
            assert [extension for extension, *_ in sample] == ["JPG", "json"]
            for extension, offset, size, name in sample:
                member = members[f"{key}.{extension}"]
                assert (offset, size, name) == (member.offset_data, member.size, member.name.replace(" ", "_"))


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


def test_foreign_labels_and_counts(adopted: Dataset) -> None:
    root = root_of(adopted)
    split = json.loads((root / "_info.json").read_text())["splits"]["train"]
    assert split["alt_label"] == "label"
    assert split["shard_lengths"] == [7, 5]
    # wids goes by the number of a sample in its tar, where a reject and `__meta__/about` are samples like others.
    assert [shard["nsamples"] for shard in json.loads((root / "wids.json").read_text())["shardlist"]] == [9, 5]
    assert json.loads((root / "sizes.json").read_text()) == {"a.tar": 7}
    assert json.loads((root / "more/sizes.json").read_text()) == {"b.tar": 5}


def test_a_cls_member_comes_before_fields_of_the_json(tmp_path: Path) -> None:
    body = jpeg(picture(1))
    write_tar(tmp_path / "a.tar", [("1.jpg", body), ("1.cls", b"4"), ("1.json", b'{"label": 5}')])
    assert run_cli("pipeline", "index", str(tmp_path), "--workers", "1").returncode == 0
    export_all(open_dataset(str(tmp_path)), "energon", "timm")
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
    assert run_cli("pipeline", "index", str(tmp_path), "--workers", "1").returncode == 0
    (written,) = export_all(open_dataset(str(tmp_path)), "energon")
    assert "--tar-index-only" in written.how_to_use
    assert not (tmp_path / ".nv-meta/index.sqlite").exists()
    assert not (tmp_path / ".nv-meta/index.uuid").exists()
    assert (tmp_path / "b.tar.idx").exists()


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


def test_size_category_is_the_word_of_the_hub() -> None:
    numbers = (0, 999, 1000, 999_999, 300_000_000, 10**12)
    words = ["n<1K", "n<1K", "1K<n<10K", "100K<n<1M", "100M<n<1B", "n>1T"]
    assert [size_category(number) for number in numbers] == words


def test_a_pattern_stands_only_where_it_names_the_shards_and_nothing_else() -> None:
    ours = ["a/train-0.tar", "a/train-1.tar", "b/train-2.tar"]
    present = {"a/": ours[:2], "b/": ["b/orphan.tar", "b/train-2.tar"]}
    assert patterns(ours, present) == ["a/*.tar", "b/train-2.tar"]
