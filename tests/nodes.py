"""Nodes of a real Ray cluster that are lost, announced to go, and come back; each has an address of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from cluster.stack.processes import commands_first
from cluster.stack.ray_nodes import QUIET, metrics_at, start_node
from cluster.stack.services import Stack

_OBJECT_STORE_BYTES = 100_000_000
_RAY = str(Path(sys.executable).parent / "ray")
_LIST_NODES = """import ray; ray.init(logging_level="ERROR", log_to_driver=False)
for node in ray.nodes():
    if node["Alive"]: print(node["NodeManagerAddress"], node["NodeID"])"""


def address_of(number: int) -> str:
    """Return the address of a node; the head of a stack is number 0."""
    return f"127.0.0.{2 + number}"


def kill_node(stack: Stack, number: int) -> None:
    """Kill a node as a machine is lost: all of its processes, with its workers."""
    option = f"--node-ip-address={address_of(number)}"
    for process in psutil.process_iter(["cmdline"]):
        if option in (process.info["cmdline"] or []) and process.environ().get("BIT_STACK") == stack.mark:
            for each in [process, *process.children(recursive=True)]:
                os.kill(each.pid, signal.SIGKILL)
            return
    raise AssertionError(f"there is no node {number}")


def add_node(stack: Stack, number: int, num_cpus: int = 1) -> None:
    """Start one more node; it ends with the stack."""
    command = [
        _RAY, "start", "--block", f"--num-cpus={num_cpus}", f"--node-ip-address={address_of(number)}",
        f"--address={stack.environment['RAY_ADDRESS']}", f"--object-store-memory={_OBJECT_STORE_BYTES}",
        "--disable-usage-stats", *QUIET,
    ]  # fmt: skip
    settings = {
        **os.environ,
        **stack.environment,
        "BIT_STACK": stack.mark,
        "PATH": commands_first(),
        "RAY_memory_monitor_refresh_ms": "0",
        **metrics_at(address_of(number)),
    }
    settings.pop("RAY_ADDRESS", None)
    start_node(command, Path(stack.folder) / f"ray-more-{number}.log", settings)


def alive_nodes(stack: Stack) -> dict[int, str]:
    """Return the names that Ray has given to the nodes there are, by their numbers."""
    listed = subprocess.run(
        [sys.executable, "-c", _LIST_NODES],
        env=os.environ | stack.environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = (line.split() for line in listed.splitlines() if line.startswith("127."))
    return {int(address.rsplit(".", 1)[1]) - 2: name for address, name in found}


def drain_node(stack: Stack, number: int, seconds: int) -> None:
    """Announce that a node will be taken away, as a cloud does."""
    command = [
        _RAY, "drain-node", f"--address={stack.environment['RAY_ADDRESS']}", f"--node-id={alive_nodes(stack)[number]}",
        "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=test", f"--deadline-remaining-seconds={seconds}",
    ]  # fmt: skip
    subprocess.run(command, env=os.environ | stack.environment, check=True, capture_output=True)
