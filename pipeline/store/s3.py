"""A store below an S3 prefix. Credentials, region and endpoint come from the standard AWS variables and files.

What these do not name comes from two variables of ours: ADDRESSING_VARIABLE and ANONYMOUS_VARIABLE.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.base.errors import (
    ConfigError,
    Conflict,
    CorruptShard,
    NotFound,
    StorageError,
)
from pipeline.store.base import Entry, Unfinished, check_key
from pipeline.store.retry import CLIENT_ATTEMPTS, retried, through_outages
from pipeline.store.s3_errors import (
    ADDRESSING_VARIABLE,
    ANONYMOUS_VARIABLE,
    is_transient,
    storage_errors,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")
# A single PUT is atomic and checksummed up to 5 GiB; parts keep memory and a retry small above this.
_PART_BYTES = 64 << 20
_READ_SECONDS = 30
_MOST_CONNECTIONS = 64  # that are kept open, of all threads of a process; a choice
# Environment variables by which a client is made; AWS's files are below HOME.
_SETTING = re.compile(
    rf"AWS_.*|.*_proxy|HOME|REQUESTS_CA_BUNDLE|{ADDRESSING_VARIABLE}|{ANONYMOUS_VARIABLE}", re.IGNORECASE
)
_clients: "dict[tuple[Any, ...], S3Client]" = {}
_client_lock = threading.Lock()

_HEAD_HIDES_THE_CAUSE = (400, 403, 405, 501)  # an answer to HEAD has no body, and so no code of S3
_ADDRESSING_STYLES = ("path", "virtual", "auto")  # host/bucket/key, bucket.host/key, or as botocore chooses


def _addressing_style(session: Any) -> Any:
    """Return how buckets are addressed: ADDRESSING_VARIABLE, else `s3.addressing_style` of AWS's file, else `path`.

    `path` needs no wildcard in a server's DNS and certificate; some services accept `virtual` only.
    """
    configured = session.get_scoped_config().get("s3")
    in_file = configured.get("addressing_style") if isinstance(configured, dict) else None
    style = os.environ.get(ADDRESSING_VARIABLE) or in_file or "path"
    if style not in _ADDRESSING_STYLES:
        raise ConfigError(f"{ADDRESSING_VARIABLE}={style} is none of {', '.join(_ADDRESSING_STYLES)}")
    return style


def _is_anonymous() -> bool:
    given = os.environ.get(ANONYMOUS_VARIABLE, "")
    if given not in ("", "0", "1"):
        raise ConfigError(f"{ANONYMOUS_VARIABLE}={given} is neither 1, for requests without credentials, nor 0")
    return given == "1"


def _shared_client() -> "S3Client":
    """Return the client of this process for the settings of its environment.

    To make one takes 0.15 s of a core, new connections, and on some machines a question for credentials.
    """
    named = sorted((name, value) for name, value in os.environ.items() if _SETTING.fullmatch(name))
    settings = (os.getpid(), *named)  # no connection is shared with a process that was forked
    with _client_lock:  # creating clients is not thread-safe in boto3; their use is
        if settings not in _clients:
            _clients[settings] = _new_client()
        return _clients[settings]


def _new_client() -> "S3Client":
    import boto3  # noqa: PLC0415 - see _storage_errors
    import botocore.session  # noqa: PLC0415
    from botocore import UNSIGNED  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    session = botocore.session.get_session()
    config = Config(
        retries={"mode": "standard", "total_max_attempts": CLIENT_ATTEMPTS},
        connect_timeout=10,
        read_timeout=_READ_SECONDS,
        max_pool_connections=_MOST_CONNECTIONS,
        signature_version=UNSIGNED if _is_anonymous() else None,
        s3={"addressing_style": _addressing_style(session)},
    )
    try:
        return boto3.session.Session(botocore_session=session).client("s3", config=config)
    except ValueError as error:
        raise ConfigError(f"{error}; AWS_ENDPOINT_URL is written http://HOST:PORT or https://HOST") from error


def _asked(url: str, request: Callable[[], T]) -> T:
    """Return what a request gives; its errors are ours, and what may pass is repeated."""

    def once() -> T:
        with storage_errors(url):
            return retried(is_transient, request)

    return through_outages(once)


class S3Store:
    """Objects below `s3://bucket/prefix`. The client is created on first use, so a store may be sent to a worker."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket = bucket
        self.prefix = prefix.strip("/")
        self.url = f"s3://{bucket}/{self.prefix}".rstrip("/")

    @cached_property
    def _client(self) -> "S3Client":
        return _shared_client()

    def __getstate__(self) -> dict[str, str]:
        return {"bucket": self.bucket, "prefix": self.prefix, "url": self.url}

    def _key(self, key: str) -> str:
        check_key(self.url, key.lstrip("/"))
        return f"{self.prefix}/{key}" if self.prefix else key

    def read(self, key: str) -> bytes:
        """See Store.read."""
        return self.read_tagged(key)[0]

    def read_range(self, key: str, offset: int, num_bytes: int) -> bytes:
        """See Store.read_range."""
        url = f"{self.url}/{key}"
        if num_bytes == 0:
            return b""
        byte_range = f"bytes={offset}-{offset + num_bytes - 1}"

        def fetch() -> tuple[int, int, bytes]:
            answer = self._client.get_object(Bucket=self.bucket, Key=self._key(key), Range=byte_range)
            length = answer["ContentLength"]
            # Some servers ignore Range and would fill the memory with the whole object.
            body = answer["Body"].read() if length == num_bytes else b""
            return answer["ResponseMetadata"]["HTTPStatusCode"], length, body

        status, length, data = _asked(url, fetch)
        if status != 206 or len(data) != num_bytes:
            raise CorruptShard(f"{url}: {byte_range} returned status {status} and {length} bytes")
        return data

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        """See Store.read_tagged."""

        def fetch() -> tuple[bytes, str]:
            answer = self._client.get_object(Bucket=self.bucket, Key=self._key(key))
            return answer["Body"].read(), answer["ETag"]

        return _asked(f"{self.url}/{key}", fetch)

    def num_bytes(self, key: str) -> int:
        """See Store.num_bytes."""

        def ask() -> int:
            try:
                return self._client.head_object(Bucket=self.bucket, Key=self._key(key))["ContentLength"]
            except self._client.exceptions.ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] not in _HEAD_HIDES_THE_CAUSE:
                    raise
                answer = self._client.get_object(Bucket=self.bucket, Key=self._key(key), Range="bytes=0-0")
                return int(answer["ContentRange"].rpartition("/")[2])

        return _asked(f"{self.url}/{key}", ask)

    def create(self, key: str, body: bytes) -> bool:
        """See Store.create."""
        with self.writer(key) as writer:
            writer.write(body)
            return writer.finish()

    @contextmanager
    def writer(self, key: str) -> Iterator["_S3Writer"]:
        """See Store.writer."""
        writer = _S3Writer(self._client, self.bucket, self._key(key), f"{self.url}/{key}")
        try:
            yield writer
        finally:
            writer.close()

    def replace(self, key: str, body: bytes, tag: str) -> None:
        """See Store.replace."""
        _asked(
            f"{self.url}/{key}",
            lambda: self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=body, IfMatch=tag),
        )

    def list(self, prefix: str) -> Iterator[Entry]:
        """See Store.list."""
        url, skipped = f"{self.url}/{prefix}".rstrip("/"), len(self.prefix) + 1 if self.prefix else 0
        where: dict[str, Any] = {"Bucket": self.bucket, "Prefix": self._key(prefix)}
        while True:
            page = _asked(url, partial(self._client.list_objects_v2, **where))
            for item in page.get("Contents", []):
                yield Entry(item["Key"][skipped:], item["Size"], item["LastModified"].timestamp())
            if not page.get("IsTruncated"):
                return
            where["ContinuationToken"] = page["NextContinuationToken"]

    def walk(self) -> Iterator[Entry]:
        """See Store.walk."""
        yield from self.list("")

    def delete(self, key: str) -> None:
        """See Store.delete."""
        _asked(f"{self.url}/{key}", lambda: self._client.delete_object(Bucket=self.bucket, Key=self._key(key)))

    def unfinished(self) -> Iterator[Unfinished]:
        """See Store.unfinished."""
        with storage_errors(self.url):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=self._key("")
            )
            for page in pages:
                for upload in page.get("Uploads", []):
                    key = upload["Key"][len(self._key("")) :]
                    yield Unfinished(key, upload["UploadId"], upload["Initiated"].timestamp())

    def discard(self, unfinished: Unfinished) -> None:
        """See Store.discard."""
        with suppress(NotFound), storage_errors(f"{self.url}/{unfinished.key}"):
            self._client.abort_multipart_upload(
                Bucket=self.bucket, Key=self._key(unfinished.key), UploadId=unfinished.handle
            )


class _S3Writer:
    """One conditional PUT for what fits a part; else a multipart upload with a conditional end."""

    def __init__(self, client: "S3Client", bucket: str, key: str, url: str) -> None:
        self._client = client
        self._where: dict[str, Any] = {"Bucket": bucket, "Key": key}
        self._url = url
        self._buffer = bytearray()
        self._upload: str | None = None
        self._etags: list[str] = []

    def write(self, chunk: bytes | memoryview) -> None:
        """See ObjectWriter.write."""
        rest = memoryview(chunk)
        while len(self._buffer) + len(rest) > _PART_BYTES:
            taken = _PART_BYTES - len(self._buffer)
            self._buffer += rest[:taken]
            rest = rest[taken:]
            self._send_part()
        self._buffer += rest

    def finish(self) -> bool:
        """See ObjectWriter.finish."""
        if self._upload is not None:
            self._send_part()
        try:
            _asked(self._url, self._complete if self._upload is not None else self._put)
        except Conflict:
            return False
        self._upload = None
        return True

    def close(self) -> None:
        """Abort an upload that was not finished."""
        if self._upload is not None:
            with suppress(StorageError), storage_errors(self._url):
                self._client.abort_multipart_upload(**self._where, UploadId=self._upload)

    def _put(self) -> None:
        self._client.put_object(**self._where, Body=self._buffer, IfNoneMatch="*")  # type: ignore[arg-type]

    def _send_part(self) -> None:
        if self._upload is None:
            self._upload = _asked(self._url, lambda: self._client.create_multipart_upload(**self._where)["UploadId"])
        upload, number = self._upload, len(self._etags) + 1
        part = _asked(
            self._url,
            lambda: self._client.upload_part(
                **self._where,
                UploadId=upload,
                PartNumber=number,
                Body=self._buffer,  # type: ignore[arg-type]
            ),
        )
        self._etags.append(part["ETag"])
        self._buffer = bytearray()

    def _complete(self) -> None:
        parts: Any = [{"ETag": etag, "PartNumber": number} for number, etag in enumerate(self._etags, start=1)]
        self._client.complete_multipart_upload(
            **self._where, UploadId=str(self._upload), MultipartUpload={"Parts": parts}, IfNoneMatch="*"
        )
