"""Ray nodes on this machine, each with a loopback address of its own where there are several."""

import os
import secrets
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tenacity import retry, retry_if_exception_type, stop_after_attempt

from cluster.stack.jobs import STOP_WAIT
from cluster.stack.ports import free_ports
from cluster.stack.processes import beside_python, carries, commands_first, identities, launch, stop_all, unstoppable
from pipeline.base.errors import ServiceError

_READY_SECONDS = 60.0
# Ray allows a node 30 s to register, whatever is set; a machine that reads its files for the first time may need more.
_NODE_STARTS = 3
# Several nodes need an address each. Ray then listens on all interfaces, guarded by its token, but for its metrics;
# with one node on 127.0.0.1 it listens on the loopback interface only, if this variable turns clusters off.
_FIRST_OF_SEVERAL_NODES = 2
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_OBJECT_STORE_BYTES = 200_000_000
# What workers print stays in their log files. Each node would read all of these ten times a second (2.7 % of a core),
# and with them those of other nodes of the machine.
QUIET = ("--include-log-monitor=false",)


def start_ray(
    folder: Path,
    scratch: str,
    cpus_per_node: Sequence[int],
    environment: Mapping[str, str],
    started: list[subprocess.Popen[bytes]],
    dashboard_port: int,
) -> str | None:
    """Start the nodes; return the address of the cluster, None without nodes."""
    head_port, client_port = free_ports(2)
    folder_of_ray = Path(scratch, "ray")  # Ray opens its folder to everybody; nobody gets through the one above
    settings = {
        **os.environ,
        **environment,
        "PATH": commands_first(),  # job entry points run from it
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's monitor looks at the whole machine: it would kill our workers for the memory of other processes.
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a dead worker is seen 2 s earlier than by default
        **STOP_WAIT,  # for jobs that `ray job submit` starts
    }
    settings.pop("RAY_ADDRESS", None)  # of another cluster
    if len(cpus_per_node) == 1:
        settings |= LOOPBACK_ONLY
    first = 1 if len(cpus_per_node) == 1 else _FIRST_OF_SEVERAL_NODES
    for number, cpus in enumerate(cpus_per_node):
        own = f"127.0.0.{first + number}"
        command = [
            beside_python("ray"), "start", "--block", f"--num-cpus={cpus}", "--disable-usage-stats",
            f"--node-ip-address={own}", f"--object-store-memory={_OBJECT_STORE_BYTES}", *QUIET,
        ]  # fmt: skip
        if number == 0:
            command += ["--head", f"--temp-dir={folder_of_ray}", f"--port={head_port}", "--dashboard-host=127.0.0.1",
                        f"--dashboard-port={dashboard_port}", f"--ray-client-server-port={client_port}"]  # fmt: skip
        else:
            command.append(f"--address=127.0.0.{first}:{head_port}")
        started.append(start_node(command, folder / f"ray-{number}.log", settings | metrics_at(own)))
    return f"127.0.0.{first}:{head_port}" if cpus_per_node else None


def metrics_at(address: str) -> dict[str, str]:
    """Return the variables of a node whose metrics are served at its own address alone."""
    paths = [str(Path(__file__).with_name("loopback")), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"BIT_NODE_ADDRESS": address, "PYTHONPATH": os.pathsep.join(paths)}


@retry(retry=retry_if_exception_type(ServiceError), stop=stop_after_attempt(_NODE_STARTS), reraise=True)
def start_node(command: list[str], log: Path, settings: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start one node and wait until it has registered; one that does not is stopped, descendants too, and retried."""
    agent_port, agent_grpc_port, metrics_port = free_ports(3)
    ports = [f"--dashboard-agent-listen-port={agent_port}", f"--dashboard-agent-grpc-port={agent_grpc_port}",
             f"--metrics-export-port={metrics_port}"]  # fmt: skip
    mark = secrets.token_hex(8)  # in the environment of all its processes, which may outlive the first
    process = launch(command + ports, log, {**settings, "BIT_NODE_START": mark})
    try:
        _wait_for_line(process, log, "Ray runtime started")
    except BaseException:
        with unstoppable():
            stop_all(identities([process]), carries("BIT_NODE_START", mark))
        raise
    return process


def _wait_for_line(process: subprocess.Popen[bytes], log: Path, text: str) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while text not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
            raise ServiceError(f"Ray did not start ({last}); see {log}")
        time.sleep(0.1)
