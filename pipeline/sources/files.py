"""Listing and reading source files at any URL: local and s3:// through our stores, all else through fsspec."""

import os
from collections.abc import Iterator

from pipeline.errors import ConfigError, NotFound, Unreachable
from pipeline.store.base import Entry
from pipeline.store.url import open_store

_OWN_SCHEMES = ("", "file", "s3")


def scheme_of(url: str) -> str:
    """Gives the URL's scheme; empty for a local path."""
    return url.partition("://")[0] if "://" in url else ""


def join(base: str, relative: str) -> str:
    """Gives the URL of `relative` seen from the folder `base`; an absolute path or URL stays as it is."""
    if scheme_of(relative) or relative.startswith("/"):
        return relative
    return f"{base.rstrip('/')}/{relative}"


def parent(url: str) -> str:
    """Gives the URL of the folder that holds the file."""
    return url.rpartition("/")[0] or "."


def list_files(url: str) -> Iterator[Entry]:
    """Gives every file below the folder, keys relative to it, in key order.

    Raises:
        NotFound: The folder does not exist.
    """
    if scheme_of(url) in _OWN_SCHEMES:
        if scheme_of(url) != "s3" and not os.path.isdir(url.removeprefix("file://")):
            raise NotFound(f"{url} is not a folder; check the path")
        yield from open_store(url).list("")
        return
    filesystem, path = _fsspec(url)
    found = filesystem.find(path, detail=True)
    for name in sorted(found):
        yield Entry(name.removeprefix(path).lstrip("/"), int(found[name]["size"] or -1))


def read_file(url: str) -> bytes:
    """Gives the file's bytes.

    Raises:
        NotFound: There is no such file.
        Unreachable: The filesystem failed in another way.
    """
    if scheme_of(url) in _OWN_SCHEMES:
        folder, _, name = url.rpartition("/")
        return open_store(folder or ("/" if url.startswith("/") else ".")).read(name)
    filesystem, path = _fsspec(url)
    try:
        body: bytes = filesystem.cat_file(path)
    except FileNotFoundError as error:
        raise NotFound(f"{url} does not exist; check the path") from error
    except Exception as error:
        raise Unreachable(f"{url}: {type(error).__name__}: {error}") from error
    return body


def _fsspec(url: str):  # type: ignore[no-untyped-def]
    import fsspec  # noqa: PLC0415 - 60 ms that local sources need not pay

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{url}: {error}") from error
