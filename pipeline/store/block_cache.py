"""Blocks kept on a node's own disk, so that later epochs do not ask storage again; shared by all its processes."""

import errno
import fcntl
import hashlib
import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.base.errors import ConfigError

logger = logging.getLogger(__name__)

_COUNTER_NAME = ".num-bytes"
_TEMPORARY_PREFIX = ".tmp-"
_NAME_LENGTH = 64  # of a SHA-256 in hexadecimal digits
_RECORD_LENGTH = 57  # of the count: the boot in 36 characters, a slash and 20 digits
_ABANDONED_SECONDS = 600.0  # a choice: a live writer needs less than a second for a block
# A choice: an eviction frees 1/20 of the limit, so that with 100,000 blocks one put in 5,000 scans, which took 0.6 to
# 0.9 s on a shared machine of two cores.
_FREED_PARTS = 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class BlockCache:
    """Bodies by key in a folder of one node's disk; the least recently used go first. Safe for threads and processes.

    What is there is whole: an entry appears by a rename, and a process that dies leaves at most a temporary file,
    which an eviction removes ten minutes later. Entries are not synced: after a power loss one may hold other bytes,
    so check the body and `discard` what is wrong. A key's first body stays until it is evicted or discarded: make
    keys from digests.

    The limit holds at every moment over all processes, temporary files included. The bytes are counted in a file,
    under a lock, before they are written; a death between the two counts too many, and the scan of the next eviction
    sets that right.

    May be pickled; a copy counts from zero. The nearest library, diskcache, had its last release in August 2023,
    unpickles what it finds in its folder (CVE-2025-69872), and evicts only after it is over its limit.

    Attributes:
        folder: Where the entries lie. Other files there are neither counted nor removed.
        max_bytes: The limit, in bytes.
        hits: How many `get` of this copy found a body.
        misses: How many did not.
        num_bytes_written: Bytes of the entries that this copy added.
        num_failed_writes: How many `put` of this copy failed; the first ends writing.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Make the folder, and evict what is beyond the limit.

        Args:
            folder: On a disk of this node; made if absent. The same in all processes of the node.
            max_bytes: Limit of all entries together, in bytes; the same in all processes. A body larger than it is
                not cached, so 0 caches nothing.

        Raises:
            ConfigError: The folder cannot be made, written or locked. A full disk is no error: see `put`.
        """
        self.folder = folder.absolute()
        self.max_bytes = max_bytes
        self.hits = self.misses = self.num_bytes_written = self.num_failed_writes = 0
        self._is_stopped = False
        self._lock = threading.Lock()
        self._boot = _boot_id()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder), self._ledger() as ledger:
                self._take_room(ledger, 0)
        except OSError as error:
            if error.errno not in _FULL:
                raise ConfigError(
                    f"the cache folder {self.folder} cannot be used ({error.strerror or error}); "
                    f"choose a folder on a local disk that this user may write"
                ) from error
            self._stop(error)

    def __reduce__(self) -> tuple[type["BlockCache"], tuple[Path, int]]:
        return BlockCache, (self.folder, self.max_bytes)

    def get(self, key: str) -> bytes | None:
        """Return the body of a key and make it the last to be evicted; None if it is not there or cannot be read."""
        try:
            # The open file stays whole while another process evicts or discards its name.
            with self._path(key).open("rb", buffering=0) as file:
                body = file.readall()
                with suppress(OSError):  # a disk that turned read-only still serves
                    _touch(file.fileno())
        except OSError:
            with self._lock:
                self.misses += 1
            return None
        with self._lock:
            self.hits += 1
        return body

    def put(self, key: str, body: bytes) -> None:
        """Add a body; if the key is there, only makes it the last to be evicted.

        Never raises for the disk: when there is no space left, or a write fails, this copy warns once through
        logging and writes no more; `get` goes on. A body that is larger than the limit, or for which the
        writes in progress leave no room, is not cached.
        """
        if self._is_stopped or len(body) > self.max_bytes:
            return
        path = self._path(key)
        try:
            if not _is_touched(path):
                self._write(path, body)
        except OSError as error:
            self._stop(error)

    def discard(self, key: str) -> None:
        """Remove the entry of a key, because its body was found wrong; no error if there is none."""
        with suppress(OSError), self._ledger() as ledger:
            _remove(ledger, self._path(key))

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / name

    @contextmanager
    def _ledger(self) -> Iterator["_Ledger"]:
        """Return the count, locked against all other processes and threads: each opening of a file locks for itself."""
        descriptor = os.open(self.folder / _COUNTER_NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                yield _Ledger(descriptor, self._boot)
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing would not unlock what a forked child has inherited
        finally:
            os.close(descriptor)

    def _write(self, path: Path, body: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f"{_TEMPORARY_PREFIX}{uuid.uuid4().hex}")
        try:
            if self._is_begun(path, temporary, len(body)):
                _fill(temporary, body)
                self._publish(temporary, path, len(body))
        except BaseException as error:
            with suppress(OSError), self._ledger() as ledger:
                _remove(ledger, temporary)
            if not isinstance(error, FileNotFoundError):  # after a long sleep a scan may have taken it for abandoned
                raise

    def _is_begun(self, path: Path, temporary: Path, num_bytes: int) -> bool:
        """Count the bytes and make the temporary file; False if they are not wanted or have no room."""
        with self._ledger() as ledger:
            if path.exists() or not self._take_room(ledger, num_bytes):
                return False
            with temporary.open("xb") as file:
                file.truncate(num_bytes)  # at its full size from the start, a scan counts all that was promised to it
            return True

    def _publish(self, temporary: Path, path: Path, num_bytes: int) -> None:
        # Under the lock: a scan that meets a file while it changes its name may see it under neither.
        with self._ledger() as ledger:
            if path.exists():
                _remove(ledger, temporary)
                return
            temporary.rename(path)
        with self._lock:
            self.num_bytes_written += num_bytes

    def _take_room(self, ledger: "_Ledger", num_bytes: int) -> bool:
        """Add to the count, evicting first if needed; False, and no change, if the files being written fill it up."""
        total = ledger.read()
        if total is None or total + num_bytes > self.max_bytes:
            total = self._evict(num_bytes)
        has_room = total + num_bytes <= self.max_bytes
        ledger.write(total + num_bytes * has_room)
        return has_room

    def _evict(self, num_bytes: int) -> int:
        """Remove the oldest entries until `num_bytes`, and 5 % of the limit, are free; return the bytes left."""
        entries, total = _scan(self.folder)
        target = self.max_bytes - max(self.max_bytes // _FREED_PARTS, num_bytes)
        for _, size, path in sorted(entries):
            if total <= target:
                break
            with suppress(FileNotFoundError):  # removed by hand
                os.unlink(path)
            total -= size
        return total

    def _stop(self, error: OSError) -> None:
        with self._lock:
            self.num_failed_writes += 1
            is_first, self._is_stopped = not self._is_stopped, True
        if is_first:
            logger.warning(
                "cache %s: %s; nothing more is cached, and reading goes on from storage; free some space or lower "
                "the cache's limit, and start again",
                self.folder,
                error.strerror or error,
            )


class _Ledger:
    """The bytes counted so far, in the file that is locked."""

    def __init__(self, descriptor: int, boot: str) -> None:
        self._descriptor, self._boot = descriptor, boot

    def read(self) -> int | None:
        """Return the count; None if it is missing or of another boot: a power loss may have kept an older one."""
        boot, _, count = os.pread(self._descriptor, _RECORD_LENGTH, 0).decode(errors="replace").partition("/")
        return int(count) if boot == self._boot and count.isdecimal() else None

    def write(self, num_bytes: int) -> None:
        os.pwrite(self._descriptor, f"{self._boot}/{num_bytes:020d}".encode(), 0)


def _boot_id() -> str:
    """Return the id of this boot of the machine, 36 characters."""
    try:
        return f"{_BOOT_ID.read_text().strip():36}"
    except FileNotFoundError:
        return f"{'unknown':36}"


def _touch(file: Path | int) -> None:
    # The kernel's own time stamps advance in steps of milliseconds, in which many reads would look equally old.
    now = time.time_ns()
    os.utime(file, ns=(now, now))


def _is_touched(path: Path) -> bool:
    """Make an entry the last to be evicted; False if there is none."""
    try:
        _touch(path)
    except FileNotFoundError:
        return False
    return True


def _fill(path: Path, body: bytes) -> None:
    with path.open("r+b", buffering=0) as file:
        rest = memoryview(body)
        while rest:
            rest = rest[file.write(rest) :]
    _touch(path)


def _remove(ledger: _Ledger, path: Path) -> None:
    """Remove an entry or a temporary file, then subtract it: the count is never too low."""
    with suppress(FileNotFoundError):
        num_bytes = path.stat().st_size
        path.unlink()
        total = ledger.read()
        if total is not None:
            ledger.write(max(0, total - num_bytes))


def _scan(folder: Path) -> tuple[list[tuple[int, int, str]], int]:
    """List the entries as (mtime in ns, bytes, path), and remove what dead writers left.

    Returns:
        The entries, and the bytes of them and of the files being written.
    """
    entries, total = [], 0
    abandoned_before = time.time_ns() - int(_ABANDONED_SECONDS * 1e9)
    for file in _own_files(folder):
        with suppress(FileNotFoundError):  # removed by hand
            about = file.stat()
            is_temporary = file.name.startswith(_TEMPORARY_PREFIX)
            if is_temporary and about.st_mtime_ns < abandoned_before:
                os.unlink(file.path)
                continue
            total += about.st_size
            if not is_temporary:
                entries.append((about.st_mtime_ns, about.st_size, file.path))
    return entries, total


def _own_files(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield entries and temporary files, and nothing that others keep in the folder."""
    with os.scandir(folder) as found:
        inner = [entry for entry in found if len(entry.name) == 2 and entry.is_dir(follow_symlinks=False)]
    for part in inner:
        with os.scandir(part.path) as files:
            for file in files:
                is_entry = len(file.name) == _NAME_LENGTH and file.name.startswith(part.name)
                if is_entry or file.name.startswith(_TEMPORARY_PREFIX):
                    yield file
