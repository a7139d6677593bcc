"""Upkeep of a dataset: verify, repair, gc, statistics."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.dataset.dataset import Dataset, open_dataset
from pipeline.store.lease import Lease
from pipeline.store.url import open_store
from pipeline.upkeep.gc import garbage, remove
from pipeline.upkeep.verify import sampled_shards, verify
from pipeline.work.pools import InProcess
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


def test_gc_removes_what_no_version_needs_and_nothing_else(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", each=6)
    dataset = pack(source, str(tmp_path / "set"), shard_bytes=40_000)
    root = tmp_path / "set"
    needed = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    folder = (root / dataset.shards[0]["path"]).parent
    (folder / ".tmp-0123").write_bytes(b"half a tar")
    (folder / "train-000999.tar").write_bytes(b"orphan")
    store = open_store(str(root))
    store.create("shards/ffffffff/train-000000.tar", b"x")
    store.create("commits/ffffffff00000000/000000.json", b"{}")
    found = {item.path: item.why for item in garbage(store, older_than_hours=0, with_abandoned_runs=True)}
    assert set(found.values()) == {"incomplete upload", "orphan of a published plan", "abandoned run"}
    assert len(found) == 4
    assert "to remove" in cli("gc", root, "--older-than-hours", 0)
    assert (folder / ".tmp-0123").exists()
    assert list(garbage(store, older_than_hours=1, with_abandoned_runs=True)) == []  # a run may be at them
    cli("gc", root, "--older-than-hours", 0, "--abandoned-runs", "--delete")
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == needed
    assert list(verify(open_dataset(str(root)), "decode", InProcess())) == []


def test_gc_ends_incomplete_uploads(s3_url: Callable[[str], str]) -> None:
    store = open_store(s3_url("set"))
    writer = store.writer("shards/x.tar").__enter__()  # a writer that dies: its block is never left
    writer.write(os.urandom(65 << 20))
    found = list(garbage(store, older_than_hours=0, with_abandoned_runs=False))
    assert [item.why for item in found] == ["incomplete upload"]
    remove(store, found[0])
    assert list(store.unfinished()) == []


def test_verify_samples_shards_by_their_key() -> None:
    chosen = sampled_shards(1000, 0.05, 0)
    assert len(set(chosen)) == 50
    assert chosen == sampled_shards(1000, 0.05, 0) != sampled_shards(1000, 0.05, 1)
    assert sampled_shards(3, 0.01, 0) != []


def test_statistics_count_every_sample(small_dataset: Dataset, tmp_path: Path) -> None:
    told = json.loads(cli("stats", small_dataset.store.url, "--json").splitlines()[0])
    assert told["classes"] == {"0": 30, "1": 30, "2": 30}
    assert told["shorter_side"] == {"48": 90}
    assert told["labels_per_sample"] == {"1": 90}
    said = cli("stats", small_dataset.store.url, "--html", tmp_path / "stats.html")
    assert "3 of 3 classes have samples" in said
    page = (tmp_path / "stats.html").read_text()
    assert page.count("<svg") == 6
    assert "http" not in page.replace("http://www.w3.org", "")


def test_gc_spares_a_run_that_is_at_work(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", each=4)
    (source / "class0" / "000.jpg").write_bytes(b"broken")
    cli("shard", source, tmp_path / "set", code=1)  # a run that is not published, begun just now
    store = open_store(str(tmp_path / "set"))
    old = time.time() - 50 * 3600
    for path in (tmp_path / "set").rglob("*"):
        os.utime(path, (old, old))
    assert {item.why for item in garbage(store, older_than_hours=24, with_abandoned_runs=True)} == {"abandoned run"}
    Lease(store)
    assert list(garbage(store, older_than_hours=24, with_abandoned_runs=True)) == []


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
