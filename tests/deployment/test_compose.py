"""The image and the stack of docker/ keep what they promise; no engine is needed to see that."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
import yaml
from botocore.exceptions import ClientError

from cluster.stack.ports import free_ports
from tests.waiting import wait_until

DOCKER = Path(__file__).parents[2] / "docker"
TOOLS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """The secrets that `make-secrets.sh` makes, in a folder of the test's own."""
    (tmp_path / "make-secrets.sh").write_bytes((DOCKER / "make-secrets.sh").read_bytes())
    subprocess.run(["bash", tmp_path / "make-secrets.sh"], check=True)
    return tmp_path / "secrets"


@pytest.mark.parametrize(
    "command", [["hadolint", "--no-color", "Dockerfile"], ["compose-lint", "--fail-on", "low", "compose.yaml"]]
)
def test_linters_find_nothing(command: list[str]) -> None:
    done = subprocess.run([TOOLS / command[0], *command[1:]], cwd=DOCKER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_does_not_run_as_root_and_refuses_cuda_libraries_for_cpus() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    last_stage = text.rpartition("\nFROM ")[2]
    user = re.findall(r"^USER (\d+):(\d+)$", last_stage, re.MULTILINE)
    assert user
    assert "0" not in user[-1]
    assert "would hold CUDA libraries" in text


def test_every_service_has_a_check_limits_and_no_more_rights_than_it_needs(compose: dict[str, Any]) -> None:
    assert sorted(compose["services"]) == ["grafana", "head", "prometheus", "storage", "worker"]
    for name, service in compose["services"].items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert {"cpus", "memory"} <= service["deploy"]["resources"]["limits"].keys(), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}, (name, needed)


def test_secrets_come_from_files_that_the_script_makes_for_nobody_else(compose: dict[str, Any], secrets: Path) -> None:
    assert {f"./secrets/{path.name}" for path in secrets.iterdir()} == {
        secret["file"] for secret in compose["secrets"].values()
    }
    assert secrets.stat().st_mode & 0o077 == 0
    text = (DOCKER / "compose.yaml").read_text()
    for path in secrets.iterdir():
        assert path.read_text().strip() not in text
    again = subprocess.run(["bash", secrets.parent / "make-secrets.sh"], capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "remove it to make new secrets" in again.stderr


def test_files_that_are_mounted_exist(compose: dict[str, Any]) -> None:
    mounted = [volume for service in compose["services"].values() for volume in service.get("volumes", [])]
    files = [volume.partition(":")[0] for volume in mounted if volume.startswith("./")]
    assert len(files) >= 5
    assert [name for name in files if not (DOCKER / name).is_file()] == []


def test_prometheus_scrapes_the_port_at_which_nodes_serve(compose: dict[str, Any]) -> None:
    [job] = yaml.safe_load((DOCKER / "monitoring" / "prometheus.yaml").read_text())["scrape_configs"]
    [found] = job["dns_sd_configs"]
    for name in found["names"]:
        assert f"--metrics-export-port={found['port']}" in compose["services"][name]["command"], name


def test_of_the_storage_others_reach_s3_alone_and_only_with_keys(
    compose: dict[str, Any], secrets: Path, tmp_path: Path
) -> None:
    """The server is started as in the container, with ports of its own; 127.0.0.2 stands for other containers."""
    names = ("s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
             "filer.port", "filer.port.grpc")  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = compose["services"]["storage"]["command"].replace("-dir=/data", f"-dir={tmp_path}")
    command = command.replace("/run/secrets", str(secrets)).replace("-s3.port=8333", "")
    options = [*shlex.split(command), *(f"-{name}={port}" for name, port in ports.items())]
    settings = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    [key] = json.loads((secrets / "s3.json").read_text())["identities"][0]["credentials"]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(
        [TOOLS / "weed", "-logtostderr=true", *options], stdout=log, stderr=log, env=settings
    ) as server:  # fmt: skip
        try:
            endpoint = f"http://127.0.0.2:{ports['s3.port']}"
            wait_until(lambda: _status(f"{endpoint}/healthz") == 200, "the S3 server")
            client = _client(endpoint, key["secretKey"])
            wait_until(lambda: _creates(client), "a bucket")
            with pytest.raises(ClientError, match=r"SignatureDoesNotMatch|AccessDenied"):
                _client(endpoint, "wrong").list_buckets()
            for name in ("filer.port", "master.port", "volume.port"):
                assert _status(f"http://127.0.0.2:{ports[name]}/") is None, name
        finally:
            server.kill()


def _status(url: str) -> int | None:
    """Return the status that a server answers with; None if there is none."""
    try:
        return requests.get(url, timeout=5.0).status_code
    except requests.ConnectionError:
        return None


def _client(endpoint: str, secret: str) -> Any:
    return boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="bit", aws_secret_access_key=secret
    )


def _creates(client: Any) -> bool:
    try:
        client.create_bucket(Bucket="bit")
    except ClientError:
        return False
    return True
