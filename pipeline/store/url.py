"""From a URL to its store."""

from pathlib import Path

from pipeline.base.errors import ConfigError
from pipeline.store.base import Store
from pipeline.store.local import LocalStore
from pipeline.store.s3 import S3Store


def absolute_url(url: str) -> str:
    """Return a URL that means the same in every process: local paths become absolute."""
    return url if "://" in url else str(Path(url).absolute())


def open_store(url: str) -> Store:
    """Return the store of `s3://bucket/prefix` or of a local folder. Touches nothing yet.

    Raises:
        ConfigError: The scheme is neither local nor s3, or the bucket is missing.
    """
    # Not urlsplit: class names and keys may hold ':', '#' and '?'.
    scheme, separator, rest = url.partition("://")
    if not separator or scheme == "file":
        return LocalStore(Path(rest if separator else url))
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        if not bucket:
            raise ConfigError(f"{url!r} names no bucket; write s3://BUCKET/PREFIX")
        return S3Store(bucket, prefix)
    raise ConfigError(f"{url!r}: datasets and runs live in local folders or s3://, not {scheme}://")
