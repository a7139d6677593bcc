"""Each damage is found at its level."""

from pathlib import Path

import pytest

from pipeline.dataset.dataset import open_dataset
from pipeline.upkeep.verify import LEVELS, sampled_shards
from tests.conftest import pack, run_here
from tests.contents import faults


def test_verify_samples_shards_by_their_key() -> None:
    chosen = sampled_shards(1000, 0.05, 0)
    assert len(set(chosen)) == 50
    assert chosen == sampled_shards(1000, 0.05, 0) != sampled_shards(1000, 0.05, 1)
    assert sampled_shards(3, 0.01, 0) != []


@pytest.mark.parametrize("damage", ["missing tar", "missing sidecar", "cut", "flipped", "swapped"])
def test_verify_finds_each_damage_at_its_level(small_folder: Path, tmp_path: Path, damage: str) -> None:
    dataset = pack(small_folder, str(tmp_path / "set"), shard_bytes=150_000)
    tar, sidecar = (tmp_path / "set" / dataset.shards[1][name] for name in ("path", "sidecar"))
    body = bytearray(tar.read_bytes())
    first_level = {"missing tar": 0, "missing sidecar": 0, "cut": 1, "flipped": 2, "swapped": 2}[damage]
    for path in (tar, sidecar):
        path.chmod(0o644)
    if damage == "missing tar":
        tar.unlink()
    elif damage == "missing sidecar":
        sidecar.unlink()
    elif damage == "cut":
        tar.write_bytes(body[:-4096])
    elif damage == "flipped":
        body[len(body) // 2] ^= 4
        tar.write_bytes(body)
    else:
        tar.write_bytes(bytes(len(body)))
    for depth, level in enumerate(LEVELS):
        found = faults(open_dataset(str(tmp_path / "set")), level)
        assert bool(found) == (depth >= first_level), level
    done = run_here("verify", str(tmp_path / "set"))
    assert done.returncode == 1
    assert "FAULT" in done.stdout


@pytest.mark.parametrize("name", ["blocks", "classes"])
def test_verify_checks_the_tables_of_the_manifest(small_folder: Path, tmp_path: Path, name: str) -> None:
    dataset = pack(small_folder, str(tmp_path / "set"))
    path = tmp_path / "set" / getattr(dataset.version, name)
    path.chmod(0o644)
    path.write_text('["x"]')
    found = faults(open_dataset(str(tmp_path / "set")), "exists")
    assert [fault.path for fault in found] == [getattr(dataset.version, name)]
