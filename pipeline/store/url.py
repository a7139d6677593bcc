"""From a URL to its store."""

from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import ConfigError
from pipeline.store.base import Store
from pipeline.store.local import LocalStore
from pipeline.store.s3 import S3Store


def open_store(url: str) -> Store:
    """Gives the store of `s3://bucket/prefix` or of a local folder. Touches nothing yet.

    Raises:
        ConfigError: The scheme is neither local nor s3, or the bucket is missing.
    """
    parts = urlsplit(url)
    if parts.scheme in ("", "file"):
        return LocalStore(Path(parts.path if parts.scheme else url))
    if parts.scheme == "s3":
        if not parts.netloc:
            raise ConfigError(f"{url!r} names no bucket; write s3://BUCKET/PREFIX")
        return S3Store(parts.netloc, parts.path)
    raise ConfigError(f"{url!r}: datasets and runs live in local folders or s3://, not {parts.scheme}://")
