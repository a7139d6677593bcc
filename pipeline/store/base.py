"""What the product asks of storage, and the rule by which an object is committed."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from pipeline.errors import Conflict, NotFound


@dataclass(frozen=True)
class Entry:
    """One object of a listing: its key below the store's root, and its size."""

    key: str
    num_bytes: int


class Store(Protocol):
    """A flat space of objects below one root URL. Keys are relative POSIX paths. Safe for threads."""

    url: str

    def read(self, key: str) -> bytes:
        """Gives the whole object. Raises NotFound."""

    def read_range(self, key: str, offset: int, num_bytes: int) -> bytes:
        """Gives exactly `num_bytes` bytes from `offset`. Raises NotFound, CorruptShard if the object is shorter."""

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        """Gives the object and the tag that `replace` wants back. Raises NotFound."""

    def num_bytes(self, key: str) -> int:
        """Gives the object's size. Raises NotFound."""

    def create(self, key: str, body: bytes) -> bool:
        """Writes a new object, atomically and durably; False, and no change, if the key exists."""

    def replace(self, key: str, body: bytes, tag: str) -> None:
        """Replaces the object that `read_tagged` gave with `tag`. Raises Conflict if it changed since."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """Gives all objects whose key starts with `prefix`, in key order."""

    def delete(self, key: str) -> None:
        """Removes the object; no error if there is none."""


def exists(store: Store, key: str) -> bool:
    """Tells whether the object exists."""
    try:
        store.num_bytes(key)
    except NotFound:
        return False
    return True


def commit(store: Store, key: str, body: bytes) -> bool:
    """Creates the object, or accepts an existing one with the same bytes.

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
        raise Conflict(
            f"{store.url}/{key} exists with other content (sha256 {hashlib.sha256(found).hexdigest()[:12]}, "
            f"expected {hashlib.sha256(body).hexdigest()[:12]}); give another destination or remove it"
        )
    return False
