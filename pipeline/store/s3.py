"""A store below an S3 prefix. Credentials, region and endpoint come from the standard AWS variables and files.

What these do not name comes from two variables of ours: ADDRESSING_VARIABLE and ANONYMOUS_VARIABLE.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

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
from pipeline.store.base import Entry, Unfinished
from pipeline.store.retry import CLIENT_ATTEMPTS, retried

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# A single PUT is atomic and checksummed up to 5 GiB; parts keep memory and a retry small above this.
_PART_BYTES = 64 << 20
_READ_SECONDS = 30
_client_lock = threading.Lock()

ADDRESSING_VARIABLE = "BIT_S3_ADDRESSING"
_ADDRESSING_STYLES = ("path", "virtual", "auto")  # host/bucket/key, bucket.host/key, or as botocore chooses
ANONYMOUS_VARIABLE = "BIT_S3_ANONYMOUS"
_SHOWN_MESSAGE_CHARACTERS = 300
_HEAD_HIDES_THE_CAUSE = (400, 403, 405, 501)  # an answer to HEAD has no body, and so no code of S3

_EXPIRED = (
    "the session token is no longer valid; renew the credentials, and set AWS_SESSION_TOKEN anew where it is used"
)
_REGION = "the bucket is in another region; set AWS_DEFAULT_REGION to the one in this answer, or to that of the bucket"
_ADDRESSING = f"the server wants the bucket in the host's name; set {ADDRESSING_VARIABLE}=virtual"
_TRY_CHECKSUMS = "set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"  # servers that are older than its headers
_CHECKSUMS = (
    f"the server does not know a header of this request; {_TRY_CHECKSUMS}. If that does not help, it cannot create "
    "objects conditionally (If-None-Match), which commits need: use another server"
)
_BUSY = "the service asks to slow down; lower the number of workers or run again"
_FAILED = "the service failed; run again"

# S3 error code or HTTP status -> our error and the remedy.
_ERRORS: dict[str, tuple[type[BitError], str]] = {
    "NoSuchKey": (NotFound, "there is no such object"),
    "404": (NotFound, "there is no such object or bucket"),
    "NoSuchBucket": (NoBucket, "there is no such bucket; create it or correct the name"),
    "AccessDenied": (
        Denied,
        f"access is denied; check the credentials' rights on the bucket; to a public one, {ANONYMOUS_VARIABLE}=1 helps",
    ),
    "403": (
        Denied,
        "access is denied; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy",
    ),
    "SignatureDoesNotMatch": (
        Denied,
        f"the secret is wrong; check AWS_SECRET_ACCESS_KEY. If it is right, {_TRY_CHECKSUMS}",
    ),
    "InvalidAccessKeyId": (Denied, "the access key is unknown; check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL"),
    "ExpiredToken": (Denied, _EXPIRED),
    "InvalidToken": (Denied, _EXPIRED),
    "TokenRefreshRequired": (Denied, _EXPIRED),
    "400": (Denied, "the server refuses the request; credentials that have expired are a common cause: renew them"),
    "RequestTimeTooSkewed": (
        Denied,
        "this machine's clock differs from the server's; set it, as with `chronyc makestep`",
    ),
    "InvalidObjectState": (Denied, "the object is archived; restore it to a class of storage that can be read"),
    "AuthorizationHeaderMalformed": (Denied, _REGION),
    "PermanentRedirect": (Denied, _REGION),
    "301": (Denied, _REGION),
    "SecondLevelDomainForbidden": (Denied, _ADDRESSING),  # Alibaba
    "PathStyleDomainForbidden": (Denied, _ADDRESSING),  # Tencent
    "InvalidPathAccess": (Denied, _ADDRESSING),  # Volcano Engine
    "NotImplemented": (StorageError, _CHECKSUMS),
    "501": (StorageError, _CHECKSUMS),
    "MissingContentLength": (StorageError, _CHECKSUMS),
    "XAmzContentSHA256Mismatch": (StorageError, _CHECKSUMS),
    "MalformedTrailerError": (StorageError, _CHECKSUMS),
    "PreconditionFailed": (Conflict, "the object was changed by another writer meanwhile; run again"),
    "412": (Conflict, "the object was changed by another writer meanwhile; run again"),
    # An upload that ended although its answer was lost, or that `gc` removed: whether the object exists shows which.
    "NoSuchUpload": (Conflict, "the upload was ended by another writer meanwhile; run again"),
    "InvalidPart": (Unreachable, "a part did not arrive as it was sent; run again"),
    "InvalidRange": (CorruptShard, "the object is shorter than expected"),
    "416": (CorruptShard, "the object is shorter than expected"),
    "InternalError": (Unreachable, _FAILED),
    "RequestTimeout": (Unreachable, "the service waited too long for the data; run again"),
    "500": (Unreachable, _FAILED),
    "502": (Unreachable, "the service does not answer its own gateway; run again"),
    "503": (Unreachable, "the service is overloaded or starting; run again"),
    "504": (Unreachable, "the service did not answer its own gateway in time; run again"),
    "SlowDown": (Unreachable, _BUSY),
    "TooManyRequests": (Unreachable, _BUSY),
    "429": (Unreachable, _BUSY),
    "XMinioStorageFull": (StorageFull, "the service has no space left"),
    "InsufficientStorage": (StorageFull, "the service has no space left"),
    "QuotaExceeded": (StorageFull, "the quota of the bucket is used up"),
    "507": (StorageFull, "the service has no space left"),
}


@contextmanager
def _storage_errors(url: str) -> Iterator[None]:
    """Turn botocore's errors into ours, with the URL, the remedy, and what the server said."""
    from botocore import exceptions  # noqa: PLC0415 - boto3 costs 0.3 s; the command line must answer at once
    from urllib3.exceptions import HTTPError  # noqa: PLC0415 - botocore lets some of its errors through

    try:
        yield
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
        raise Denied(
            f"{url}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or {ANONYMOUS_VARIABLE}=1 for a "
            "public bucket"
        ) from error
    except exceptions.ClientError as error:
        raise _of_answer(url, error.response) from error
    except (
        exceptions.CredentialRetrievalError,
        exceptions.SSOTokenLoadError,
        exceptions.TokenRetrievalError,
        exceptions.UnauthorizedSSOTokenError,
    ) as error:
        raise Denied(f"{url}: no credentials could be had ({error}); renew them, as with `aws sso login`") from error
    except (exceptions.ConfigParseError, exceptions.ParamValidationError, exceptions.ProfileNotFound) as error:
        raise ConfigError(f"{url}: {error}; correct the URL, AWS_PROFILE or AWS's configuration file") from error
    except exceptions.SSLError as error:
        raise Unreachable(
            f"{url}: no encrypted connection ({error}); set AWS_CA_BUNDLE to the authority of a server of your own"
        ) from error
    except (exceptions.BotoCoreError, HTTPError) as error:
        raise Unreachable(f"{url}: no answer from S3 ({error}); check AWS_ENDPOINT_URL and the network") from error


def _of_answer(url: str, response: Any) -> BitError:
    """Return the error for an answer of S3, with its code and message."""
    code, message = (str(response.get("Error", {}).get(name, "")) for name in ("Code", "Message"))
    status = str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    by_status = (
        None if status == "400" else _ERRORS.get(status)
    )  # 400 stands for a hundred faults, which codes tell apart
    kind, remedy = _ERRORS.get(code) or by_status or (StorageError, "the server refuses the request")
    said = f"{code}: {message}" if message and not code.isdigit() else f"{code} {message}".strip()
    number = "" if code == status or not status else f"HTTP {status}, "
    shown = " ".join(said.split())[:_SHOWN_MESSAGE_CHARACTERS]
    return kind(f"{url}: {remedy} (the server's answer: {number}{shown or 'no reason'})")


def _is_transient(error: BaseException) -> bool:
    """Return whether it may pass and botocore does not retry it: a body cut off in the middle, or a race of writers."""
    from botocore.exceptions import (  # noqa: PLC0415 - see _storage_errors
        ClientError,
        FlexibleChecksumError,
        IncompleteReadError,
        ReadTimeoutError,
        ResponseStreamingError,
    )
    from urllib3.exceptions import HTTPError  # noqa: PLC0415 - see _storage_errors

    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", "")) in ("ConditionalRequestConflict", "409")
    return isinstance(
        error, FlexibleChecksumError | HTTPError | IncompleteReadError | ReadTimeoutError | ResponseStreamingError
    )


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


class S3Store:
    """Objects below `s3://bucket/prefix`. The client is created on first use, so a store may be sent to a worker."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket = bucket
        self.prefix = prefix.strip("/")
        self.url = f"s3://{bucket}/{self.prefix}".rstrip("/")

    @cached_property
    def _client(self) -> "S3Client":
        import boto3  # noqa: PLC0415 - see _storage_errors
        import botocore.session  # noqa: PLC0415
        from botocore import UNSIGNED  # noqa: PLC0415
        from botocore.config import Config  # noqa: PLC0415

        session = botocore.session.get_session()
        config = Config(
            retries={"mode": "standard", "total_max_attempts": CLIENT_ATTEMPTS},
            connect_timeout=10,
            read_timeout=_READ_SECONDS,
            max_pool_connections=32,
            signature_version=UNSIGNED if _is_anonymous() else None,
            s3={"addressing_style": _addressing_style(session)},
        )
        with _client_lock:  # creating clients is not thread-safe in boto3
            try:
                return boto3.session.Session(botocore_session=session).client("s3", config=config)
            except ValueError as error:
                raise ConfigError(f"{error}; AWS_ENDPOINT_URL is written http://HOST:PORT or https://HOST") from error

    def __getstate__(self) -> dict[str, str]:
        return {"bucket": self.bucket, "prefix": self.prefix, "url": self.url}

    def _key(self, key: str) -> str:
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

        with _storage_errors(url):
            status, length, data = retried(_is_transient, fetch)
        if status != 206 or len(data) != num_bytes:
            raise CorruptShard(f"{url}: {byte_range} returned status {status} and {length} bytes")
        return data

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        """See Store.read_tagged."""

        def fetch() -> tuple[bytes, str]:
            answer = self._client.get_object(Bucket=self.bucket, Key=self._key(key))
            return answer["Body"].read(), answer["ETag"]

        with _storage_errors(f"{self.url}/{key}"):
            return retried(_is_transient, fetch)

    def num_bytes(self, key: str) -> int:
        """See Store.num_bytes."""
        with _storage_errors(f"{self.url}/{key}"):
            try:
                return self._client.head_object(Bucket=self.bucket, Key=self._key(key))["ContentLength"]
            except self._client.exceptions.ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] not in _HEAD_HIDES_THE_CAUSE:
                    raise
                answer = self._client.get_object(Bucket=self.bucket, Key=self._key(key), Range="bytes=0-0")
                return int(answer["ContentRange"].rpartition("/")[2])

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
        with _storage_errors(f"{self.url}/{key}"):
            retried(
                _is_transient,
                lambda: self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=body, IfMatch=tag),
            )

    def list(self, prefix: str) -> Iterator[Entry]:
        """See Store.list."""
        with _storage_errors(f"{self.url}/{prefix}".rstrip("/")):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._key(prefix))
            skipped = len(self.prefix) + 1 if self.prefix else 0
            for page in pages:
                for item in page.get("Contents", []):
                    yield Entry(item["Key"][skipped:], item["Size"], item["LastModified"].timestamp())

    def walk(self) -> Iterator[Entry]:
        """See Store.walk."""
        yield from self.list("")

    def delete(self, key: str) -> None:
        """See Store.delete."""
        with _storage_errors(f"{self.url}/{key}"):
            self._client.delete_object(Bucket=self.bucket, Key=self._key(key))

    def unfinished(self) -> Iterator[Unfinished]:
        """See Store.unfinished."""
        with _storage_errors(self.url):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=self._key("")
            )
            for page in pages:
                for upload in page.get("Uploads", []):
                    key = upload["Key"][len(self._key("")) :]
                    yield Unfinished(key, upload["UploadId"], upload["Initiated"].timestamp())

    def discard(self, unfinished: Unfinished) -> None:
        """See Store.discard."""
        with suppress(NotFound), _storage_errors(f"{self.url}/{unfinished.key}"):
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
            with _storage_errors(self._url):
                retried(_is_transient, self._complete if self._upload is not None else self._put)
        except Conflict:
            return False
        self._upload = None
        return True

    def close(self) -> None:
        """Abort an upload that was not finished."""
        if self._upload is not None:
            with suppress(StorageError), _storage_errors(self._url):
                self._client.abort_multipart_upload(**self._where, UploadId=self._upload)

    def _put(self) -> None:
        self._client.put_object(**self._where, Body=self._buffer, IfNoneMatch="*")  # type: ignore[arg-type]

    def _send_part(self) -> None:
        with _storage_errors(self._url):
            if self._upload is None:
                self._upload = self._client.create_multipart_upload(**self._where)["UploadId"]
            part = self._client.upload_part(
                **self._where,
                UploadId=self._upload,
                PartNumber=len(self._etags) + 1,
                Body=self._buffer,  # type: ignore[arg-type]
            )
        self._etags.append(part["ETag"])
        self._buffer = bytearray()

    def _complete(self) -> None:
        parts: Any = [{"ETag": etag, "PartNumber": number} for number, etag in enumerate(self._etags, start=1)]
        self._client.complete_multipart_upload(
            **self._where, UploadId=str(self._upload), MultipartUpload={"Parts": parts}, IfNoneMatch="*"
        )
