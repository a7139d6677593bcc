"""Nodes of a real Ray cluster that are lost and come back."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from cluster.stack.services import Stack, free_ports
from tests.waiting import wait_until

_OBJECT_STORE_BYTES = 100_000_000


def kill_node(stack: Stack, number: int) -> None:
    """Kill a node as a machine is lost: all of its processes, with its workers."""
    node = psutil.Process(stack.processes[-2 - number][0])
    for process in [node, *node.children(recursive=True)]:
        os.kill(process.pid, signal.SIGKILL)


def add_node(stack: Stack, number: int, num_cpus: int = 1) -> None:
    """Start one more node at an address of its own; it ends with the stack."""
    agent_port, agent_grpc_port, metrics_port = free_ports(3)
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--block", f"--num-cpus={num_cpus}",
        f"--node-ip-address=127.0.0.{2 + number}", f"--address={stack.environment['RAY_ADDRESS']}",
        f"--object-store-memory={_OBJECT_STORE_BYTES}", f"--dashboard-agent-listen-port={agent_port}",
        f"--dashboard-agent-grpc-port={agent_grpc_port}", f"--metrics-export-port={metrics_port}",
        "--disable-usage-stats",
    ]  # fmt: skip
    settings = {
        **os.environ,
        **stack.environment,
        "BIT_STACK": stack.mark,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_memory_monitor_refresh_ms": "0",
    }
    settings.pop("RAY_ADDRESS", None)
    log = Path(stack.folder) / f"ray-more-{number}.log"
    with log.open("wb") as sink:
        subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=settings, start_new_session=True)
    wait_until(lambda: "Ray runtime started" in log.read_text(errors="replace"), f"the node of {log}")
