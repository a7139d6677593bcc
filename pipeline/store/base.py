"""What the product asks of storage, and the rule by which an object is committed."""

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import blake3

from pipeline.base.errors import Conflict, CorruptShard, NotFound
from pipeline.store.retry import READS_BEFORE_DAMAGE

_COMPARE_BYTES = 8 << 20


class Entry(NamedTuple):
    """One object of a listing. A tuple, since a million of them take a third of the time of data classes.

    Attributes:
        key: Below the store's root.
        num_bytes: Its size; -1 for a link to nothing.
        modified: When it was written, in seconds since 1970.
    """

    key: str
    num_bytes: int
    modified: float = 0.0


@dataclass(frozen=True)
class Unfinished:
    """What a writer left behind that died: a temporary file or an incomplete multipart upload.

    Attributes:
        key: Of the object it was to become (S3), or of the file itself.
        handle: What `Store.discard` needs.
        modified: When it was begun or written last, in seconds since 1970.
    """

    key: str
    handle: str
    modified: float


class ObjectWriter(Protocol):
    """A new object being written, invisible before `finish`; a `with` block that ends without it leaves nothing."""

    def write(self, chunk: bytes | memoryview) -> None:
        """Add bytes at the end; does not hold on to their memory."""

    def finish(self) -> bool:
        """Create the object, atomically and durably; False, and no change, if the key exists."""


class Store(Protocol):
    """A flat space of objects below one root URL. Keys are relative POSIX paths. Safe for threads."""

    url: str

    def read(self, key: str) -> bytes:
        """Return the whole object. Raises NotFound."""

    def read_range(self, key: str, offset: int, num_bytes: int) -> bytes:
        """Return exactly `num_bytes` bytes from `offset`. Raises NotFound, CorruptShard if the object is shorter."""

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        """Return the object and the tag that `replace` wants back. Raises NotFound."""

    def num_bytes(self, key: str) -> int:
        """Return the object's size. Raises NotFound."""

    def create(self, key: str, body: bytes) -> bool:
        """Write a new object, atomically and durably; False, and no change, if the key exists."""

    def writer(self, key: str) -> AbstractContextManager[ObjectWriter]:
        """Do as `create` for a body that comes in pieces; hold at most 64 MiB of it in memory."""

    def replace(self, key: str, body: bytes, tag: str) -> None:
        """Replace the object that `read_tagged` returned with `tag`. Raises Conflict if it changed since."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """Return all objects whose key starts with `prefix`, in key order."""

    def walk(self) -> Iterator[Entry]:
        """Return all objects in any order, without holding the list in memory."""

    def delete(self, key: str) -> None:
        """Remove the object; no error if there is none."""

    def unfinished(self) -> Iterator[Unfinished]:
        """Return what dead writers left behind, and what live ones are writing."""

    def discard(self, unfinished: Unfinished) -> None:
        """Remove one of them; no error if it is gone."""


def is_absolute(path: str) -> bool:
    """Return whether a path is a URL, or begins at the root."""
    return "://" in path or path.startswith("/")


def check_key(url: str, key: str) -> None:
    """Refuse a key that leads out of its store: keys stand in files, and others may have written those.

    Args:
        url: Of the store, for messages.
        key: To be read, written or removed.

    Raises:
        CorruptShard: It is absolute, or climbs with `..`.
    """
    if is_absolute(key) or "\0" in key or ".." in key.split("/"):
        raise CorruptShard(
            f"{url}: {key!r} leads out of it, as nothing does that this product wrote; restore the file that names it"
        )


def exists(store: Store, key: str) -> bool:
    """Return whether the object exists."""
    try:
        store.num_bytes(key)
    except NotFound:
        return False
    return True


def read_checked(store: Store, key: str, sha256: str) -> bytes:
    """Return an object whose digest is known, read up to READS_BEFORE_DAMAGE times.

    Raises:
        NotFound: There is no such object.
        CorruptShard: Its digest differs each time.
    """
    for _ in range(READS_BEFORE_DAMAGE):
        body = store.read(key)
        if hashlib.sha256(body).hexdigest() == sha256:
            return body
    raise CorruptShard(f"{store.url}/{key}: checksum differs from the manifest; restore or rebuild it")


def commit(store: Store, key: str, body: bytes) -> bool:
    """Create the object, or accept an existing one with the same bytes.

    The rule behind exactly-once: whoever loses the race to create a deterministic object finds the same bytes
    and has succeeded too.

    Returns:
        Whether this call created it.

    Raises:
        Conflict: The object exists with other bytes.
    """
    if store.create(key, body):
        return True
    found = store.read(key)
    if found != body:
        raise _conflict(store, key, hashlib.sha256(found).hexdigest(), hashlib.sha256(body).hexdigest())
    return False


def put(store: Store, key: str, body: bytes) -> None:
    """Make `body` the content of an object that is derived from others and may be derived anew.

    Raises:
        Conflict: Somebody else writes it at this moment.
    """
    if store.create(key, body):
        return
    found, tag = store.read_tagged(key)
    if found != body:
        store.replace(key, body, tag)


def commit_written(store: Store, key: str, writer: ObjectWriter, blake3_hex: str) -> bool:
    """Do as `commit` for an object whose bytes went through `writer`, compared by their digest."""
    if writer.finish():
        return True
    found = blake3_of(store, key)
    if found != blake3_hex:
        raise _conflict(store, key, found, blake3_hex)
    return False


def blake3_of(store: Store, key: str) -> str:
    """Return the BLAKE3 of an object as 64 hexadecimal digits, reading 8 MiB at a time. Raises NotFound."""
    digest, num_bytes = blake3.blake3(), store.num_bytes(key)
    for offset in range(0, num_bytes, _COMPARE_BYTES):
        digest.update(store.read_range(key, offset, min(_COMPARE_BYTES, num_bytes - offset)))
    return digest.hexdigest()


def _conflict(store: Store, key: str, found: str, expected: str) -> Conflict:
    return Conflict(
        f"{store.url}/{key} exists with other content (digest {found[:12]}, expected {expected[:12]}); "
        f"choose another destination or remove it"
    )
