"""Jobs through Ray's own API, on a real cluster of two nodes."""

import time
import uuid

import pytest

from cluster.stack.services import Stack
from tests.conftest import run_cli


def test_a_job_runs_and_its_output_and_status_are_seen(cluster: Stack) -> None:
    job = f"job-{uuid.uuid4().hex[:6]}"
    done = run_cli(
        "cluster", "submit", "--job", job, "--env", "GREETING=hello there", "--", "sh", "-c", "echo $GREETING"
    )
    assert done.returncode == 0, done.stderr
    assert "hello there" in done.stdout
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
