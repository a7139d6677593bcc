"""What is started is stopped: by `cluster down`, and by Ctrl-C in the middle of the demonstration."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from cluster.stack.ports import free_ports, is_free
from cluster.stack.ray_nodes import start_node
from cluster.stack.services import Stack, read_stack
from tests.conftest import class_folders, run_cli


def members(marker: str) -> list[psutil.Process]:
    """Return the live processes whose command line names `marker`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and any(marker in part for part in process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def exported(lines: str) -> dict[str, str]:
    """Return the variables that lines for a shell export."""
    return dict(line.removeprefix("export ").split("=", 1) for line in lines.splitlines())


def test_a_node_that_does_not_register_is_stopped_whole_and_started_again(tmp_path: Path) -> None:
    late = "if mkdir seen 2>/dev/null; then sleep 601.25 & exit 1; else echo Ray runtime started; exec sleep 602.25; fi"
    command = ["bash", "-c", f"cd {tmp_path}; {late}", str(tmp_path)]
    process = start_node(command, tmp_path / "ray.log", os.environ)
    try:
        assert process.poll() is None
        assert (tmp_path / "seen").exists()
        assert members("601.25") == []
    finally:
        process.kill()


def test_up_starts_on_the_loopback_interface_only_and_down_stops_everything(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PATH")  # as units of systemd may have it
        up = run_cli("cluster", "up", "stack", "--node-cpus", "1", cwd=tmp_path)
    assert up.returncode == 0, up.stderr
    stack = read_stack(tmp_path / "stack")
    exports = exported(up.stdout)
    assert exports == stack.environment
    assert f"cat {stack.token}" in up.stderr
    assert (tmp_path / "stack" / "s3.json").stat().st_mode & 0o077 == 0
    answer = run_cli("pipeline", "inspect", "s3://bit/nothing", **exports)
    assert "holds no published dataset" in answer.stderr
    again = run_cli("cluster", "up", "stack", cwd=tmp_path)
    assert "runs in stack already" in again.stderr
    assert again.stdout == up.stdout == run_cli("cluster", "env", "stack", cwd=tmp_path).stdout
    family = [
        p for pid, _ in stack.processes for p in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    ]
    assert len(family) > 5
    listening_at = {
        connection.laddr.ip
        for process in family
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening_at <= {"127.0.0.1", "::ffff:127.0.0.1"}
    # As from a shell that has the variables: an editor of that shell and what runs the command itself go on.
    with subprocess.Popen(["sleep", "600"], env={**os.environ, **exports}) as editor:
        timeout = ["timeout", "60", str(Path(sys.executable).parent / "cluster"), "down", "stack"]
        down = subprocess.run(
            timeout, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **exports}, check=False
        )
        assert down.returncode == 0, down.stderr
        assert editor.poll() is None
        editor.kill()
    unset = [name for line in down.stdout.splitlines() for name in line.removeprefix("unset ").split()]
    assert sorted(unset) == sorted(exports)
    alive = [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert alive == []
    assert not Path(stack.scratch).exists()
    gone = run_cli("cluster", "down", "stack", cwd=tmp_path)
    assert gone.returncode == 1
    assert "no stack runs in stack" in gone.stderr


def test_a_stale_state_file_stops_nobody_else(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as bystander:
        stack = Stack(
            folder=str(tmp_path), scratch=str(tmp_path / "scratch"), processes=((bystander.pid, 1.0),),
            environment={"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}, dashboard="",
        )  # fmt: skip
        (tmp_path / "cluster.json").write_bytes(stack.to_json())
        assert run_cli("cluster", "down", str(tmp_path)).returncode == 0
        assert bystander.poll() is None
        bystander.kill()


def test_a_stack_that_has_ended_is_not_offered_and_up_starts_another(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as service:
        started = psutil.Process(service.pid).create_time()
        stack = Stack(
            folder=str(tmp_path), scratch=str(tmp_path / "scratch"), processes=((service.pid, started),),
            environment={"RAY_AUTH_TOKEN_PATH": str(tmp_path / "a token")}, dashboard="http://127.0.0.1:9",
        )  # fmt: skip
        (tmp_path / "cluster.json").write_bytes(stack.to_json())
        shown = run_cli("cluster", "env", str(tmp_path))
        assert shown.stdout == f"export RAY_AUTH_TOKEN_PATH='{tmp_path}/a token'\n"
        service.kill()
    gone = run_cli("cluster", "env", str(tmp_path))
    assert gone.returncode == 1
    assert f"the stack of {tmp_path} has ended; start it again with `cluster up {tmp_path}`" in gone.stderr
    up = run_cli("cluster", "up", str(tmp_path), "--bucket", "b")
    assert "'b' is no bucket name" in up.stderr
    assert not (tmp_path / "cluster.json").exists()


def test_up_ended_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "cluster"), "up", str(tmp_path / "stack")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "stack" / "ray-0.log").exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[1]
    assert process.returncode == 130
    assert "Traceback" not in said
    assert members(str(tmp_path)) == []


@pytest.mark.parametrize("option", ["--s3-port", "--dashboard-port"])
def test_a_port_in_use_is_named_and_nothing_starts(tmp_path: Path, option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        up = run_cli("cluster", "up", "stack", option, str(port), cwd=tmp_path)
    assert up.returncode == 2
    assert f"error: port {port} is in use on 127.0.0.1" in up.stderr
    assert not (tmp_path / "stack").exists()


def test_free_ports_are_distinct_and_not_taken() -> None:
    ports = free_ports(40)
    assert len(set(ports)) == 40
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[0]))
        assert not is_free(ports[0])
    assert is_free(ports[0])


def test_a_wrong_bucket_name_is_refused_at_once_and_nothing_stays(tmp_path: Path) -> None:
    up = run_cli("cluster", "up", "stack", "--bucket", "b", cwd=tmp_path)
    assert up.returncode == 2
    assert "'b' is no bucket name" in up.stderr
    assert members(str(tmp_path)) == []


@pytest.mark.parametrize(
    ("number", "at"),
    [
        (signal.SIGINT, "  step "),  # of the job that pretrains
        (signal.SIGTERM, "  published "),  # by the first that packs
    ],
)
def test_interrupting_the_demonstration_stops_all_it_started(tmp_path: Path, number: signal.Signals, at: str) -> None:
    data = class_folders(tmp_path / "photos", classes=2, each=20)
    command = [
        str(Path(sys.executable).parent / "cluster"),
        "demo",
        "--data",
        str(data),
        "--out",
        str(tmp_path / "out"),
        "--short",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith(at):
                break
        stack = read_stack(next((tmp_path / "out").glob("photos-*/stack")))
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        said.append(process.communicate()[0])
    text = "".join(said)
    assert process.returncode == 130, text
    assert "stopping Ray and the S3 server" in text
    assert "Traceback" not in text
    assert members(stack.scratch) == members(str(tmp_path)) == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", urlsplit(stack.dashboard).port)) != 0
