"""A store in a local folder, with the same guarantees as S3: create-if-absent, compare-and-swap, no torn object."""

import errno
import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.base.errors import Conflict, CorruptShard, Denied, NotFound, StorageError, StorageFull, Unreachable
from pipeline.store.base import Entry, Unfinished, check_key

_TEMPORARY_PREFIX = ".tmp-"
_LOCK_NAME = ".store.lock"


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into the storage error with the path and the remedy."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise NotFound(f"{path} does not exist; check the path") from error
    except PermissionError as error:
        raise Denied(f"no permission for {path}; check its owner and mode") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"no space left to write {path}; free some or choose another destination") from error
        if error.errno == errno.EROFS:
            raise Denied(
                f"{path} is on a file system that is mounted for reading only; mount it for writing"
            ) from error
        if error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT):  # of network file systems; may pass
            raise Unreachable(f"{path}: {error.strerror}; check the disk or the file server") from error
        raise StorageError(f"{path}: {error.strerror or error}") from error


def _is_own(name: str) -> bool:
    return name.startswith(_TEMPORARY_PREFIX) or name == _LOCK_NAME


def _walk(folder: str, inner: str = "", seen: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Entry]:
    """Yield all files below a folder, through links too; an unreadable folder is an error, a loop of links is not.

    Plain strings: with pathlib the listing of a folder of small pictures takes longer than packing them.
    """
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in seen:
        return
    with os.scandir(folder) as found:
        entries = list(found)
    for entry in entries:
        key = f"{inner}{entry.name}"
        try:
            if entry.is_dir():
                yield from _walk(entry.path, f"{key}/", seen | {here})
            elif not _is_own(entry.name):
                about = entry.stat()
                yield Entry(key, about.st_size, about.st_mtime)
        except FileNotFoundError:
            yield Entry(key, -1)  # a link to nothing


class LocalStore:
    """Objects are files below `root`; a new one is written aside, synced, and linked into place without replacing."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.url = str(self.root)

    def _path(self, key: str) -> Path:
        check_key(self.url, key)
        return self.root / key

    def read(self, key: str) -> bytes:
        """See Store.read."""
        path = self._path(key)
        with _storage_errors(path):
            return path.read_bytes()

    def read_range(self, key: str, offset: int, num_bytes: int) -> bytes:
        """See Store.read_range."""
        path = self._path(key)
        with _storage_errors(path), path.open("rb") as file:
            rest = max(0, os.fstat(file.fileno()).st_size - offset)  # no more memory than there is to read
            data = os.pread(file.fileno(), min(num_bytes, rest), offset)
        if len(data) != num_bytes:
            raise CorruptShard(f"{path} ends at {offset + len(data)}, bytes to {offset + num_bytes} expected")
        return data

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        """See Store.read_tagged."""
        body = self.read(key)
        return body, hashlib.sha256(body).hexdigest()

    def num_bytes(self, key: str) -> int:
        """See Store.num_bytes."""
        path = self._path(key)
        with _storage_errors(path):
            if path.is_dir():
                raise IsADirectoryError
            return path.stat().st_size

    def create(self, key: str, body: bytes) -> bool:
        """See Store.create."""
        if self._path(key).exists():
            return False
        with self.writer(key) as writer:
            writer.write(body)
            return writer.finish()

    @contextmanager
    def writer(self, key: str) -> Iterator["_LocalWriter"]:
        """See Store.writer."""
        path = self._path(key)
        with _storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            writer = _LocalWriter(path)
        try:
            yield writer
        finally:
            writer.close()

    def replace(self, key: str, body: bytes, tag: str) -> None:
        """See Store.replace."""
        path = self._path(key)
        with _storage_errors(path), (self.root / _LOCK_NAME).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.read_tagged(key)[1] != tag:
                raise Conflict(f"{path} was changed by another writer meanwhile; run again")
            aside = _LocalWriter(path)
            try:
                aside.write(body)
                aside.take_over()
            finally:
                aside.close()

    def list(self, prefix: str) -> Iterator[Entry]:
        """See Store.list. Follows links; a link to nothing has size -1."""
        folder = self._path(prefix.rpartition("/")[0])
        if not folder.is_dir():
            return
        inner = prefix[: prefix.rfind("/") + 1]
        with _storage_errors(folder):
            yield from sorted(
                (entry for entry in _walk(str(folder), inner) if entry.key.startswith(prefix)),
                key=lambda entry: entry.key,
            )

    def walk(self) -> Iterator[Entry]:
        """See Store.walk."""
        if not self.root.is_dir():
            return
        with _storage_errors(self.root):
            yield from _walk(str(self.root))

    def delete(self, key: str) -> None:
        """See Store.delete."""
        path = self._path(key)
        with _storage_errors(path):
            path.unlink(missing_ok=True)

    def unfinished(self) -> Iterator[Unfinished]:
        """See Store.unfinished."""
        with _storage_errors(self.root):
            for path in sorted(self.root.rglob(f"{_TEMPORARY_PREFIX}*")):
                with suppress(FileNotFoundError):  # its writer has just finished
                    yield Unfinished(path.relative_to(self.root).as_posix(), str(path), path.stat().st_mtime)

    def discard(self, unfinished: Unfinished) -> None:
        """See Store.discard."""
        with _storage_errors(Path(unfinished.handle)):
            Path(unfinished.handle).unlink(missing_ok=True)


class _LocalWriter:
    """Writes beside the object, syncs, and links into place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.parent / f"{_TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        self._file = self._temporary.open("wb", buffering=0)

    def write(self, chunk: bytes | memoryview) -> None:
        """See ObjectWriter.write."""
        with _storage_errors(self._path):
            rest = memoryview(chunk)
            while rest:
                rest = rest[self._file.write(rest) :]

    def finish(self) -> bool:
        """See ObjectWriter.finish."""
        with _storage_errors(self._path):
            os.fsync(self._file.fileno())
            try:
                os.link(self._temporary, self._path)
            except FileExistsError:
                return False
            _sync_folder(self._path.parent)
        return True

    def take_over(self) -> None:
        """Put the object in the place of the one that is there."""
        os.fsync(self._file.fileno())
        self._temporary.replace(self._path)
        _sync_folder(self._path.parent)

    def close(self) -> None:
        """Remove what was written aside."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
