"""Whoever has no key gets nothing from any port or socket of a stack: tried on the real one, port by port."""

import ipaddress
import stat
from collections.abc import Iterator
from pathlib import Path

import boto3
import grpc
import psutil
import pytest
import requests
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from cluster.stack.services import Stack
from tests.conftest import BUCKET
from tests.waiting import wait_until

PATHS = (
    "/",
    "/status",
    "/metrics",
    "/healthz",
    "/dir/assign",
    "/dir/status",
    "/vol/status",
    "/buckets/",
    "/ui/index.html",
)
# What is told to anybody on this machine: that S3 lives.
LIVES = {"/status": b"", "/healthz": b""}
# Calls of Ray that would list, run or end something.
RAY_CALLS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.JobInfoGcsService/GetAllJobInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.RayletDriver/Init",
    "/ray.rpc.ReporterService/ReportMetrics",
)
WEED_CALLS = ("/filer_pb.SeaweedFiler/ListEntries", "/master_pb.Seaweed/Statistics", "/master_pb.Seaweed/VolumeList",
              "/volume_server_pb.VolumeServer/VolumeServerStatus")  # fmt: skip
REFUSED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED,
           grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.DEADLINE_EXCEEDED)  # fmt: skip


def processes_of(stack: Stack) -> list[psutil.Process]:
    leaders = [psutil.Process(pid) for pid, _ in stack.processes]
    return [each for leader in leaders for each in (leader, *leader.children(recursive=True))]


def listeners(stack: Stack) -> Iterator[tuple[str, int, str]]:
    """Yield address, port and command line of all that listens."""
    for process in processes_of(stack):
        try:
            for each in process.net_connections(kind="tcp"):
                if each.status == psutil.CONN_LISTEN:
                    yield each.laddr.ip, each.laddr.port, " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue


def reachable(address: str) -> str:
    """Return where a client on this machine finds a listener."""
    return "127.0.0.1" if ipaddress.ip_address(address).is_unspecified or address.startswith("::") else address


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_no_port_of_the_s3_server_answers_a_stranger(s3: Stack) -> None:
    wait_until(lambda: len({port for _, port, _ in listeners(s3)}) == 10, "all ports of the S3 server")
    ports = {(reachable(address), port) for address, port, _ in listeners(s3)}
    s3_port = int(s3.environment["AWS_ENDPOINT_URL"].rpartition(":")[2])
    for host, port in sorted(ports):
        for scheme in ("http", "https"):
            for method in ("GET", "PUT", "POST", "DELETE"):
                for path in PATHS:
                    try:
                        answer = requests.request(method, f"{scheme}://{host}:{port}{path}", timeout=5, verify=False)  # noqa: S501
                    except requests.RequestException:
                        continue
                    if (port, method) == (s3_port, "GET") and path in LIVES:
                        assert answer.content == LIVES[path]
                        continue
                    assert answer.status_code >= 400, (
                        port,
                        method,
                        path,
                        answer.status_code,
                        answer.text[:200],
                    )
        _refused_by_grpc(f"{host}:{port}", WEED_CALLS)


def test_s3_itself_refuses_strangers(s3: Stack) -> None:
    client = boto3.client(
        "s3", endpoint_url=s3.environment["AWS_ENDPOINT_URL"], config=Config(signature_version=UNSIGNED)
    )
    for act in (
        client.list_buckets,
        lambda: client.list_objects_v2(Bucket=BUCKET),
        lambda: client.get_object(Bucket=BUCKET, Key="ready"),
        lambda: client.put_object(Bucket=BUCKET, Key="stranger", Body=b"x"),
        lambda: client.delete_object(Bucket=BUCKET, Key="ready"),
    ):
        with pytest.raises(ClientError, match="AccessDenied"):
            act()


def test_no_port_of_ray_obeys_a_stranger(cluster: Stack) -> None:
    dashboard = cluster.dashboard
    for path in ("/api/jobs/", "/nodes?view=summary", "/api/v0/tasks", "/api/v0/logs", "/logical/actors"):
        assert requests.get(f"{dashboard}{path}", timeout=5).status_code in (401, 403), path
    submitted = requests.post(f"{dashboard}/api/jobs/", json={"entrypoint": "id"}, timeout=5)
    assert submitted.status_code in (401, 403)
    _wait_for_metrics(cluster)
    ports = {(reachable(address), port) for address, port, line in listeners(cluster) if "weed" not in line}
    assert len(ports) > 8
    for host, port in sorted(ports):
        _refused_by_grpc(f"{host}:{port}", RAY_CALLS)


def test_metrics_are_served_on_the_loopback_interface_alone(cluster: Stack) -> None:
    _wait_for_metrics(cluster)
    serving = {address for address, port, _ in listeners(cluster) if _is_metrics(reachable(address), port)}
    assert serving == {"127.0.0.2", "127.0.0.3"}


def test_folders_and_sockets_are_nobody_elses(cluster: Stack) -> None:
    assert stat.S_IMODE(Path(cluster.scratch).stat().st_mode) == 0o700
    for secret in ("s3.json", "ray-token", "cluster.json", "s3-secrets/key.pem"):
        assert stat.S_IMODE(Path(cluster.folder, secret).stat().st_mode) == 0o600, secret
    assert stat.S_IMODE(Path(cluster.folder, "objects").stat().st_mode) == 0o700
    pids = {process.pid for process in processes_of(cluster)}
    sockets = {each.laddr for each in psutil.net_connections(kind="unix") if each.pid in pids and each.laddr}
    named = [Path(str(each)) for each in sockets if str(each).startswith("/")]
    assert named
    for path in named:
        inside = Path(cluster.scratch) in path.parents
        assert inside or not path.exists() or not path.stat().st_mode & 0o022, path


def _refused_by_grpc(address: str, calls: tuple[str, ...]) -> None:
    with grpc.insecure_channel(address) as channel:
        for call in calls:
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(call)(b"", timeout=2)
            assert refused.value.code() in REFUSED, (address, call, refused.value.code())
            if refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                break  # it speaks TLS, or something else


def _wait_for_metrics(stack: Stack) -> None:
    """Wait until the agents of both nodes listen, which start after their node."""

    def serve() -> bool:
        return sum(_is_metrics(reachable(address), port) for address, port, _ in listeners(stack)) >= 2

    wait_until(serve, "the metrics of two nodes")


def _is_metrics(host: str, port: int) -> bool:
    try:
        return "ray_" in requests.get(f"http://{host}:{port}/metrics", timeout=2).text
    except requests.RequestException:
        return False
