"""Tars are packed whole, ours and third-party ones in every tar format, or refused by name."""

import io
import json
import tarfile
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from pipeline.base.errors import ConfigError, CorruptShard
from pipeline.dataset.dataset import Dataset, open_dataset
from pipeline.packing.sources.table import Columns
from tests.conftest import cli, jpeg, pack, picture
from tests.contents import abouts, images
from tests.tars import Members, write_tar

NO_LABELS = Columns(label=None)


def labels_in(url: Path) -> dict[str, list[str]]:
    """Return the class names of each image by its key, or its numbers as text."""
    dataset = open_dataset(str(url))
    return {
        about["source"].partition("#")[2]: [dataset.class_name(label) for label in about["labels"]]
        for about in abouts(dataset)
    }


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_tars_without_an_index_in_every_tar_format(tmp_path: Path, kind: int) -> None:
    for number in range(3):
        members = []
        for row in range(4):
            members += [
                (f"d/{number}-{row}.jpg", jpeg(picture(10 * number + row))),
                (f"d/{number}-{row}.cls", b"%d" % row),
                (f"d/{number}-{row}.json", json.dumps({"caption": f"c{row}", "width": 1}).encode()),
            ]
        write_tar(tmp_path / f"{number:03d}.tar", members, kind)
    dataset = pack(tmp_path / "{000..002}.tar", str(tmp_path / "set"))
    found = {about["source"]: about for about in abouts(dataset)}
    assert found["001.tar#d/1-2"]["labels"] == [2]
    assert found["001.tar#d/1-2"]["caption"] == "c2"
    assert found["001.tar#d/1-2"]["width"] == 64  # ours, not theirs
    assert len(found) == 12


def test_a_dataset_of_ours_is_packed_again_with_all_it_knows(small_dataset: Dataset, tmp_path: Path) -> None:
    again = pack(Path(small_dataset.store.url), str(tmp_path / "set"), shard_bytes=50_000, block_bytes=20_000)
    assert again.classes == small_dataset.classes
    order = partial(sorted, key=lambda about: about["source"])
    assert order(abouts(again)) == order(abouts(small_dataset))
    assert images(again) == images(small_dataset)


def test_what_webdataset_wrote_is_packed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with webdataset.ShardWriter(str(tmp_path / "in" / "w-%03d.tar"), maxcount=4, verbose=0) as writer:
        for number in range(10):
            writer.write({"__key__": f"{number:04d}", "jpg": jpeg(picture(number)), "cls": number % 3})
    dataset = pack(tmp_path / "in", str(tmp_path / "set"))
    assert sorted(about["labels"][0] for about in abouts(dataset)) == sorted(number % 3 for number in range(10))


def test_img2dataset_output_brings_the_columns_of_its_parquet_file(tmp_path: Path) -> None:
    rows = []
    members = []
    for number in range(5):
        key = f"{number:09d}"
        failed = number == 3
        rows.append(
            {"key": key, "url": f"http://x/{number}", "caption": f"c{number}", "width": 64, "height": 48,
             "status": "failed_to_download" if failed else "success", "error_message": "404" if failed else None}
        )  # fmt: skip
        if not failed:
            members += [(f"{key}.jpg", jpeg(picture(number))), (f"{key}.txt", b"c"), (f"{key}.json", b"{}")]
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in" / "00000.tar", members)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / "00000.parquet")
    (tmp_path / "in" / "00000_stats.json").write_text("{}")
    dataset = pack(tmp_path / "in", str(tmp_path / "set"), columns=NO_LABELS)
    assert {about["url"] for about in abouts(dataset)} == {f"http://x/{number}" for number in (0, 1, 2, 4)}
    assert dataset.version.num_rejects == 0


@pytest.mark.parametrize("damage", ["cut between members", "cut in a member", "flipped header", "no end mark"])
def test_a_damaged_tar_is_an_error_not_a_gap(tmp_path: Path, damage: str) -> None:
    members = [(f"{number}.jpg", jpeg(picture(number))) for number in range(6)]
    write_tar(tmp_path / "a.tar", members, tarfile.USTAR_FORMAT)
    body = bytearray((tmp_path / "a.tar").read_bytes())
    with tarfile.open(tmp_path / "a.tar") as archive:
        infos = archive.getmembers()
    if damage == "cut between members":
        body = body[: infos[3].offset]
    elif damage == "cut in a member":
        body = body[: infos[3].offset_data + 100]
    elif damage == "flipped header":
        body[infos[3].offset + 5] ^= 1
    else:
        body = body[: infos[5].offset_data + -(-infos[5].size // 512) * 512]
    (tmp_path / "a.tar").write_bytes(body)
    with pytest.raises(CorruptShard, match=r"a\.tar"):
        pack(tmp_path / "a.tar", str(tmp_path / "set"))
    assert not (tmp_path / "set" / "MANIFEST.json").exists()


def test_json_of_others_with_nan_large_numbers_and_a_source_of_its_own(tmp_path: Path) -> None:
    text = '{"score": NaN, "id": 123456789012345678901234567890, "source": "flickr", "odd": "\\ud83d"}'
    members = [
        (f"{n}.{kind}", body) for n in range(4) for kind, body in (("jpg", jpeg(picture(n))), ("json", text.encode()))
    ]
    write_tar(tmp_path / "a.tar", members)
    found = abouts(pack(tmp_path / "a.tar", str(tmp_path / "set"), columns=NO_LABELS))
    assert {about["source"] for about in found} == {f"a.tar#{n}" for n in range(4)}
    assert found[0]["score"] is None
    assert found[0]["id"] == 123456789012345678901234567890


def a_jpeg(number: int) -> bytes:
    return jpeg(picture(number))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([("cls", b"cat"), ("cls", b"polar bear")], [["cat"], ["polar bear"]]),
        ([("json", b'{"label": "cat"}'), ("json", b'{"labels": ["dog", "cat"]}')], [["cat"], ["dog", "cat"]]),
        ([("cls", b"3"), ("json", b'{"label": 1.0}')], [["3"], ["1"]]),
        ([("json", b'{"label": "007"}'), ("json", b'{"label": "010"}')], [["007"], ["010"]]),
        ([("cls", b"3"), ("cls", b"-1")], [["3"], []]),
    ],
)
def test_every_label_of_a_tar_arrives(
    tmp_path: Path, labels: list[tuple[str, bytes]], expected: list[list[str]]
) -> None:
    """Also where images come first and labels after them."""
    members: Members = [(f"{n}.jpg", a_jpeg(n)) for n in range(len(labels))]
    members += [(f"{n}.{kind}", body) for n, (kind, body) in enumerate(labels)]
    write_tar(tmp_path / "a.tar", members)
    printed = cli("shard", tmp_path / "a.tar", tmp_path / "set")
    assert labels_in(tmp_path / "set") == {str(number): names for number, names in enumerate(expected)}
    assert ("1 image has no label: a.tar#1" in printed) == ([] in expected)


def test_names_in_tars_are_numbered_by_a_class_list(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("1.jpg", a_jpeg(1)), ("1.cls", b"001"), ("2.jpg", a_jpeg(2)), ("2.cls", b"cat")])
    (tmp_path / "names").write_text("cat\n001\n")
    cli("shard", tmp_path / "a.tar", tmp_path / "set", "--classes", tmp_path / "names")
    assert open_dataset(str(tmp_path / "set")).classes == ("cat", "001")
    assert labels_in(tmp_path / "set") == {"1": ["001"], "2": ["cat"]}
    (tmp_path / "names").write_text("dog\n")
    printed = cli("shard", tmp_path / "a.tar", tmp_path / "other", "--classes", tmp_path / "names", code=2)
    assert "is not in the class list (a.tar#1)" in printed


def test_tars_without_labels_are_refused_unless_asked_for(tmp_path: Path) -> None:
    members: Members = [
        (f"{name}/{n}.{kind}", a_jpeg(n)) for name in ("cat", "dog") for n, kind in enumerate(["jpg", "txt"])
    ]
    write_tar(tmp_path / "a.tar", members)
    printed = cli("shard", tmp_path / "a.tar", tmp_path / "set", code=2)
    assert "no sample has a label; other members: 2 .txt; --folder-labels" in printed
    assert "(cat, dog)" in printed
    printed = cli("shard", tmp_path / "a.tar", tmp_path / "set", "--no-labels")
    assert "ignored 2 files: 2 .txt (cat/1.txt, dog/1.txt)" in printed
    cli("shard", tmp_path / "a.tar", tmp_path / "named", "--folder-labels")
    assert labels_in(tmp_path / "named") == {"cat/0": ["cat"], "dog/0": ["dog"]}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["22.00.jpg", "v1.0.jpg", "0.jpg"], r"2 of 3 samples .* endings found: .00.jpg \(1\), .0.jpg \(1\)"),
        (
            ["0.left.jpg", "0.right.jpg"],
            "1 of 1 sample does not .* first '0' with 0.left.jpg, 0.right.jpg.* such as --image-member left.jpg;",
        ),
        (["c.jpg", "c.png", "d.jpg"], "1 of 2 samples .* --image-member"),
        (["c.jpg", "d.jpg", "c.jpg"], "holds c.jpg twice"),
        (["c.jpg", "c.jpg"], "holds c.jpg twice"),
    ],
)
def test_a_tar_from_which_images_would_be_lost_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    write_tar(tmp_path / "a.tar", [(name, a_jpeg(n)) for n, name in enumerate(names)])
    with pytest.raises(ConfigError, match=message):
        pack(tmp_path / "a.tar", str(tmp_path / "set"), columns=NO_LABELS)


def test_image_members_are_chosen_by_their_ending(tmp_path: Path) -> None:
    members: Members = [("22.00.jpg", a_jpeg(1)), ("22.00.cls", b"2"), ("v1.0.jpg", a_jpeg(2)), ("v1.0.cls", b"1")]
    write_tar(tmp_path / "dots.tar", [*members, ("0.png", a_jpeg(3)), ("0.cls", b"0")])
    cli("shard", tmp_path / "dots.tar", tmp_path / "dots", "--image-member", "jpg", "--image-member", "png")
    assert labels_in(tmp_path / "dots") == {"22.00": ["2"], "v1.0": ["1"], "0": ["0"]}
    pairs = [("0.left.jpg", a_jpeg(1)), ("0.right.jpg", a_jpeg(2)), ("0.cls", b"5")]
    write_tar(tmp_path / "pairs.tar", pairs)
    printed = cli("shard", tmp_path / "pairs.tar", tmp_path / "left", "--image-member", ".left.jpg")
    assert labels_in(tmp_path / "left") == {"0": ["5"]}
    assert images(open_dataset(str(tmp_path / "left"))) == [pairs[0][1]]
    assert "ignored" in printed


def test_links_devices_and_hidden_members_are_counted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, body in (("1.jpg", a_jpeg(1)), ("._1.jpg", b"fork"), ("__MACOSX/1.jpg", b"fork"), ("1.cls", b"1")):
            about = tarfile.TarInfo(name)
            about.size = len(body)
            archive.addfile(about, io.BytesIO(body))
        for name, kind in (
            ("2.jpg", tarfile.LNKTYPE),
            ("3.jpg", tarfile.SYMTYPE),
            ("4.jpg", tarfile.FIFOTYPE),
            ("5.txt", tarfile.SYMTYPE),
            ("6.txt", tarfile.CHRTYPE),
        ):
            about = tarfile.TarInfo(name)
            about.type, about.linkname = kind, "1.jpg"
            archive.addfile(about)
    printed = cli("shard", tmp_path / "a.tar", tmp_path / "set", "--max-reject-fraction", 0.5)
    assert "ignored 4 files: 1 device (6.txt); 2 hidden or system (._1.jpg, __MACOSX/1.jpg); " in printed
    assert "1 link (5.txt)" in printed
    dataset = open_dataset(str(tmp_path / "set"))
    assert sorted(about["source"] for about in abouts(dataset)) == ["a.tar#1", "a.tar#2"]  # a hard link is the file
    rejects = {row["source"]: (row["reason"], row["detail"]) for row in dataset.rejects.to_pylist()}
    assert rejects == {
        "a.tar#3": ("not-a-file", "3.jpg is a link"),
        "a.tar#4": ("not-a-file", "4.jpg is a FIFO"),
    }


@pytest.mark.parametrize(
    ("member", "body", "detail"),
    [
        ("2.cls", b"5000000000", "label 5000000000 is not a class number"),
        ("2.cls", b"9" * 5000, "is not a class number"),
        ("2.cls", b"-7", "label -7 is not a class number"),
        ("2.cls", b"\xff\xfe", "2.cls cannot be read"),
        ("2.json", b"[" * 100_000, "2.json cannot be read: RecursionError"),
        ("2.json", b'{"label": 1, "x": ' + b"[" * 700 + b"]" * 700 + b"}", "nested too deeply"),
        ("2.json", b'{"label": 1', "2.json cannot be read"),
        ("2.json", b'{"label": {"x": 1}}', "is neither a class number nor a name"),
        ("2.json", b'{"label": 1e400}', "label inf is neither"),
    ],
)
def test_a_hostile_label_rejects_one_sample_with_its_name(
    tmp_path: Path, member: str, body: bytes, detail: str
) -> None:
    write_tar(tmp_path / "a.tar", [("1.jpg", a_jpeg(1)), ("1.cls", b"1"), ("2.jpg", a_jpeg(2)), (member, body)])
    dataset = pack(tmp_path / "a.tar", str(tmp_path / "set"), max_reject_fraction=0.5)
    assert [about["labels"] for about in abouts(dataset)] == [[1]]
    [row] = dataset.rejects.to_pylist()
    assert (row["source"], row["reason"]) == ("a.tar#2", "bad-label")
    assert detail in row["detail"]


def test_tars_of_several_splits_are_refused(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val")):
        write_tar(tmp_path / "in" / split / "0.tar", [("1.jpg", a_jpeg(number)), ("1.cls", b"1")])
    (tmp_path / "in" / ".cache").mkdir()
    (tmp_path / "in" / ".cache" / "0.tar").write_bytes(b"")
    assert "holds the splits train (train/0.tar), val (val/0.tar)" in cli(
        "shard", tmp_path / "in", tmp_path / "set", code=2
    )
    printed = cli("shard", tmp_path / "in" / "train", tmp_path / "in" / "val", tmp_path / "set")
    assert "2 samples" in printed
