"""Packing: deterministic bytes, exactly once, readable by the tools users have."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from pipeline.base.errors import ConfigError, TooManyRejects
from pipeline.dataset.dataset import open_dataset
from pipeline.packing.commit import PackTask
from pipeline.packing.jobs import Job, plan_sources
from pipeline.packing.make_plan import store_plan
from pipeline.packing.pack_run import _attempt
from pipeline.packing.plan import ShardConfig
from pipeline.packing.sources.open import open_sources
from pipeline.packing.sources.table import Columns
from pipeline.store.url import open_store
from pipeline.work.pools import Processes
from pipeline.work.schedule import Count, run_calls
from tests.conftest import class_folders, jpeg, pack, picture, run_here
from tests.processes import is_running, running_children
from tests.waiting import wait_until


def tree(folder: Path) -> dict[str, bytes]:
    """All objects but leases, which hold who ran when, and what a killed writer left aside."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: body for name, body in found.items() if not name.startswith("leases/") and "/.tmp-" not in f"/{name}"}


def test_the_bytes_do_not_depend_on_workers_or_store(
    small_folder: Path, tmp_path: Path, s3_url: Callable[[str], str]
) -> None:
    options = ["--shard-mb", "0.15", "--block-mib", "0.04"]
    for name, workers in (("one", "1"), ("three", "3")):
        assert (
            run_here("shard", str(small_folder), str(tmp_path / name), *options, "--workers", workers).returncode == 0
        )
    assert run_here("shard", str(small_folder), s3_url("set"), *options).returncode == 0
    first = tree(tmp_path / "one")
    assert len([name for name in first if name.endswith(".tar")]) > 3
    assert first == tree(tmp_path / "three")
    store = open_store(s3_url("set"))
    found = {entry.key: store.read(entry.key) for entry in store.list("") if not entry.key.startswith("leases/")}
    assert first == found


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", each=60)
    options = ["--shard-mb", "0.1", "--block-mib", "0.04"]
    assert run_here("shard", str(source), str(tmp_path / "calm"), *options).returncode == 0
    command = [str(Path(sys.executable).parent / "pipeline"), "shard", str(source), str(tmp_path / "killed"), *options]

    def has_committed(count: int) -> bool:
        return process.poll() is not None or len(list((tmp_path / "killed").glob("commits/*/*.json"))) >= count

    was_published = []
    for num_commits in (1, 3, 5):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            wait_until(partial(has_committed, num_commits), f"{num_commits} commits")
            process.kill()
        was_published.append((tmp_path / "killed" / "MANIFEST.json").exists())
    assert not was_published[0]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert tree(tmp_path / "killed") == tree(tmp_path / "calm")


def test_a_second_run_does_nothing_and_says_the_same(small_folder: Path, tmp_path: Path) -> None:
    first = run_here("shard", str(small_folder), str(tmp_path / "set"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    second = run_here("shard", str(small_folder), str(tmp_path / "set"))
    assert first.stdout == second.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}


def test_another_source_cannot_be_mixed_in(small_folder: Path, tmp_path: Path) -> None:
    pack(small_folder, str(tmp_path / "set"))
    other = class_folders(tmp_path / "other", each=2, seed=7)
    with pytest.raises(ConfigError, match="other inputs"):
        pack(other, str(tmp_path / "set"))


def test_rejects_are_listed_counted_and_capped(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", each=20)
    (source / "class0" / "bad.jpg").write_bytes(b"not a picture")
    (source / "class1" / "cut.jpg").write_bytes(jpeg(picture(1))[:-100])
    with pytest.raises(TooManyRejects, match="2 of 62 pictures cannot be used"):
        pack(source, str(tmp_path / "strict"))
    assert not (tmp_path / "strict" / "MANIFEST.json").exists()
    allowed = run_here("shard", str(source), str(tmp_path / "set"), "--max-reject-fraction", "0.05")
    assert allowed.returncode == 0
    dataset = open_dataset(str(tmp_path / "set"))
    rejects = dataset.rejects.to_pylist()
    assert {(row["source"], row["reason"]) for row in rejects} == {
        ("class0/bad.jpg", "not-an-image"),
        ("class1/cut.jpg", "truncated"),
    }
    assert dataset.version.num_samples + dataset.version.num_rejects == 62
    assert "class1/cut.jpg: truncated" in run_here("inspect", str(tmp_path / "set")).stdout


def test_dry_run_writes_nothing(small_folder: Path, tmp_path: Path) -> None:
    done = run_here("shard", str(small_folder), str(tmp_path / "set"), "--dry-run")
    assert done.returncode == 0
    assert "90 pictures, 3 classes, 1 shard," in done.stdout
    assert "PUT requests" in done.stdout
    assert not (tmp_path / "set").exists()


def test_the_log_has_every_shard(small_folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    run_here("shard", str(small_folder), str(tmp_path / "set"), "--shard-mb", "0.15", "--log-jsonl", str(log))
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["event"] for event in events[:1] + events[-1:]] == ["plan", "published"]
    assert sum(e["num_samples"] for e in events if e["event"] == "shard") == 90


def test_the_log_of_a_start_begins_with_what_earlier_ones_rejected(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", classes=1, each=5)
    (source / "class0" / "bad.jpg").write_bytes(b"not a picture")
    log, options = tmp_path / "log.jsonl", ["--max-reject-fraction", "0.5"]
    assert run_here("shard", str(source), str(tmp_path / "set"), *options).returncode == 0
    (tmp_path / "set" / "MANIFEST.json").unlink()  # as if it had been killed before it published
    assert run_here("shard", str(source), str(tmp_path / "set"), *options, "--log-jsonl", str(log)).returncode == 0
    resumed = [event for event in map(json.loads, log.read_text().splitlines()) if event["event"] == "resumed"]
    assert [(event["num_shards"], event["num_missing"], event["num_rejects"]) for event in resumed] == [(1, 0, 1)]


def endless(folder: Path) -> Path:
    """Write so many pictures that no run ends before it is stopped, however busy the machine: one, with many names."""
    class_folders(folder, classes=1, each=1)
    for number in range(1, 8000):
        (folder / "class0" / f"{number:04d}.jpg").hardlink_to(folder / "class0" / "000.jpg")
    return folder


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    source = endless(tmp_path / "in")
    command = [str(Path(sys.executable).parent / "pipeline"), "shard", str(source), "set", "--shard-mb", "0.1"]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        wait_until(lambda: list((tmp_path / "set").glob("commits/*/*.json")), "the first commit")
        process.send_signal(signal.SIGINT)
        errors = process.communicate()[1]
    assert process.returncode == 130
    kept = re.search(r"stopped; (\d+) of 8,000 images are packed and kept, in (\d+) of \d+ shards of .*/set;", errors)
    assert kept
    num_commits = len(list((tmp_path / "set").glob("commits/*/*.json")))
    assert int(kept[2]) in (num_commits, num_commits - 1)  # the worker may end its shard before it is killed
    assert "run the same command again" in errors
    assert "Traceback" not in errors


def test_a_mended_picture_is_packed_on_the_next_run(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", each=3)
    victim = source / "class1" / "001.jpg"
    good = victim.read_bytes()
    victim.write_bytes(bytes(len(good)))
    assert run_here("shard", str(source), str(tmp_path / "set")).returncode == 1
    victim.write_bytes(good)
    assert run_here("shard", str(source), str(tmp_path / "set")).returncode == 0
    assert open_dataset(str(tmp_path / "set")).version.num_samples == 9


def test_linked_folders_odd_names_and_moved_sources_lose_nothing(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", each=2)
    (source / "class0").rename(tmp_path / "elsewhere")
    (source / "cat: #1? 100%").symlink_to(tmp_path / "elsewhere")
    dataset = pack(source, str(tmp_path / "set"))
    assert dataset.classes == ("cat: #1? 100%", "class1", "class2")
    assert dataset.version.num_samples == 6
    (tmp_path / "moved").symlink_to(source)
    assert pack(tmp_path / "moved", str(tmp_path / "set")).version == dataset.version


def test_an_unreadable_class_folder_is_an_error_not_a_gap(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    source = class_folders(tmp_path / "in", each=2)
    (source / "class1").chmod(0)
    assert run_here("shard", str(source), str(tmp_path / "set")).returncode == 1


def test_packing_processes_end_when_the_run_is_killed(tmp_path: Path) -> None:
    source = endless(tmp_path / "in")
    command = [
        str(Path(sys.executable).parent / "pipeline"),
        "shard",
        str(source),
        "set",
        "--shard-mb",
        "0.1",
        "--workers",
        "2",
    ]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: list((tmp_path / "set").glob("commits/*/*.json")), "the first commit")
        workers = running_children(process.pid, "spawn_main")
        process.kill()
    assert len(workers) >= 2
    wait_until(lambda: not any(map(is_running, workers)), "the workers to end")


def test_progress_counts_images_while_a_shard_is_packed(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", each=40)
    counts: list[int] = []
    pool = Processes(1)
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(open_store(str(tmp_path / "set")), pool, Path(scratch))
        plan = store_plan(job.store, plan_sources(job, open_sources([str(source)], Columns()), ShardConfig()))
        count = Count(pool, plan.num_samples, lambda num_images, num_bytes: counts.append(num_images))
        list(run_calls(pool, _attempt, [PackTask(str(tmp_path / "set"), plan.plan_id, 0)], on_wait=count.poll))
    assert pool.num_reported == 120
    assert sum(counts) == 119
    count.add(120)
    assert sum(counts) == 120
    pool.close()
