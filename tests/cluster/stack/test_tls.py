"""TLS on the loopback interface with a certificate of one's own: S3, and Ray between its nodes and jobs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from cluster.stack.certificates import Certificate, create_certificate
from cluster.stack.ports import free_ports
from cluster.stack.s3_server import create_bucket
from cluster.stack.services import start_stack, stop_stack
from tests.conftest import class_folders, run_cli


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return create_certificate(tmp_path)


def test_s3_is_read_and_written_over_tls_and_an_unknown_certificate_is_refused(
    tmp_path: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
             "filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc", "s3.port.https")  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    identity = {"name": "bit", "credentials": [{"accessKey": "bit", "secretKey": "secret"}], "actions": ["Admin"]}
    (tmp_path / "s3.json").write_text(json.dumps({"identities": [identity]}))
    command = [
        str(Path(sys.executable).parent / "weed"), "-logtostderr=true", "mini", f"-dir={tmp_path}", "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1", f"-s3.config={tmp_path}/s3.json", *(f"-{name}={port}" for name, port in ports.items()),
        f"-s3.cert.file={certificate.certificate}", f"-s3.key.file={certificate.key}", "-s3.port.iceberg=0",
        "-s3.port.lance=0", "-webdav=false", "-admin.ui=false", "-master.telemetry=false",
    ]  # fmt: skip
    variables = {"AWS_ENDPOINT_URL": f"https://127.0.0.1:{ports['s3.port.https']}", "AWS_ACCESS_KEY_ID": "bit",
                 "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}  # fmt: skip
    settings = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=settings) as server,
    ):
        try:
            monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate.certificate))
            create_bucket(variables, "bit")
            source = class_folders(tmp_path / "in", each=2)
            known = variables | {"AWS_CA_BUNDLE": str(certificate.certificate)}
            packed = run_cli("pipeline", "shard", str(source), "s3://bit/set", **known)
            assert packed.returncode == 0, packed.stderr
            monkeypatch.delenv("AWS_CA_BUNDLE")
            refused = run_cli("pipeline", "inspect", "s3://bit/set", **variables)
            assert refused.returncode == 1
            assert "CERTIFICATE_VERIFY_FAILED" in refused.stderr
        finally:
            server.kill()


def test_ray_speaks_tls_with_the_certificate_it_is_given(
    tmp_path: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = {"RAY_USE_TLS": "1", "RAY_TLS_CA_CERT": str(certificate.certificate),
           "RAY_TLS_SERVER_CERT": str(certificate.certificate), "RAY_TLS_SERVER_KEY": str(certificate.key)}  # fmt: skip
    for name, value in tls.items():
        monkeypatch.setenv(name, value)
    stack = start_stack(tmp_path / "stack", cpus_per_node=[1], bucket="bit")
    try:
        done = run_cli("cluster", "submit", "--", "sh", "-c", "echo $RAY_USE_TLS", **stack.environment)
        assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
        address = stack.environment["RAY_ADDRESS"]
        call = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"
        with grpc.insecure_channel(address) as plain, pytest.raises(grpc.RpcError) as refused:
            plain.unary_unary(call)(b"", timeout=5)
        assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        shown = certificate.certificate.read_bytes()
        credentials = grpc.ssl_channel_credentials(shown, certificate.key.read_bytes(), shown)
        with grpc.secure_channel(address, credentials) as known, pytest.raises(grpc.RpcError) as refused:
            known.unary_unary(call)(b"", timeout=10)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED  # the token is wanted as well
    finally:
        stop_stack(stack)
