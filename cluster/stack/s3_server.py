"""An S3 server (SeaweedFS) for the user of this machine who started it, and nobody else.

Of its parts S3 alone is for clients, and asks for keys. Master, volume server, filer and admin talk to each other by
TLS, and all their ports want the certificate of this start, whose key nobody else can read.
"""

import json
import os
import secrets
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from cluster.stack.certificates import create_certificate, write_private
from cluster.stack.ports import free_ports
from cluster.stack.processes import beside_python, launch
from pipeline.base.errors import ConfigError, ServiceError

_READY_SECONDS = 60.0
_NAMES = ("s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
          "filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc")  # fmt: skip
# Parts with a port of each kind; the client is what they are to each other.
_ON_GRPC = ("master", "volume", "filer", "s3", "admin", "worker", "mq", "client")
_ON_HTTP = ("master", "volume", "filer", "admin")


def start_s3(
    folder: Path, private: Path, s3_port: int, variables: Mapping[str, str]
) -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    """Start the server.

    Args:
        folder: For objects, log and keys.
        private: Where nobody else can look, with a short path: for its sockets.
        s3_port: Of S3; 0 for any free one.
        variables: Of its environment.

    Returns:
        The process, and what a client sets to reach it.
    """
    objects, secret = folder / "objects", folder / "s3-secrets"
    for each in (objects, secret):
        each.mkdir(exist_ok=True)
        each.chmod(0o700)
    access_key, secret_key = "bit", secrets.token_hex(16)
    identity = {
        "name": "bit",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    access = folder / "s3.json"
    write_private(access, json.dumps({"identities": [identity]}).encode())
    write_private(secret / "security.toml", _security(secret).encode())
    ports = dict(zip(_NAMES, free_ports(len(_NAMES)), strict=True))
    ports["s3.port"] = s3_port or ports["s3.port"]
    command = [
        beside_python("weed"), "-logtostderr=true", f"-config_dir={secret}", "mini", f"-dir={objects}", "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1", f"-s3.config={access}", *(f"-{name}={port}" for name, port in ports.items()),
        f"-filer.localSocket={private}/filer.sock", f"-s3.localSocket={private}/s3.sock", "-disableHttp",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false", "-master.telemetry=false",
    ]  # fmt: skip
    # Without a limit the server grows past 1 GB in a session of 64 MB objects. The caller's own AWS variables must
    # not reach it: it would take them as the credentials it accepts.
    settings = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    settings |= {"GOMEMLIMIT": "400MiB", **variables}
    # Some of its sockets are in the system's temporary folder, whatever it is told.
    process = launch(command, folder / "s3.log", settings, umask=0o077)
    return process, {
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3.port']}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def _security(folder: Path) -> str:
    """Return the server's security.toml, with a certificate of this start that every part shows and asks for."""
    made = create_certificate(folder)
    shown = f'cert = "{made.certificate}"\nkey = "{made.key}"'
    asked = f'ca = "{made.certificate}"'
    tables = [f"[grpc]\n{asked}", *(f"[grpc.{part}]\n{shown}" for part in _ON_GRPC)]
    tables += [f"[https.{part}]\n{shown}\n{asked}" for part in _ON_HTTP]
    tables += [f"[https.client]\nenabled = true\n{shown}\n{asked}"]
    return "\n".join([*tables, ""])


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
