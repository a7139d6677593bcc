"""A worker killed with SIGKILL on a real cluster: the run resumes by itself and ends with the same bits."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cluster.stack.services import Stack
from pipeline.store.base import Store
from pipeline.store.url import open_store
from tests.conftest import pack, run_cli
from tests.trainer.runs import assert_equal, final_state
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


def test_a_killed_worker_resumes_and_ends_bitwise_equal(
    cluster: Stack, small_folder: Path, s3_url: Callable[[str], str]
) -> None:
    data = s3_url("data")
    pack(small_folder, data, shard_bytes=150_000, block_bytes=40_000)
    calm = start(data, s3_url("calm"))
    printed = calm.communicate()[0].decode()
    assert calm.returncode == 0, printed

    store = open_store(s3_url("killed"))
    process = start(data, s3_url("killed"))
    wait_for_checkpoint(store, process, 10)
    places = attempts(store)[0]["ranks"]
    assert {place["node"] for place in places} == {"127.0.0.2", "127.0.0.3"}
    os.kill(places[1]["pid"], signal.SIGKILL)
    printed = process.communicate()[0].decode()
    assert process.returncode == 0, printed

    starts = attempts(store)
    assert len(starts) == 2
    assert starts[0]["first_step"] == 0
    assert starts[1]["first_step"] >= 10
    assert starts[1]["first_step"] in {record.step for record in committed(store)}
    assert_equal(final_state(s3_url("calm")), final_state(s3_url("killed")))
    rows = [[row | {"times": 0} for row in read_metrics(open_store(s3_url(name)))] for name in ("calm", "killed")]
    for one, other in zip(*rows, strict=True):
        assert [one[name] for name in ("step", "loss", "gradient_norm")] == [
            other[name] for name in ("step", "loss", "gradient_norm")
        ]
    assert torch.isfinite(torch.tensor([row["loss"] for row in rows[0]])).all()
    config = json.loads(store.read("run.json"))
    assert config["data_version"] == 1


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
