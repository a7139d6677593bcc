"""Third-party tars read through `open_any`: wherever they lie, indexed once, never touched."""

import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset
from crc32c import crc32c

from pipeline.base.errors import ConfigError, CorruptShard, Denied, EmptySource, NotFound
from pipeline.dataset.dataset import Address, Dataset
from pipeline.packing.foreign_tars.open_any import open_any
from pipeline.store.url import open_store
from pipeline.streaming.selection import Selection
from pipeline.upkeep.statistics import statistics
from tests.conftest import jpeg, picture
from tests.contents import faults
from tests.serving import serving
from tests.tars import Members, write_tar

Expected = dict[str, tuple[list[int], bytes]]


@pytest.fixture(autouse=True)
def index_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BIT_INDEX_FOLDER", str(tmp_path / "index"))
    return tmp_path / "index"


def by_webdataset(folder: Path, first: int = 0, count: int = 12) -> Expected:
    """Write tars of five samples as its users do; return labels and image by key."""
    folder.mkdir(parents=True, exist_ok=True)
    expected: Expected = {}
    with webdataset.ShardWriter(str(folder / "x-%06d.tar"), maxcount=5, verbose=0) as writer:
        for number in range(first, first + count):
            key, image = f"d.x/{number:04d}", jpeg(picture(number))
            writer.write({"__key__": key, "jpg": image, "cls": number % 3})
            expected[key] = ([number % 3], image)
    return expected


def by_tarfile(path: Path, first: int, count: int, kind: int) -> Expected:
    """Write one tar with labels in JSON."""
    expected: Expected = {}
    members: Members = []
    for number in range(first, first + count):
        key, image = f"{'long name ' * 12}/{number:04d}", jpeg(picture(number))
        members += [
            (f"{key}.jpg", image),
            (f"{key}.json", json.dumps({"labels": [number, number + 1]}).encode()),
        ]
        expected[key] = ([number, number + 1], image)
    write_tar(path, members, kind)
    return expected


def samples_of(dataset: Dataset) -> Expected:
    found: Expected = {}
    for shard in range(len(dataset.shards)):
        table = dataset.samples(shard)
        for row, (key, labels) in enumerate(zip(table["key"].to_pylist(), table["labels"].to_pylist(), strict=True)):
            found[key] = (labels, dataset.read_image(Address(shard, row)))
    return found


def check_blocks(dataset: Dataset) -> None:
    for block in dataset.blocks.to_pylist():
        body = dataset.read_span(block["shard"], block["offset"], block["num_bytes"])
        if crc32c(body) != block["crc32c"]:
            raise CorruptShard(dataset.shard_url(block["shard"]))


def files_below(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in folder.rglob("*")}


def put(url: str, folder: Path) -> None:
    store = open_store(url)
    for path in folder.rglob("*.tar"):
        assert store.create(str(path.relative_to(folder)), path.read_bytes())


def test_what_webdataset_wrote_by_pattern_folder_and_join(tmp_path: Path) -> None:
    expected = by_webdataset(tmp_path / "in")
    root = tmp_path / "in"
    dataset = open_any(f"{root}/x-{{000000..000002}}.tar")
    assert samples_of(dataset) == expected
    check_blocks(dataset)
    assert dataset.version.num_classes == 3
    assert dataset.classes == ("0", "1", "2")
    assert [dataset.shard_path(shard) for shard in range(3)] == [f"{root}/x-{n:06d}.tar" for n in range(3)]
    for same in (
        f"{root}",
        f"{root}/",
        f"file://{root}/x-*.tar",
        f"{root}/x-{{000001..000002}}.tar::{root}/x-000000.tar::{root}/x-000002.tar",
    ):
        assert open_any(same).version == dataset.version, same
    assert len(open_any(f"{root}/x-000001.tar").shards) == 1
    assert faults(dataset) == []
    assert statistics(dataset).classes == {0: 4, 1: 4, 2: 4}
    with pytest.raises(NotFound, match="versions 1 to 1"):
        open_any(str(root), 2)
    assert open_any(str(root), 1).version == dataset.version


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tars_with_headers_of_their_own_and_labels_in_json(tmp_path: Path, kind: int) -> None:
    expected = by_tarfile(tmp_path / "in" / "a.tar", 0, 4, kind) | by_tarfile(
        tmp_path / "in" / "part" / "b.tar", 4, 3, kind
    )
    dataset = open_any(str(tmp_path / "in"))
    assert samples_of(dataset) == expected
    check_blocks(dataset)
    assert dataset.read_about(Address(0, 0)) == {"labels": [0, 1]}


def test_nothing_is_written_beside_tars_and_relative_paths_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = by_webdataset(tmp_path / "in")
    (tmp_path / "in").chmod(0o555)
    before, folder = files_below(tmp_path / "in"), (tmp_path / "in").stat().st_mtime_ns
    monkeypatch.chdir(tmp_path)
    dataset = open_any("in")
    monkeypatch.chdir("/")
    assert samples_of(dataset) == expected
    assert (files_below(tmp_path / "in"), (tmp_path / "in").stat().st_mtime_ns) == (before, folder)


def test_a_second_open_reads_no_tar_and_a_changed_one_is_indexed_anew(tmp_path: Path, index_folder: Path) -> None:
    by_webdataset(tmp_path / "in")
    indexed: list[tuple[int, int]] = []
    first = open_any(str(tmp_path / "in"), on_tar=lambda *values: indexed.append(values))
    assert len(indexed) == 3
    tar = tmp_path / "in" / "x-000001.tar"
    status, body = tar.stat(), tar.read_bytes()
    tar.write_bytes(bytes(len(body)))
    os.utime(tar, ns=(status.st_atime_ns, status.st_mtime_ns))
    before = files_below(index_folder)
    again = open_any(str(tmp_path / "in"), on_tar=lambda *values: indexed.append(values))
    assert len(indexed) == 3
    assert again.version == first.version
    assert files_below(index_folder) == before
    with pytest.raises(CorruptShard, match=re.escape(str(tar))):
        check_blocks(again)
    assert [fault.path for fault in faults(again, "checksum")] == [str(tar)]

    with webdataset.TarWriter(str(tar)) as writer:
        writer.write({"__key__": "new", "jpg": jpeg(picture(99)), "cls": 7})
    changed = open_any(str(tmp_path / "in"))
    assert changed.version.num_classes == 8
    assert changed.store.url != first.store.url
    assert "new" in samples_of(changed)


def test_a_tar_of_other_bytes_and_equal_size_is_another_dataset(tmp_path: Path) -> None:
    found = []
    for label in (1, 2):
        with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
            writer.write({"__key__": "one", "jpg": jpeg(picture(1)), "cls": label})
        os.utime(tmp_path / "a.tar", (label, label))
        dataset = open_any(str(tmp_path / "a.tar"))
        found.append((dataset.version.num_bytes, Selection(dataset).identity))
        assert dataset.samples(0)["labels"].to_pylist() == [[label]]
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


def test_two_machines_have_equal_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_webdataset(tmp_path / "in")
    (tmp_path / "in" / "y.tar").write_bytes((tmp_path / "in" / "x-000000.tar").read_bytes())
    write_tar(tmp_path / "in" / "broken.tar", [("1.jpg", b"no picture"), ("2.jpg", jpeg(picture(2)))])
    found = []
    for machine in ("one", "another"):
        monkeypatch.setenv("BIT_INDEX_FOLDER", str(tmp_path / machine))
        dataset = open_any(str(tmp_path / "in"))
        root = Path(dataset.store.url)
        assert root.parent == tmp_path / machine
        objects = {
            str(path.relative_to(root)): path.read_bytes()
            for path in root.rglob("*")
            if path.is_file() and path.parent.name != "leases"
        }
        found.append((root.name, Selection(dataset).identity, objects))
    assert found[0] == found[1]
    assert dataset.version.reject_reasons == {"not-an-image": 1}
    assert dataset.rejects["source"].to_pylist() == [f"{tmp_path}/in/broken.tar#1"]


def test_an_index_can_be_opened_by_its_folder(tmp_path: Path) -> None:
    expected = by_webdataset(tmp_path / "in")
    with serving(tmp_path / "in", by_range=True) as url:
        dataset = open_any(f"{url}/x-{{000000..000002}}.tar")
        assert samples_of(open_any(dataset.store.url)) == expected


def test_processes_that_open_at_once_index_once(tmp_path: Path, index_folder: Path) -> None:
    by_webdataset(tmp_path / "in", count=60)
    program = (
        "import sys\n"
        "from pipeline.packing.foreign_tars.open_any import open_any\n"
        "from pipeline.streaming.selection import Selection\n"
        "indexed = []\n"
        "dataset = open_any(sys.argv[1], on_tar=lambda *_: indexed.append(1))\n"
        "print(Selection(dataset).identity, len(indexed))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "in")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    reports = [process.communicate()[0].split() for process in running]
    assert all(process.returncode == 0 for process in running)
    assert len({identity for identity, _ in reports}) == 1
    assert sorted(int(count) for _, count in reports) == [0, 0, 12]
    assert len(list(index_folder.glob("*/leases/*"))) == 1


def test_tars_on_s3(tmp_path: Path, s3_url: Callable[[str], str]) -> None:
    expected = by_webdataset(tmp_path / "in")
    put(s3_url("in"), tmp_path / "in")
    dataset = open_any(f"{s3_url('in')}/x-{{000000..000002}}.tar")
    assert samples_of(dataset) == expected
    check_blocks(dataset)
    assert faults(dataset) == []
    for same in (
        s3_url("in"),
        f"{s3_url('in')}/*.tar",
        f"{s3_url('in')}/x-000001.tar::{s3_url('in')}/x-00000{{0,2}}.tar",
    ):
        assert open_any(same).version == dataset.version, same
    assert sorted(entry.key for entry in open_store(s3_url("in")).walk()) == [f"x-{n:06d}.tar" for n in range(3)]
    with pytest.raises(NotFound, match=r"x-000003\.tar does not exist"):
        open_any(f"{s3_url('in')}/x-{{000000..000003}}.tar")
    with pytest.raises(NotFound, match="names no WebDataset tar"):
        open_any(s3_url("elsewhere"))


def test_tars_of_a_web_server(tmp_path: Path) -> None:
    expected = by_webdataset(tmp_path / "in")
    with serving(tmp_path / "in", by_range=True) as url:
        dataset = open_any(f"{url}/x-{{000000..000002}}.tar")
        assert samples_of(dataset) == expected
        check_blocks(dataset)
        assert faults(dataset) == []
        assert dataset.shard_url(2) == f"{url}/x-000002.tar"
        with pytest.raises(NotFound, match=r"x-000003\.tar"):
            open_any(f"{url}/x-{{000000..000003}}.tar")


def test_our_own_dataset_is_opened_as_itself(
    small_dataset: Dataset, index_folder: Path, s3_url: Callable[[str], str]
) -> None:
    dataset = open_any(small_dataset.store.url)
    assert (dataset.version, dataset.store.url) == (small_dataset.version, small_dataset.store.url)
    assert samples_of(dataset) == samples_of(small_dataset)
    with pytest.raises(NotFound, match="versions 1 to 1"):
        open_any(small_dataset.store.url, 9)
    for entry in small_dataset.store.walk():
        open_store(s3_url("set")).create(entry.key, small_dataset.store.read(entry.key))
    assert open_any(s3_url("set")).store.url == s3_url("set")
    assert not index_folder.exists()


def test_a_damaged_tar_is_named(tmp_path: Path) -> None:
    by_webdataset(tmp_path / "in")
    tar = tmp_path / "in" / "x-000001.tar"
    tar.write_bytes(tar.read_bytes()[:5000])
    with pytest.raises(CorruptShard, match=r"x-000001\.tar is not a whole tar"):
        open_any(str(tmp_path / "in"))


def test_what_cannot_be_opened_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "none").mkdir()
    for url in (str(tmp_path / "none"), str(tmp_path / "nowhere")):
        with pytest.raises(NotFound, match=rf"{url} holds no published dataset .* a pattern of \.tar files"):
            open_any(url)
    with pytest.raises(NotFound, match=r"a\.tar"):
        open_any(str(tmp_path / "a.tar"))
    for url, message in (
        ("pipe:cat a.tar", "no URL that can be read by range"),
        (f"{tmp_path}/a.tar::", "no URL"),
        (f"{tmp_path}/a-{{0..3.tar", "no brace pattern"),
        ("unheard://host/a.tar", "unheard"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_any(url)
    write_tar(tmp_path / "text.tar", [("1.txt", b"")])
    with pytest.raises(EmptySource, match=r"text\.tar"):
        open_any(str(tmp_path / "text.tar"))
    by_webdataset(tmp_path / "in")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BIT_INDEX_FOLDER", str(tmp_path / "file"))
    with pytest.raises(Denied, match="set BIT_INDEX_FOLDER"):
        open_any(str(tmp_path / "in"))


def test_rejects_of_an_index_are_tried_again_when_other_decoders_are_there(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "a.tar", [("1.jpg", b"no picture"), ("2.jpg", jpeg(picture(2)))])
    first = open_any(str(tmp_path / "in"))
    assert open_any(str(tmp_path / "in")).store.url == first.store.url
    (Path(first.store.url) / "decoders.txt").unlink()  # as in an index of an earlier release
    again = open_any(str(tmp_path / "in"))
    assert again.store.url.startswith(f"{first.store.url}-")
    assert again.version == first.version
    indexed: list[int] = []
    assert open_any(str(tmp_path / "in"), on_tar=lambda *_: indexed.append(1)).store.url == again.store.url
    assert not indexed


def test_labels_that_are_names_and_members_apart_are_refused(tmp_path: Path) -> None:
    image = jpeg(picture(2))
    write_tar(tmp_path / "named.tar", [("1.jpg", image), ("1.cls", b"cat")])
    with pytest.raises(ConfigError, match="label 'cat' of sample 1 is a name"):
        open_any(str(tmp_path / "named.tar"))
    write_tar(tmp_path / "apart.tar", [("1.jpg", image), ("2.jpg", image), ("1.cls", b"1"), ("2.cls", b"2")])
    with pytest.raises(ConfigError, match="the members of sample 1 do not follow each other"):
        open_any(str(tmp_path / "apart.tar"))
    for split in ("train", "val"):
        write_tar(tmp_path / "in" / split / "0.tar", [("1.jpg", image), ("1.cls", b"1")])
    with pytest.raises(ConfigError, match="holds the splits train"):
        open_any(str(tmp_path / "in"))
    assert len(open_any(f"{tmp_path}/in/train::{tmp_path}/in/val").shards) == 2


def test_second_images_and_hostile_labels_are_listed(tmp_path: Path) -> None:
    image = jpeg(picture(2))
    members: Members = [("1.jpg", image), ("1.png", b"mask"), ("1.cls", b"1"), ("2.jpg", image), ("2.cls", b"9" * 30)]
    write_tar(tmp_path / "a.tar", members)
    found = open_any(str(tmp_path / "a.tar")).rejects.to_pylist()
    assert sorted((row["source"].partition("#")[2], row["reason"]) for row in found) == [
        ("1.png", "second-image"),
        ("2", "bad-label"),
    ]
