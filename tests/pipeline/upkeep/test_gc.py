"""What no version needs is found and removed, and nothing else."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.dataset.dataset import open_dataset
from pipeline.store.lease import Lease
from pipeline.store.url import open_store
from pipeline.upkeep.gc import garbage, remove
from pipeline.upkeep.verify import verify
from pipeline.work.pools import InProcess
from tests.conftest import class_folders, cli, pack


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


def test_gc_spares_a_run_that_is_at_work(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", each=4)
    (source / "class0" / "000.jpg").write_bytes(b"broken")
    cli("shard", source, tmp_path / "set", code=1)  # a run that is not published, begun just now
    store = open_store(str(tmp_path / "set"))
    old = time.time() - 50 * 3600
    for path in (tmp_path / "set").rglob("*"):
        os.utime(path, (old, old))
    assert {item.why for item in garbage(store, older_than_hours=24, with_abandoned_runs=True)} == {"abandoned run"}
    Lease.take(store)
    assert list(garbage(store, older_than_hours=24, with_abandoned_runs=True)) == []
