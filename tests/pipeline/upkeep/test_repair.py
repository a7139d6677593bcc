"""A shard that is damaged or missing is put back with the same bytes, or not at all."""

from pathlib import Path

import pytest

from tests.conftest import class_folders, cli, jpeg, pack, picture


@pytest.mark.parametrize("damage", ["missing tar", "missing sidecar", "flipped", "cut"])
def test_repair_puts_the_same_bytes_back(tmp_path: Path, damage: str) -> None:
    source = class_folders(tmp_path / "in", each=6)
    dataset = pack(source, str(tmp_path / "set"), shard_bytes=40_000)
    whole = {path: path.read_bytes() for path in (tmp_path / "set").rglob("*") if path.is_file()}
    tar, sidecar = (tmp_path / "set" / dataset.shards[1][name] for name in ("path", "sidecar"))
    if damage == "missing tar":
        tar.unlink()
    elif damage == "missing sidecar":
        sidecar.unlink()
    else:
        body = bytearray(tar.read_bytes())
        body[3000] ^= 1
        tar.write_bytes(body if damage == "flipped" else body[:-700])
    cli("verify", tmp_path / "set", "--level", "checksum", code=1)
    assert "repaired" in cli("repair", tmp_path / "set")
    assert {path: path.read_bytes() for path in (tmp_path / "set").rglob("*") if path.is_file()} == whole


def test_repair_does_not_put_other_bytes_in_place(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", each=6)
    dataset = pack(source, str(tmp_path / "set"))
    tar = tmp_path / "set" / dataset.shards[0]["path"]
    tar.unlink()
    (source / "class0" / "000.jpg").write_bytes(jpeg(picture(77)))
    assert "have changed since it was packed" in cli("repair", tmp_path / "set", code=1)
    assert not tar.exists()


def test_repair_leaves_a_picture_out_that_was_rejected_and_is_sound_by_now(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", classes=2, each=5)
    victim = source / "class1" / "003.jpg"
    good = victim.read_bytes()
    victim.write_bytes(b"broken")
    dataset = pack(source, str(tmp_path / "set"), max_reject_fraction=0.5)
    victim.write_bytes(good)
    tar = tmp_path / "set" / dataset.shards[0]["path"]
    whole = tar.read_bytes()
    tar.unlink()
    assert "repaired" in cli("repair", tmp_path / "set")
    assert tar.read_bytes() == whole
