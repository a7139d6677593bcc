"""A shard that is damaged or missing is put back with the same bytes, or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.dataset.dataset import Dataset, open_dataset
from pipeline.packing.foreign_tars.index_tars import adopt
from pipeline.store.url import open_store
from pipeline.upkeep.repair import repair_shards
from pipeline.work.pools import InProcess
from tests.conftest import class_folders, cli, jpeg, pack, picture, run_cli
from tests.contents import addresses
from tests.tars import write_tar

DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "flipped": lambda path: rewrite(path, lambda body: body[:300] + bytes([body[300] ^ 1]) + body[301:]),
    "cut": lambda path: rewrite(path, lambda body: body[:-700]),
    "empty": lambda path: rewrite(path, lambda body: b""),
}


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.chmod(0o644)
    path.write_bytes(change(path.read_bytes()))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures, and a dataset of them in several shards."""
    folder = tmp_path_factory.mktemp("repair")
    pack(class_folders(folder / "in", each=6), str(folder / "set"), shard_bytes=40_000)
    return folder


@pytest.fixture
def dataset(packed: Path, tmp_path: Path) -> Dataset:
    """A copy to be damaged; its plan knows where the pictures are."""
    shutil.copytree(packed / "set", tmp_path / "set")
    return open_dataset(str(tmp_path / "set"))


def repaired(dataset: Dataset, shards: list[int], scratch: Path) -> dict[int, str]:
    """Return what stands in the way of each shard."""
    scratch.mkdir()
    found = dict(repair_shards(dataset, shards, InProcess(), str(scratch)))
    assert list(scratch.iterdir()) == []
    return found


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["path", "sidecar"])
def test_what_is_damaged_is_put_back_and_nothing_else_is_touched(
    packed: Path, dataset: Dataset, tmp_path: Path, name: str, damage: str
) -> None:
    victim = tmp_path / "set" / dataset.shards[1][name]
    others = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*.*") if path != victim}
    DAMAGES[damage](victim)
    assert repaired(dataset, [1, 0], tmp_path / "scratch") == {1: "", 0: ""}
    assert contents(tmp_path / "set") == contents(packed / "set")
    assert {path: path.stat().st_mtime_ns for path in others} == others


def test_a_changed_source_is_named_and_keeps_no_other_shard_from_being_repaired(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", each=6)
    dataset = pack(source, str(tmp_path / "set"), shard_bytes=40_000)
    [changed] = [
        address.shard for address in addresses(dataset) if dataset.read_about(address)["source"] == "class0/000.jpg"
    ]
    tars = {row["shard"]: tmp_path / "set" / row["path"] for row in dataset.shards}
    whole = {number: tar.read_bytes() for number, tar in tars.items()}
    for tar in tars.values():
        tar.unlink()
    (source / "class0" / "000.jpg").write_bytes(jpeg(picture(77)))
    found = repaired(dataset, list(tars), tmp_path / "scratch")
    assert "its sources, or the JPEG encoder, have changed since it was packed" in found.pop(changed)
    assert set(found.values()) == {""}
    assert not tars[changed].exists()  # nothing is better than other bytes under its name
    assert {number: tars[number].read_bytes() for number in found} == {number: whole[number] for number in found}


def test_an_adopted_tar_is_left_to_whoever_wrote_it(tmp_path: Path) -> None:
    write_tar(tmp_path / "set" / "a.tar", [("1.jpg", jpeg(picture(1))), ("1.cls", b"2")])
    adopt(open_store(str(tmp_path / "set")), InProcess(), split="train", classes=(), block_bytes=10_000)
    dataset = open_dataset(str(tmp_path / "set"))
    (tmp_path / "set" / "a.tar").unlink()
    found = repaired(dataset, [0], tmp_path / "scratch")
    assert "a.tar was not packed by `pipeline shard`: restore it from where it came from" in found[0]


def test_a_picture_that_was_rejected_and_is_sound_by_now_stays_out(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", classes=2, each=5)
    victim = source / "class1" / "003.jpg"
    good = victim.read_bytes()
    victim.write_bytes(b"broken")
    dataset = pack(source, str(tmp_path / "set"), max_reject_fraction=0.5)
    victim.write_bytes(good)
    tar = tmp_path / "set" / dataset.shards[0]["path"]
    whole = tar.read_bytes()
    tar.unlink()
    assert repaired(dataset, [0], tmp_path / "scratch") == {0: ""}
    assert tar.read_bytes() == whole


def test_the_command_repairs_what_verify_finds(packed: Path, dataset: Dataset, tmp_path: Path) -> None:
    DAMAGES["flipped"](tmp_path / "set" / dataset.shards[2]["path"])
    cli("verify", tmp_path / "set", "--level", "checksum", code=1)
    assert "repaired" in cli("repair", tmp_path / "set")
    assert contents(tmp_path / "set") == contents(packed / "set")
    (packed / "in").rename(packed / "elsewhere")
    try:
        (tmp_path / "set" / dataset.shards[2]["path"]).unlink()
        assert "could not be repaired" in cli("repair", tmp_path / "set", code=1)
    finally:
        (packed / "elsewhere").rename(packed / "in")


def test_many_shards_are_rebuilt_side_by_side(packed: Path, dataset: Dataset, tmp_path: Path) -> None:
    assert len(dataset.shards) > 2
    for row in dataset.shards:
        (tmp_path / "set" / row["path"]).unlink()
    done = run_cli("pipeline", "repair", str(tmp_path / "set"), "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\nrepaired ") == len(dataset.shards)
    assert contents(tmp_path / "set") == contents(packed / "set")
