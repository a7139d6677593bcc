"""A whole local stack on the loopback interface: an S3 server (SeaweedFS) and Ray nodes, started and stopped by pid."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from tenacity import retry, retry_if_exception_type, stop_after_attempt

from cluster.stack.jobs import STOP_WAIT
from cluster.stack.processes import Identity, identities, is_alive, stop_all, unstoppable
from pipeline.base.errors import ConfigError, ServiceError
from pipeline.base.records import Record

STATE_NAME = "cluster.json"
_MARK = "BIT_STACK"
_READY_SECONDS = 60.0
# Ray allows a node 30 s to register, whatever is set; a machine that reads its files for the first time may need more.
_NODE_STARTS = 3
# Several nodes need an address each. Ray then listens on all interfaces, guarded by its token; with one node on
# 127.0.0.1 it listens on the loopback interface only, if this variable turns clusters off.
_FIRST_OF_SEVERAL_NODES = 2
_LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_OBJECT_STORE_BYTES = 200_000_000
_PORTS = range(20_000, 32_768)


class Stack(Record):
    """A running stack; what `cluster down` and other commands need.

    Attributes:
        folder: Its state, logs and objects.
        scratch: Ray's folder; short, because Unix socket paths are.
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
        if port and not _is_free(port):
            raise ConfigError(f"port {port} is in use on 127.0.0.1; choose another one, or 0 for any that is free")
    folder.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix="bit-")
    token = folder / "ray-token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    mark = secrets.token_hex(16)
    started: list[subprocess.Popen[bytes]] = []
    try:
        server, environment = _start_s3(folder, s3_port, mark)
        started.append(server)
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token.absolute())}
        create_bucket(environment, bucket)
        dashboard_port = dashboard_port or free_ports(1)[0]
        # Ray Train asks the job API of the cluster it runs on; by itself it finds any cluster of this machine.
        nodes = environment | {_MARK: mark, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard_port}"}
        address = _start_ray(folder, scratch, cpus_per_node, nodes, started, dashboard_port)
    except BaseException:
        with unstoppable():
            stop_all(identities(started), _carries(_MARK, mark))
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
        | (_LOOPBACK_ONLY if len(cpus_per_node) == 1 else {}),
        dashboard=dashboard,
        mark=mark,
    )
    state = folder / STATE_NAME
    state.touch(mode=0o600)
    state.write_bytes(stack.to_json())
    return stack


def stop_stack(stack: Stack) -> None:
    """Stop every process of the stack and remove Ray's scratch folder; objects and logs stay.

    Processes that merely know how to reach the stack go on, such as an editor of a shell that has its variables.
    """
    with unstoppable():
        stop_all(stack.processes, _carries(_MARK, stack.mark))
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
        return Stack.model_validate_json((folder / STATE_NAME).read_bytes())
    except FileNotFoundError as error:
        raise ServiceError(f"no stack runs in {folder}; start one with `cluster up {folder}`") from error


def free_ports(count: int) -> list[int]:
    """Return distinct ports that are free on the loopback interface.

    They are below the kernel's range for outgoing connections: a free port of that range may be taken by one of Ray's
    own processes before the service it is meant for binds it.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = secrets.choice(_PORTS)
        if port not in ports and _is_free(port):
            ports.append(port)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _start_s3(folder: Path, s3_port: int, mark: str) -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    objects = folder / "objects"
    objects.mkdir(exist_ok=True)
    access_key, secret_key = "bit", secrets.token_hex(16)
    identity = {
        "name": "bit",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    access = folder / "s3.json"
    access.touch(mode=0o600)
    access.write_text(json.dumps({"identities": [identity]}))
    names = ("s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
             "filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc")  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    ports["s3.port"] = s3_port or ports["s3.port"]
    command = [
        _beside_python("weed"), "-logtostderr=true", "mini", f"-dir={objects}", "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1", f"-s3.config={access}", *(f"-{name}={port}" for name, port in ports.items()),
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false", "-master.telemetry=false",
    ]  # fmt: skip
    # Without a limit the server grows past 1 GB in a session of 64 MB objects. The caller's own AWS variables must
    # not reach it: it would take them as the credentials it accepts.
    settings = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    process = _launch(command, folder / "s3.log", settings | {"GOMEMLIMIT": "400MiB", _MARK: mark})
    return process, {
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3.port']}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def create_bucket(environment: Mapping[str, str], bucket: str) -> None:
    """Create the bucket, once the server accepts a signed write.

    Raises:
        ConfigError: The name is invalid.
        ServiceError: The server accepted no write within a minute.
    """
    import boto3  # noqa: PLC0415 - takes 0.3 s that `--help` need not pay
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    endpoint = environment["AWS_ENDPOINT_URL"]
    client = boto3.session.Session(
        environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1"
    ).client("s3", endpoint_url=endpoint)
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        try:
            with suppress(client.exceptions.BucketAlreadyOwnedByYou):
                client.create_bucket(Bucket=bucket)
            client.put_object(Bucket=bucket, Key="ready", Body=b"")
        except (BotoCoreError, ClientError) as error:
            if "InvalidBucketName" in str(error):
                raise ConfigError(f"{bucket!r} is no bucket name; use 3 to 63 lower-case letters and digits") from error
            if time.monotonic() > deadline:
                raise ServiceError(f"the S3 server at {endpoint} did not start: {error}") from error
            time.sleep(0.2)
        else:
            return


def _start_ray(
    folder: Path,
    scratch: str,
    cpus_per_node: Sequence[int],
    environment: Mapping[str, str],
    started: list[subprocess.Popen[bytes]],
    dashboard_port: int,
) -> str | None:
    """Start the nodes; return the address of the cluster, None without nodes."""
    head_port, client_port = free_ports(2)
    settings = {
        **os.environ,
        **environment,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # job entry points run from it
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's monitor looks at the whole machine: it would kill our workers for the memory of other processes.
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a dead worker is seen 2 s earlier than by default
        **STOP_WAIT,  # for jobs that `ray job submit` starts
    }
    settings.pop("RAY_ADDRESS", None)  # of another cluster
    if len(cpus_per_node) == 1:
        settings |= _LOOPBACK_ONLY
    first = 1 if len(cpus_per_node) == 1 else _FIRST_OF_SEVERAL_NODES
    for number, cpus in enumerate(cpus_per_node):
        command = [
            _beside_python("ray"), "start", "--block", f"--num-cpus={cpus}", "--disable-usage-stats",
            f"--node-ip-address=127.0.0.{first + number}", f"--object-store-memory={_OBJECT_STORE_BYTES}",
        ]  # fmt: skip
        if number == 0:
            command += ["--head", f"--temp-dir={scratch}", f"--port={head_port}", "--dashboard-host=127.0.0.1",
                        f"--dashboard-port={dashboard_port}", f"--ray-client-server-port={client_port}"]  # fmt: skip
        else:
            command.append(f"--address=127.0.0.{first}:{head_port}")
        started.append(_start_node(command, folder / f"ray-{number}.log", settings))
    return f"127.0.0.{first}:{head_port}" if cpus_per_node else None


@retry(retry=retry_if_exception_type(ServiceError), stop=stop_after_attempt(_NODE_STARTS), reraise=True)
def _start_node(command: list[str], log: Path, settings: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start one node and wait until it has registered; one that does not is stopped, descendants too, and retried."""
    agent_port, agent_grpc_port, metrics_port = free_ports(3)
    ports = [f"--dashboard-agent-listen-port={agent_port}", f"--dashboard-agent-grpc-port={agent_grpc_port}",
             f"--metrics-export-port={metrics_port}"]  # fmt: skip
    mark = secrets.token_hex(8)  # in the environment of all its processes, which may outlive the first
    process = _launch(command + ports, log, {**settings, "BIT_NODE_START": mark})
    try:
        _wait_for_line(process, log, "Ray runtime started")
    except BaseException:
        with unstoppable():
            stop_all(identities([process]), _carries("BIT_NODE_START", mark))
        raise
    return process


def _wait_for_line(process: subprocess.Popen[bytes], log: Path, text: str) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while text not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
            raise ServiceError(f"Ray did not start ({last}); see {log}")
        time.sleep(0.1)


def _launch(command: list[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C reaches only the caller, which stops its services in order.
    with log.open("wb") as sink:
        return subprocess.Popen(
            command,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )


def _beside_python(name: str) -> str:
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise ServiceError(f"{path} is missing; install bit-pretrain into this environment with `pip install .`")
    return str(path)


def _carries(name: str, value: str) -> Callable[[psutil.Process], bool]:
    """Return a predicate: whether another process has inherited an environment variable with that value."""

    def carries(process: psutil.Process) -> bool:
        try:
            inherited = process.environ().get(name)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False
        return bool(process.pid != os.getpid() and inherited == value)

    return carries
