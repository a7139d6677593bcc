"""Bodies of a block cache, and what lies in its folder."""

import hashlib
import os
from pathlib import Path

from pipeline.store.block_cache import BlockCache


def body_of(key: str, num_bytes: int) -> bytes:
    """Return a body that follows from its key and is recognized when cut or mixed."""
    return (hashlib.sha256(key.encode()).digest() * (num_bytes // 32 + 1))[:num_bytes]


def files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("??/*") if path.is_file()]


def bytes_there(folder: Path) -> int:
    """Sum what is there while others may remove it."""
    total = 0
    for path in files(folder):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def counted(cache: BlockCache) -> int | None:
    with cache._ledger() as ledger:
        return ledger.read()


def age(path: Path, seconds: float) -> None:
    modified = path.stat().st_mtime - seconds
    os.utime(path, (modified, modified))
