"""What S3 and botocore answer, as errors of ours with the remedy and the server's own words."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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

ADDRESSING_VARIABLE = "BIT_S3_ADDRESSING"
ANONYMOUS_VARIABLE = "BIT_S3_ANONYMOUS"
_SHOWN_MESSAGE_CHARACTERS = 300

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
def storage_errors(url: str) -> Iterator[None]:
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
        raise error_of_answer(url, error.response) from error
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


def error_of_answer(url: str, response: Any) -> BitError:
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


def is_transient(error: BaseException) -> bool:
    """Return whether it may pass and botocore does not retry it: a body cut off in the middle, or a race of writers."""
    from botocore.exceptions import (  # noqa: PLC0415 - see storage_errors
        ClientError,
        FlexibleChecksumError,
        IncompleteReadError,
        ReadTimeoutError,
        ResponseStreamingError,
    )
    from urllib3.exceptions import HTTPError  # noqa: PLC0415 - see storage_errors

    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", "")) in ("ConditionalRequestConflict", "409")
    return isinstance(
        error, FlexibleChecksumError | HTTPError | IncompleteReadError | ReadTimeoutError | ResponseStreamingError
    )
