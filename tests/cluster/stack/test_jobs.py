"""Jobs through Ray's own API, on a real cluster of two nodes."""

import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from cluster.stack.jobs import without_ray
from cluster.stack.services import Stack
from pipeline.dataset.dataset import Dataset
from pipeline.store.url import open_store
from tests.conftest import BUCKET, run_cli


def test_a_job_runs_and_its_output_and_status_are_seen(cluster: Stack) -> None:
    job = f"job-{uuid.uuid4().hex[:6]}"
    done = run_cli(
        "cluster", "submit", "--job", job, "--env", "GREETING=hello there", "--", "sh", "-c", "echo $GREETING"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "hello there\n"  # and nothing of Ray's own
    assert done.stderr == f"job {job}\njob {job} SUCCEEDED\n"
    assert run_cli("cluster", "status", job).stdout.strip() == "SUCCEEDED"
    assert "hello there" in run_cli("cluster", "logs", job).stdout
    assert job in run_cli("cluster", "status").stdout


def test_a_failing_job_gives_exit_code_1(cluster: Stack) -> None:
    done = run_cli("cluster", "submit", "--", "sh", "-c", "exit 3")
    assert done.returncode == 1
    assert "FAILED" in done.stderr


def test_a_job_is_stopped(cluster: Stack) -> None:
    job = run_cli("cluster", "submit", "--no-wait", "--", "sleep", "600").stdout.strip()
    while run_cli("cluster", "status", job).stdout.strip() == "PENDING":
        time.sleep(0.2)
    assert run_cli("cluster", "stop", job).returncode == 0
    while (status := run_cli("cluster", "status", job).stdout.strip()) == "RUNNING":
        time.sleep(0.2)
    assert status == "STOPPED"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_job_outlives_its_submission_and_is_not_submitted_twice(cluster: Stack, number: signal.Signals) -> None:
    job = f"job-{uuid.uuid4().hex[:6]}"
    again = ("submit", "--job", job, "--", "sh", "-c", "echo begun; sleep 600")
    command = [str(Path(sys.executable).parent / "cluster"), *again]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        printed = process.communicate()[1]
    assert process.returncode == 130
    assert (
        f"job {job} goes on; follow it with `cluster logs {job} --follow`, end it with `cluster stop {job}`" in printed
    )
    assert "Traceback" not in printed
    refused = run_cli("cluster", *again)
    assert refused.returncode == 1
    assert f"error: job {job} is RUNNING already" in refused.stderr
    stopped = run_cli("cluster", "stop", job)
    assert stopped.stderr.endswith(f"job {job} STOPPED\n")
    other = run_cli("cluster", "submit", "--no-wait", "--job", job, "--", "true")
    assert other.stdout == f"{job}-2\n"


def test_a_stopped_training_saves_its_state_and_goes_on_there(cluster: Stack, small_dataset: Dataset) -> None:
    out = f"s3://{BUCKET}/{uuid.uuid4().hex[:6]}"
    settings = {"recipe.epochs": 4000, "recipe.decay_epochs": [4000], "recipe.batch_size": 8,
                "recipe.resolution_px": 16, "recipe.warmup_steps": 2, "num_lanes": 2,
                "checkpoint_every_steps": 1_000_000}  # fmt: skip
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    command = ("trainer", "pretrain", small_dataset.store.url, out, "--model", "R14x0.5", "--recipe", "bit-s",
               "--workers", "1", *options)  # fmt: skip

    def submit_and_stop(first_line: str) -> int:
        """Submit, stop after a line of the job's output, and return the step of which the state is saved."""
        job = run_cli("cluster", "submit", "--no-wait", "--", *command).stdout.strip()
        while not re.search(first_line, run_cli("cluster", "logs", job).stdout):
            assert run_cli("cluster", "status", job).stdout.strip() in ("PENDING", "RUNNING")
        stopped = run_cli("cluster", "stop", job)
        assert stopped.returncode == 0
        assert f"job {job} STOPPED" in stopped.stderr
        found = re.match(r"stopped after step ([\d,]+) .* its state is saved", stopped.stdout.splitlines()[-1])
        assert found, stopped.stdout
        return int(found[1].replace(",", ""))

    step = submit_and_stop("step [1-9]")
    assert any(f"{step:08d}" in entry.key for entry in open_store(out).list("checkpoints/"))
    assert submit_and_stop(f"resumed from step {step:,} ") > step


def test_lines_of_ray_are_left_out_of_what_a_job_prints() -> None:
    prefix = "\x1b[36m(RayTrainWorker pid=3827, ip=127.0.0.3)\x1b[0m "
    lines = [
        "2026-11-28 16:28:05,245\tINFO job_manager.py:581 -- Runtime env is setting up.",
        "Running entrypoint for job p1: trainer pretrain",
        "R14x0.5, 2,010,403 parameters",
        "(TrainController pid=3287, ip=127.0.0.3) Requesting resources: {'CPU': 1} * 2",
        "(PlacementGroupCleaner pid=897, ip=127.0.0.3) Traceback (most recent call last):",
        prefix + "[2026-11-28 16:28:44,604 E 3287 3616] core_worker.cc:2465: Actor with class name",
        prefix + "/a/ranks.py:69: FutureWarning: `broadcast_buffers` is deprecated.",
        prefix + "  return DistributedDataParallel(model, broadcast_buffers=False)",
        prefix + "step 1/17  0.78 s a step",
        "(MyActor pid=1) what a job's own actor prints",
        "  an indented line",
    ]
    assert list(without_ray(lines)) == [
        "R14x0.5, 2,010,403 parameters",
        "step 1/17  0.78 s a step",
        "(MyActor pid=1) what a job's own actor prints",
        "  an indented line",
    ]


@pytest.mark.parametrize("command", ["status", "logs", "stop"])
def test_an_unknown_job_is_named(cluster: Stack, command: str) -> None:
    done = run_cli("cluster", command, "no-such-job")
    assert done.returncode == 1
    assert "no job 'no-such-job'" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_cluster_is_said_plainly(cluster: Stack) -> None:
    nowhere = run_cli("cluster", "status", "--address", "http://127.0.0.1:9")
    assert nowhere.returncode == 1
    assert "no Ray job API answers at http://127.0.0.1:9" in nowhere.stderr
    unnamed = run_cli("cluster", "status", RAY_API_SERVER_ADDRESS="")
    assert unnamed.returncode == 1
    assert "give --address" in unnamed.stderr
