"""Third-party tars become a dataset in place: every usable image is indexed, the others are listed."""

import io
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import webdataset
from crc32c import crc32c

from pipeline.base.errors import ConfigError, CorruptShard, EmptySource
from pipeline.dataset.dataset import Dataset, open_dataset
from pipeline.dataset.schema import image_digest
from pipeline.dataset.tar_reader import scan_tar
from pipeline.dataset.versions import published_version
from pipeline.image.transforms import EvaluationView
from pipeline.packing.foreign_tars.index_tars import adopt, described_tar
from pipeline.packing.foreign_tars.open_any import open_any
from pipeline.store.base import blake3_of
from pipeline.store.local import LocalStore
from pipeline.streaming.order import OrderConfig
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import Stream
from pipeline.work.pools import InProcess
from tests.conftest import cli, jpeg, picture
from tests.contents import faults
from tests.tars import Members, write_tar

SETTINGS: dict[str, Any] = {"split": "train", "classes": (), "block_bytes": 10_000}


def members(numbers: range, **broken: bytes) -> Members:
    """Return a sample for each number, its image replaced by `broken` bytes where there are some."""
    found: Members = []
    for number in numbers:
        found.append((f"{number:04d}.jpg", broken.get(f"n{number}", jpeg(picture(number)))))
        found.append((f"{number:04d}.cls", b"%d" % (number % 3)))
    return found


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Four tars of three samples."""
    for number in range(4):
        write_tar(tmp_path / "tars" / f"{number}.tar", members(range(3 * number, 3 * number + 3)))
    return tmp_path / "tars"


def contents(folder: Path) -> dict[str, bytes]:
    """Return what was written, but for leases, which hold who ran when."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: body for name, body in found.items() if not name.startswith("leases/")}


class Counting(InProcess):
    """A pool that counts its calls and ends the run before one too many."""

    def __init__(self, most_calls: int) -> None:
        self.num_calls, self._most_calls = 0, most_calls

    def submit(self, function: Any, *arguments: Any) -> "Future[Any]":
        if self.num_calls == self._most_calls:
            raise InterruptedError
        self.num_calls += 1
        return super().submit(function, *arguments)


def test_what_a_sidecar_says_of_a_tar_is_what_the_tar_holds(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("README", b"text"), *members(range(8), n2=b"no image"), ("0009.cls", b"1")])
    body = (tmp_path / "a.tar").read_bytes()
    seen: list[bytes] = []
    packed = described_tar(io.BytesIO(body), "/x/a.tar", "a.tar", "plan", 10_000, seen.append)
    samples = packed.samples.to_pylist()
    assert [sample["key"] for sample in samples] == [f"{number:04d}" for number in range(8) if number != 2]
    for sample, image in zip(samples, seen, strict=True):
        number = int(sample["key"])
        assert body[sample["image_offset"] :][: sample["image_bytes"]] == image == jpeg(picture(number))
        assert (sample["labels"], sample["width"], sample["height"]) == ([number % 3], 64, 48)
        assert sample["digest"] == image_digest(image)
    rejects = packed.rejects.to_pylist()
    assert [(row["source"], row["reason"]) for row in rejects] == [
        ("a.tar#0002", "not-an-image"),
        ("a.tar#0009", "missing"),
    ]
    assert body[rejects[0]["offset"] :][: rejects[0]["num_bytes"]] == b"no image"
    assert packed.num_bytes == len(body)
    assert packed.blake3 == blake3_of(LocalStore(tmp_path), "a.tar")


def test_blocks_are_runs_of_whole_samples_that_leave_nothing_out(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", members(range(12), n0=b"no image", n6=b"no image", n11=b"no image"))
    body = (tmp_path / "a.tar").read_bytes()
    packed = described_tar(io.BytesIO(body), "/x/a.tar", "a.tar", "plan", 10_000)
    blocks = packed.blocks
    assert len(blocks.offset) > 2
    assert sum(blocks.num_samples) == packed.samples.num_rows == 9
    ends = [offset + num_bytes for offset, num_bytes in zip(blocks.offset, blocks.num_bytes, strict=True)]
    samples, end = scan_tar(io.BytesIO(body), "a.tar")
    assert [samples[1].start, *ends] == [*blocks.offset, end]  # from the first usable sample on
    row = 0
    for offset, end, count, checksum in zip(blocks.offset, ends, blocks.num_samples, blocks.crc32c, strict=True):
        for sample in packed.samples.slice(row, count).to_pylist():
            assert offset <= sample["image_offset"] < sample["image_offset"] + sample["image_bytes"] <= end
        assert checksum == crc32c(body[offset:end])
        assert end - offset <= 10_000 or count == 1
        row += count


def test_an_interrupted_index_goes_on_and_is_the_undisturbed_one(tars: Path, tmp_path: Path) -> None:
    calm, broken = (LocalStore(tmp_path / name) for name in ("calm", "broken"))
    listed = [entry for entry in LocalStore(tars).walk() if entry.key.endswith(".tar")]
    entries = [entry._replace(key=f"{tars}/{entry.key}") for entry in listed]
    adopt(calm, InProcess(), entries, **SETTINGS)
    reported: list[int] = []
    with pytest.raises(InterruptedError):
        adopt(broken, Counting(2), entries, on_tar=lambda count, num_bytes: reported.append(num_bytes), **SETTINGS)
    assert published_version(broken) is None
    assert len(reported) == 2
    pool = Counting(4)
    adopt(broken, pool, entries[::-1], on_tar=lambda count, num_bytes: reported.append(num_bytes), **SETTINGS)
    assert pool.num_calls == 2  # the other two tars
    assert len(reported) == 6
    assert contents(tmp_path / "broken") == contents(tmp_path / "calm")


def test_the_same_tars_and_settings_are_the_same_dataset_and_others_are_refused(tars: Path) -> None:
    store = LocalStore(tars)
    version = adopt(store, InProcess(), **SETTINGS)
    before = contents(tars)
    assert adopt(store, InProcess(), **SETTINGS) == version
    assert contents(tars) == before
    for other in ({"split": "val"}, {"classes": ("a", "b", "c")}, {"block_bytes": 20_000}):
        with pytest.raises(ConfigError, match="index tars in a folder of their own"):
            adopt(store, InProcess(), **SETTINGS | other)
    write_tar(tars / "4.tar", members(range(3)))
    with pytest.raises(ConfigError, match="index tars in a folder of their own"):
        adopt(store, InProcess(), **SETTINGS)


def test_class_names_that_are_given_count_beside_the_labels_that_occur(tars: Path) -> None:
    names = ("ant", "bee", "cat", "dog")
    assert adopt(LocalStore(tars), InProcess(), **SETTINGS | {"classes": names}).num_classes == 4
    assert open_dataset(str(tars)).classes == names


def test_a_folder_without_a_usable_image_or_with_a_damaged_tar_is_not_published(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with pytest.raises(EmptySource, match=r"holds no \.tar file"):
        adopt(store, InProcess(), **SETTINGS)
    write_tar(tmp_path / "a.tar", members(range(2), n0=b"no image", n1=b"neither"))
    with pytest.raises(EmptySource, match=r"a\.tar and 0 further tars: no picture can be used .*'not-an-image': 2"):
        adopt(store, InProcess(), **SETTINGS)
    write_tar(tmp_path / "b.tar", members(range(4)))
    (tmp_path / "b.tar").write_bytes((tmp_path / "b.tar").read_bytes()[:5000])
    with pytest.raises(CorruptShard, match=r"b\.tar"):
        adopt(store, InProcess(), **SETTINGS)
    assert published_version(store) is None


def test_indexed_tars_stay_as_they_are_and_can_be_streamed(tmp_path: Path, small_dataset: Dataset) -> None:
    root = tmp_path / "web"
    (root / "part").mkdir(parents=True)
    with webdataset.ShardWriter(str(root / "part" / "w-%03d.tar"), maxcount=5, verbose=0) as writer:
        for number in range(12):
            data = jpeg(picture(number)) if number != 7 else b"not a picture"
            writer.write({"__key__": f"d.x/{number:04d}", "png" if number % 2 else "jpg": data, "cls": number % 3})
    before = {path: path.read_bytes() for path in root.rglob("*.tar")}
    printed = cli("index", root, "--workers", 2, "--block-mib", 0.02)
    assert "11 samples in 3 tars, 1 rejected {'not-an-image': 1}" in printed
    dataset = open_dataset(str(root))
    assert {path: path.read_bytes() for path in root.rglob("*.tar")} == before
    assert dataset.version.num_classes == 3
    assert faults(dataset) == []
    stream = Stream(Selection(dataset), OrderConfig(batch_size=11, num_lanes=1), EvaluationView(8))
    batch = next(stream)
    stream.close()
    keys = [dataset.sample(address)["key"] for address in batch.addresses]
    found = dict(zip(keys, batch.labels, strict=True))
    assert found == {f"d.x/{n:04d}": (n % 3,) for n in range(12) if n != 7}
    assert "version 1" in cli("index", root, "--block-mib", 0.02)
    assert "was indexed, not packed" in cli("append", small_dataset.store.url, root, code=2)


def test_tars_without_a_label_say_so(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "a.tar", [("1.jpg", jpeg(picture(1)))])
    assert "no sample has a label" in cli("index", tmp_path / "in")


def test_members_in_no_sample_are_counted_and_printed_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(2):
        captions: Members = [(f"{number}.txt", b"a caption"), ("README", b"text"), ("__MACOSX/._1.jpg", b"fork")]
        write_tar(tmp_path / "in" / f"{number}.tar", [*members(range(3)), *captions])
    expected = (
        "ignored 6 files: 2 .txt (0.tar#0.txt, 1.tar#1.txt); "
        "2 hidden or system (0.tar#__MACOSX/._1.jpg, 1.tar#__MACOSX/._1.jpg); "
        "2 without an extension (0.tar#README, 1.tar#README)"
    )
    monkeypatch.setenv("BIT_INDEX_FOLDER", str(tmp_path / "index"))
    with caplog.at_level("WARNING"):
        open_any(str(tmp_path / "in"))
    assert [record.getMessage() for record in caplog.records] == [
        expected.replace("0.tar", f"{tmp_path}/in/0.tar").replace("1.tar", f"{tmp_path}/in/1.tar")
    ]
    assert expected in cli("index", tmp_path / "in")
    assert expected in cli("index", tmp_path / "in")


def test_tars_of_samples_alone_have_nothing_ignored(tars: Path) -> None:
    assert "ignored" not in cli("index", tars)
