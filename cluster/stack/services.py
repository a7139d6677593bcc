"""A whole local stack on the loopback interface: an S3 server (SeaweedFS) and Ray nodes, started and stopped by pid."""

import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cluster.stack.certificates import write_private
from cluster.stack.ports import free_ports, is_free
from cluster.stack.processes import Identity, carries, identities, is_alive, stop_all, unstoppable
from cluster.stack.ray_nodes import LOOPBACK_ONLY, start_ray
from cluster.stack.s3_server import create_bucket, start_s3
from pipeline.base.errors import ConfigError, ServiceError
from pipeline.base.parsing import parse_record
from pipeline.base.records import Record

STATE_NAME = "cluster.json"
_MARK = "BIT_STACK"


class Stack(Record):
    """A running stack; what `cluster down` and other commands need.

    Attributes:
        folder: Its state, logs and objects.
        scratch: For Ray's folder and sockets; nobody else can look into it. Short, because Unix socket paths are.
        processes: First process of each service, in the order to stop them.
        environment: What a client sets to reach both services.
        dashboard: URL of Ray's job API.
        mark: Value of BIT_STACK in the environment of the services, and of no client: whoever carries it is theirs.
    """

    folder: str
    scratch: str
    processes: tuple[Identity, ...]
    environment: dict[str, str]
    dashboard: str
    mark: str = ""  # of a stack that a release without marks started: its services' descendants alone are ended

    @property
    def is_running(self) -> bool:
        """Whether the first process of every service is alive."""
        return all(is_alive(process) for process in self.processes)

    @property
    def token(self) -> str:
        """File that holds the token for which Ray's dashboard asks."""
        return self.environment["RAY_AUTH_TOKEN_PATH"]


def start_stack(
    folder: Path, *, cpus_per_node: Sequence[int], bucket: str, s3_port: int = 0, dashboard_port: int = 0
) -> Stack:
    """Start the S3 server, one Ray node for each entry of `cpus_per_node`, and create the bucket.

    Args:
        folder: For state, logs and objects.
        cpus_per_node: CPUs of each Ray node; none for the S3 server alone.
        bucket: Created if missing.
        s3_port: Port of the S3 server; 0 for any free one.
        dashboard_port: Port of Ray's dashboard and job API; 0 for any free one.

    Raises:
        ConfigError: A port is in use, or the bucket's name is invalid.
        ServiceError: A service did not start; everything that was started is stopped again.
    """
    for port in (s3_port, dashboard_port):
        if port and not is_free(port):
            raise ConfigError(f"port {port} is in use on 127.0.0.1; choose another one, or 0 for any that is free")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix="bit-")
    token = folder / "ray-token"
    write_private(token, secrets.token_hex(32).encode())
    mark = secrets.token_hex(16)
    started: list[subprocess.Popen[bytes]] = []
    try:
        server, environment = start_s3(folder, Path(scratch), s3_port, {_MARK: mark})
        started.append(server)
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token.absolute())}
        create_bucket(environment, bucket)
        dashboard_port = dashboard_port or free_ports(1)[0]
        # Ray Train asks the job API of the cluster it runs on; by itself it finds any cluster of this machine.
        nodes = environment | {_MARK: mark, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard_port}"}
        address = start_ray(folder, scratch, cpus_per_node, nodes, started, dashboard_port)
    except BaseException:
        with unstoppable():
            stop_all(identities(started), carries(_MARK, mark))
            shutil.rmtree(scratch, ignore_errors=True)
        raise
    dashboard = f"http://127.0.0.1:{dashboard_port}"
    stack = Stack(
        folder=str(folder.absolute()),
        scratch=scratch,
        processes=identities(started),
        # For jobs, and for programs that use the cluster from outside; Ray's own search finds any cluster here.
        environment=environment
        | {"RAY_API_SERVER_ADDRESS": dashboard}
        | ({"RAY_ADDRESS": address} if address else {})
        | (LOOPBACK_ONLY if len(cpus_per_node) == 1 else {}),
        dashboard=dashboard,
        mark=mark,
    )
    write_private(folder / STATE_NAME, stack.to_json())
    return stack


def stop_stack(stack: Stack) -> None:
    """Stop every process of the stack and remove Ray's scratch folder; objects and logs stay.

    Processes that merely know how to reach the stack go on, such as an editor of a shell that has its variables.
    """
    with unstoppable():
        stop_all(stack.processes, carries(_MARK, stack.mark))
        shutil.rmtree(stack.scratch, ignore_errors=True)
        (Path(stack.folder) / STATE_NAME).unlink(missing_ok=True)


def stop_leftover(folder: Path) -> None:
    """Stop a stack that an earlier process left running in the folder, if there is one."""
    if (folder / STATE_NAME).exists():
        stop_stack(read_stack(folder))


def read_stack(folder: Path) -> Stack:
    """Read the state of the stack that was started in a folder.

    Raises:
        ServiceError: None runs there.
    """
    try:
        body = (folder / STATE_NAME).read_bytes()
    except FileNotFoundError as error:
        raise ServiceError(f"no stack runs in {folder}; start one with `cluster up {folder}`") from error
    return parse_record(Stack, body, str(folder / STATE_NAME))
