"""Each answer of S3 becomes an error with its code, its message and what to set; and the two variables of ours work."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import boto3
import botocore.exceptions
import pytest

from cluster.stack.services import Stack
from pipeline.base.errors import (
    BitError,
    ConfigError,
    Conflict,
    CorruptShard,
    Denied,
    NoBucket,
    NotFound,
    StorageError,
    StorageFull,
    Unreachable,
)
from pipeline.store import s3_errors as module
from pipeline.store.retry import waiting_for_outages
from pipeline.store.s3 import S3Store
from pipeline.store.url import open_store
from tests.conftest import BUCKET
from tests.faults import FaultProxy

CHECKSUMS = "AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
# Code, HTTP status -> our error, and what the message tells to set or do.
ANSWERS: list[tuple[str, int, type[BitError], str]] = [
    ("NoSuchKey", 404, NotFound, "no such object"),
    ("404", 404, NotFound, "no such object or bucket"),
    ("NoSuchBucket", 404, NoBucket, "create it"),
    ("AccessDenied", 403, Denied, "BIT_S3_ANONYMOUS=1"),
    ("403", 403, Denied, "AWS_ACCESS_KEY_ID"),
    ("SomeNewDenial", 403, Denied, "the bucket's policy"),
    ("SignatureDoesNotMatch", 403, Denied, "AWS_SECRET_ACCESS_KEY"),
    ("InvalidAccessKeyId", 403, Denied, "AWS_ACCESS_KEY_ID"),
    ("ExpiredToken", 400, Denied, "AWS_SESSION_TOKEN"),
    ("InvalidToken", 400, Denied, "AWS_SESSION_TOKEN"),
    ("TokenRefreshRequired", 400, Denied, "AWS_SESSION_TOKEN"),
    ("400", 400, Denied, "expired"),
    ("RequestTimeTooSkewed", 403, Denied, "clock"),
    ("InvalidObjectState", 403, Denied, "archived"),
    ("AuthorizationHeaderMalformed", 400, Denied, "AWS_DEFAULT_REGION"),
    ("PermanentRedirect", 301, Denied, "AWS_DEFAULT_REGION"),
    ("301", 301, Denied, "AWS_DEFAULT_REGION"),
    ("SecondLevelDomainForbidden", 403, Denied, "BIT_S3_ADDRESSING=virtual"),
    ("PathStyleDomainForbidden", 403, Denied, "BIT_S3_ADDRESSING=virtual"),
    ("InvalidPathAccess", 403, Denied, "BIT_S3_ADDRESSING=virtual"),
    ("NotImplemented", 501, StorageError, CHECKSUMS),
    ("501", 501, StorageError, CHECKSUMS),
    ("MissingContentLength", 411, StorageError, CHECKSUMS),
    ("XAmzContentSHA256Mismatch", 400, StorageError, CHECKSUMS),
    ("MalformedTrailerError", 400, StorageError, CHECKSUMS),
    ("PreconditionFailed", 412, Conflict, "run again"),
    ("412", 412, Conflict, "run again"),
    ("NoSuchUpload", 404, Conflict, "run again"),
    ("InvalidPart", 400, Unreachable, "run again"),
    ("InvalidRange", 416, CorruptShard, "shorter"),
    ("416", 416, CorruptShard, "shorter"),
    ("InternalError", 500, Unreachable, "run again"),
    ("RequestTimeout", 400, Unreachable, "run again"),
    ("500", 500, Unreachable, "run again"),
    ("502", 502, Unreachable, "gateway"),
    ("503", 503, Unreachable, "overloaded"),
    ("504", 504, Unreachable, "gateway"),
    ("SlowDown", 503, Unreachable, "workers"),
    ("TooManyRequests", 429, Unreachable, "workers"),
    ("429", 429, Unreachable, "workers"),
    ("XMinioStorageFull", 507, StorageFull, "no space"),
    ("InsufficientStorage", 507, StorageFull, "no space"),
    ("QuotaExceeded", 403, StorageFull, "quota"),
    ("507", 507, StorageFull, "no space"),
    ("KeyTooLongError", 400, StorageError, "refuses the request"),
]


def reported(error: Exception) -> BitError:
    with pytest.raises(BitError) as caught, module.storage_errors("s3://bucket/key"):
        raise error
    return caught.value


@pytest.mark.parametrize(("code", "status", "kind", "remedy"), ANSWERS, ids=[answer[0] for answer in ANSWERS])
def test_an_answer_is_shown_with_its_code_message_and_remedy(
    code: str, status: int, kind: type[BitError], remedy: str
) -> None:
    response = {
        "Error": {"Code": code, "Message": "in the server's\n own words"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    error = reported(botocore.exceptions.ClientError(response, "GetObject"))
    assert type(error) is kind
    assert str(error).startswith("s3://bucket/key: ")
    assert remedy in str(error)
    assert code in str(error)
    assert str(status) in str(error)
    assert "in the server's own words" in str(error)


def test_the_table_above_holds_every_code() -> None:
    assert set(module._ERRORS) <= {code for code, *_ in ANSWERS}


@pytest.mark.parametrize(
    ("error", "kind", "remedy"),
    [
        (botocore.exceptions.NoCredentialsError(), Denied, "BIT_S3_ANONYMOUS=1"),
        (botocore.exceptions.PartialCredentialsError(provider="env", cred_var="x"), Denied, "AWS_SECRET_ACCESS_KEY"),
        (botocore.exceptions.UnauthorizedSSOTokenError(), Denied, "aws sso login"),
        (botocore.exceptions.CredentialRetrievalError(provider="x", error_msg="y"), Denied, "renew"),
        (botocore.exceptions.ProfileNotFound(profile="mine"), ConfigError, "AWS_PROFILE"),
        (botocore.exceptions.ParamValidationError(report="Invalid bucket name"), ConfigError, "Invalid bucket name"),
        (botocore.exceptions.SSLError(endpoint_url="https://x", error="self-signed"), Unreachable, "AWS_CA_BUNDLE"),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"), Unreachable, "AWS_ENDPOINT_URL"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_never_reached_the_server_is_told_apart(error: Exception, kind: type[BitError], remedy: str) -> None:
    found = reported(error)
    assert type(found) is kind
    assert remedy in str(found)


class _Answering(BaseHTTPRequestHandler):
    """Answers every request with one error of S3, without a body to HEAD."""

    status, code = 400, ""

    def answer(self) -> None:
        body = f"<Error><Code>{self.code}</Code><Message>from the server</Message></Error>".encode()
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = answer

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def answering(status: int, code: str) -> Iterator[str]:
    handler = type("Handler", (_Answering,), {"status": status, "code": code})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (
            400,
            "ExpiredToken",
            "AWS_SESSION_TOKEN anew where it is used (the server's answer: HTTP 400, ExpiredToken: from",
        ),
        (403, "RequestTimeTooSkewed", "clock"),
        (403, "SecondLevelDomainForbidden", "BIT_S3_ADDRESSING=virtual"),
        (501, "NotImplemented", CHECKSUMS),
    ],
)
def test_the_cause_is_shown_for_every_request_even_head(
    keys: None, monkeypatch: pytest.MonkeyPatch, status: int, code: str, message: str
) -> None:
    with answering(status, code) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        store = S3Store("bucket", "x")
        requests: list[Callable[[], object]] = [
            lambda: store.num_bytes("key"),  # a HEAD
            lambda: store.read("key"),
            lambda: store.create("key", b"body"),
            lambda: list(store.list("")),
        ]
        for request in requests:
            with pytest.raises(StorageError) as caught:
                request()
            assert message in str(caught.value)
            assert "from the server" in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "in_file", "url"),
    [
        (None, None, "http://storage.test/bucket/"),
        ("virtual", None, "http://bucket.storage.test/"),
        (None, "virtual", "http://bucket.storage.test/"),
        ("path", "virtual", "http://storage.test/bucket/"),
    ],
)
def test_buckets_are_addressed_as_set(
    keys: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str | None, in_file: str | None, url: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://storage.test")
    if variable:
        monkeypatch.setenv("BIT_S3_ADDRESSING", variable)
    if in_file:
        (tmp_path / "config").write_text(f"[default]\ns3 =\n    addressing_style = {in_file}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    client = S3Store("bucket", "x")._client
    assert client.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "k"}).startswith(url)


def test_stores_share_a_client_in_one_process_and_with_equal_settings(
    keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = S3Store("bucket", "x")._client
    assert S3Store("another", "y")._client is client
    for name, value in [("AWS_ACCESS_KEY_ID", "another"), ("https_proxy", "http://proxy.test"), ("HOME", "/nowhere")]:
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert S3Store("bucket", "x")._client is not client, name
    assert S3Store("bucket", "x")._client is client
    monkeypatch.setattr("os.getpid", lambda: -1)  # as in a process that was forked
    assert S3Store("bucket", "x")._client is not client


@pytest.mark.parametrize(("variable", "value"), [("BIT_S3_ADDRESSING", "host"), ("BIT_S3_ANONYMOUS", "maybe")])
def test_an_unknown_value_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"{variable}={value}"):
        S3Store("bucket", "x").read("key")


def test_a_public_bucket_is_read_without_keys(
    s3: Stack, s3_url: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    boto3.client("s3").create_bucket(Bucket="public")
    boto3.client("s3").put_object(Bucket="public", Key="set/a.txt", Body=b"for all")
    allowed = {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject", "s3:ListBucket"]}
    policy = {
        "Version": "2012-10-17",
        "Statement": [allowed | {"Resource": ["arn:aws:s3:::public", "arn:aws:s3:::public/*"]}],
    }
    boto3.client("s3").put_bucket_policy(Bucket="public", Policy=json.dumps(policy))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(Denied, match="BIT_S3_ANONYMOUS=1"):
        S3Store("public", "set").read("a.txt")
    monkeypatch.setenv("BIT_S3_ANONYMOUS", "1")
    store = S3Store("public", "set")
    assert store.read("a.txt") == b"for all"
    assert [entry.key for entry in store.list("")] == ["a.txt"]
    with pytest.raises(Denied, match="AccessDenied"):
        S3Store(BUCKET, "private").create("x", b"")


def test_the_module_alone_imports_no_boto3() -> None:
    code = "import sys, pipeline.store.s3; sys.exit('boto3' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_work_that_has_begun_waits_for_a_store_that_does_not_answer(
    s3: Stack, s3_url: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    back = 0.0  # when the store answers again
    proxy = FaultProxy(
        int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]),
        lambda method, path: "503" if time.monotonic() < back else None,
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setattr("pipeline.store.s3.CLIENT_ATTEMPTS", 1)
    monkeypatch.setattr("pipeline.store.s3._PART_BYTES", 5 << 20)
    store, large = open_store(s3_url("outage")), bytes(11 << 20)
    requests: list[Callable[[], object]] = [
        lambda: store.create("a", b"1"),
        lambda: store.replace("a", b"2", store.read_tagged("a")[1]),
        lambda: store.read("a"),
        lambda: store.read_range("a", 0, 1),
        lambda: store.num_bytes("a"),
        lambda: list(store.list("")),
        lambda: store.create("large", large),
        lambda: store.delete("a"),
    ]
    try:
        for request in requests:
            back = time.monotonic() + 0.5
            with waiting_for_outages(60.0):
                request()
        assert [(entry.key, entry.num_bytes) for entry in store.list("")] == [("large", len(large))]
        back = math.inf
        with pytest.raises(Unreachable, match="the service asks to slow down"):
            store.read("large")
        with waiting_for_outages(0.5), pytest.raises(Unreachable, match="the service asks to slow down"):
            store.read("large")
    finally:
        proxy.close()
