"""A run on a real cluster is disturbed, shared among ranks, or cannot succeed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.stack.services import Stack
from pipeline.store.base import Store
from pipeline.store.url import open_store
from tests.conftest import pack, run_cli
from tests.soak.pretrain_faults import soak
from tests.trainer.runs import final_state
from tests.waiting import STORE_POLL_SECONDS, WAIT_SECONDS, wait_until
from trainer.checkpoint.record import committed
from trainer.run.events import attempts
from trainer.run.metrics import read_metrics

SETTINGS = {
    "recipe.epochs": 8,
    "recipe.decay_epochs": "[6]",
    "recipe.batch_size": 16,
    "recipe.warmup_steps": 4,
    "recipe.resolution_px": 32,
    "num_lanes": 4,
    "checkpoint_every_steps": 5,
    "log_every_steps": 5,
    "keep_checkpoints": 20,
}


def start(data: str, out: str, workers: str = "2", **settings: object) -> subprocess.Popen[bytes]:
    chosen = SETTINGS | settings
    options = [part for name, value in chosen.items() for part in ("--set", f"{name}={value}")]
    command = [
        str(Path(sys.executable).parent / "cluster"), "submit", "--", "trainer", "pretrain", data, out,
        "--model", "R14x0.5", "--recipe", "bit-s", "--workers", workers, *options,
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for_checkpoint(
    store: Store, process: subprocess.Popen[bytes], step: int, timeout_seconds: float = WAIT_SECONDS
) -> None:
    def is_there() -> bool:
        assert process.poll() is None, process.communicate()[0].decode()
        return any(record.step >= step for record in committed(store))

    wait_until(is_there, f"a checkpoint of step {step}", timeout_seconds, STORE_POLL_SECONDS)


@pytest.mark.timeout(600)
def test_a_disturbed_run_gets_on_by_itself_and_ends_with_the_bits_of_a_calm_one(
    cluster: Stack, s3_url: Callable[[str], str], tmp_path: Path
) -> None:
    faults = ["damage", "driver"]  # the first kills a worker, too
    found = soak(cluster, s3_url("soak"), tmp_path, 0.5, 1, faults, checkpoint_every_steps=7, pause_seconds=(0.0, 0.0))
    assert set(found.seconds) == set(faults)
    assert [*found.store.list("damaged/")]
    starts = attempts(found.store)
    assert len(starts) > len(faults)  # each took a start more
    assert {place["node"] for place in starts[0]["ranks"]} == {"127.0.0.2", "127.0.0.3"}
    kept = {record.step for record in committed(found.store)}
    assert all(start["first_step"] > 0 for start in starts[1:])
    assert max(kept) > starts[-1]["first_step"]


def test_ranks_that_share_a_model_take_the_steps_of_one_that_holds_it(
    cluster: Stack, small_folder: Path, s3_url: Callable[[str], str], tmp_path: Path
) -> None:
    data = s3_url("data")
    pack(small_folder, data, shard_bytes=150_000, block_bytes=40_000)
    short = {"recipe.epochs": 2, "recipe.decay_epochs": [1]}
    process = start(data, s3_url("shared"), **short, sharded="true", recomputes="true")
    printed = process.communicate()[0].decode()
    assert process.returncode == 0, printed
    options = [part for name, value in (SETTINGS | short).items() for part in ("--set", f"{name}={value}")]
    alone = run_cli(
        "trainer",
        "pretrain",
        data,
        str(tmp_path),
        "--model",
        "R14x0.5",
        "--recipe",
        "bit-s",
        "--workers",
        "0",
        *options,
    )
    assert alone.returncode == 0, alone.stderr
    both = [read_metrics(open_store(url)) for url in (s3_url("shared"), str(tmp_path))]
    assert [len(rows) for rows in both] == [3, 3]
    for two_ranks, one in zip(*both, strict=True):
        assert two_ranks["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-2)
        # Means over all ranks and all steps of the interval, not one rank's share of one step.
        assert two_ranks["loss"] == pytest.approx(one["loss"], rel=1e-3)
        assert two_ranks["accuracy"] == pytest.approx(one["accuracy"], abs=1e-6)
    # A checkpoint of shards is whole for whoever loads it.
    assert final_state(s3_url("shared")).keys() == final_state(str(tmp_path)).keys()


def test_a_run_that_cannot_succeed_ends_with_its_reason(
    cluster: Stack, small_folder: Path, s3_url: Callable[[str], str]
) -> None:
    data = s3_url("data")
    dataset = pack(small_folder, data, shard_bytes=150_000, block_bytes=40_000)
    for shard in dataset.shards:
        dataset.store.delete(shard["path"])
    process = start(data, s3_url("out"))
    printed = process.communicate()[0].decode()
    assert process.returncode == 1
    assert "error: the run stopped on its workers" in printed
    assert "can be used" in printed
    assert "run `pipeline verify` on the dataset" in printed
    assert len(attempts(open_store(s3_url("out")))) == 1


def test_a_stopped_rank_is_named_while_the_others_wait_and_the_run_goes_on_when_it_does(
    cluster: Stack, small_folder: Path, s3_url: Callable[[str], str]
) -> None:
    data = s3_url("data")
    pack(small_folder, data, shard_bytes=150_000, block_bytes=40_000)
    store = open_store(s3_url("out"))
    process = start(data, s3_url("out"))
    assert process.stdout is not None
    wait_for_checkpoint(store, process, 5)
    place = attempts(store)[0]["ranks"][1]
    os.kill(place["pid"], signal.SIGSTOP)
    lines = []
    for line in process.stdout:
        lines.append(line.decode())
        if "has given no sign of life" in lines[-1]:
            break
    os.kill(place["pid"], signal.SIGCONT)
    assert f"rank 1 ({place['host']}, process {place['pid']}) has given no sign of life for" in lines[-1], lines
    printed = process.communicate()[0].decode()
    assert process.returncode == 0, printed
    assert "is back" in printed
    assert len(attempts(store)) == 1


def test_a_run_that_waits_for_workers_can_be_stopped(
    cluster: Stack, small_folder: Path, s3_url: Callable[[str], str]
) -> None:
    data = s3_url("data")
    pack(small_folder, data, shard_bytes=150_000, block_bytes=40_000)
    trainer = str(Path(sys.executable).parent / "trainer")
    command = [trainer, "pretrain", data, s3_url("out"), "--model", "R14x0.5", "--workers", "5", "--wait"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "no worker is running yet" in line:
            break
    process.send_signal(signal.SIGTERM)
    said = process.stderr.read()
    assert process.wait() == 130, said
    assert "stopped while no worker was running" in said
    assert "Traceback" not in said
