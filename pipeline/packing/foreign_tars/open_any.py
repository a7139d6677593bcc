"""Any WebDataset URL as a dataset: third-party tars, wherever they lie, are indexed in a folder of this machine."""

import fcntl
import hashlib
import importlib.util
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from braceexpand import braceexpand

from pipeline.base.errors import ConfigError, Denied, NoBucket, NotFound
from pipeline.base.ignored import ignored_line
from pipeline.base.records import FORMAT
from pipeline.dataset.dataset import Dataset, open_dataset
from pipeline.dataset.schema import POINTER_KEY
from pipeline.dataset.versions import published_version, refuse_datasets_below
from pipeline.packing.foreign_tars.index_tars import adopt, ignored_members, is_tar
from pipeline.packing.plan import ShardConfig
from pipeline.packing.sources.rows import check_one_split
from pipeline.store.any_url import (
    common_folder,
    expand,
    join,
    parent,
    read_file,
    read_span,
    scheme_of,
    size_of,
    walk_files,
)
from pipeline.store.base import Entry, exists, put
from pipeline.store.local import LocalStore
from pipeline.store.s3 import S3Store
from pipeline.store.url import absolute_url, open_store

logger = logging.getLogger(__name__)

T = TypeVar("T")
_FOLDER_VARIABLE = "BIT_INDEX_FOLDER"
_DECODERS_KEY = "decoders.txt"
_DECODERS = ("pylibjxl", "cykooz_heif")  # of formats that nothing else reads
_DECODER_VERSION = "1"  # higher when more formats are read, so that indexes with rejects are built anew
_LOCAL = re.compile(r"^file:(//)?")
_LIST_THREADS = 16  # of a pattern's tars that have to be asked for one by one


class IndexStore(LocalStore):
    """A local folder where keys that are absolute paths or URLs name tars elsewhere, which are only read."""

    def read(self, key: str) -> bytes:
        """See Store.read."""
        return read_file(key) if _is_elsewhere(key) else super().read(key)

    def read_range(self, key: str, offset: int, num_bytes: int) -> bytes:
        """See Store.read_range."""
        return read_span(key, offset, num_bytes) if _is_elsewhere(key) else super().read_range(key, offset, num_bytes)

    def num_bytes(self, key: str) -> int:
        """See Store.num_bytes."""
        return size_of(key) if _is_elsewhere(key) else super().num_bytes(key)


class S3IndexStore(S3Store):
    """As IndexStore, for an index on S3; absolute paths name files that every machine must have."""

    def read(self, key: str) -> bytes:
        """See Store.read."""
        return read_file(key) if _is_elsewhere(key) else super().read(key)

    def read_range(self, key: str, offset: int, num_bytes: int) -> bytes:
        """See Store.read_range."""
        return read_span(key, offset, num_bytes) if _is_elsewhere(key) else super().read_range(key, offset, num_bytes)

    def num_bytes(self, key: str) -> int:
        """See Store.num_bytes."""
        return size_of(key) if _is_elsewhere(key) else super().num_bytes(key)


def _is_elsewhere(key: str) -> bool:
    return bool(scheme_of(key)) or key.startswith("/")


def absolute_pattern(url: str) -> str:
    """Return a URL or pattern that means the same in every process: local paths become absolute."""
    return "::".join(absolute_url(part) for part in url.split("::"))


def open_any(
    url: str, version: int | None = None, on_tar: Callable[[int, int], None] = lambda count, num_bytes: None
) -> Dataset:
    """Open a published dataset, or WebDataset tars without our manifest, which are indexed on first use.

    The index lies below BIT_INDEX_FOLDER, by default `~/.cache/bit-pretrain/index`; nothing is written beside the
    tars. It is a function of their URLs and bytes, so that every machine has an equal dataset. Tars whose size, time
    or ETag changed are indexed anew. Of the processes of a machine that open them at once, one indexes.

    Args:
        url: Of a dataset; of a tar; a brace or glob pattern of tars; a folder of tars; several of these, `::` between.
        version: Of the dataset; the latest by default.
        on_tar: Called after each tar that is indexed with 1 and its bytes.

    Raises:
        NotFound: There is neither a dataset nor a tar, or no such version.
        ConfigError: The URL cannot be read, there are datasets below the folder, the tars hold several splits or names
            for labels, or the dataset's format is another release's.
        EmptySource: No picture of the tars can be used.
        CorruptShard: A tar is damaged.
        Denied: The index folder cannot be written.
    """
    if is_published(url):
        return _opened(url, version)
    tars = tars_of(url)
    root = _root_of(_identity(tars))
    if not exists(LocalStore(root), POINTER_KEY):
        if "::" not in url:
            base = common_folder([tar.key for tar in tars])
            check_one_split(url, (tar.key.removeprefix(base).lstrip("/") for tar in tars))
        _index(root, tars, on_tar)
    return _opened(str(root), version)


def _opened(url: str, version: int | None) -> Dataset:
    """Open a published dataset, which may be the index of tars elsewhere."""
    dataset = open_dataset(url, version)
    if isinstance(dataset.store, LocalStore):
        return Dataset(IndexStore(dataset.store.root), dataset.version)
    if isinstance(dataset.store, S3Store):
        return Dataset(S3IndexStore(dataset.store.bucket, dataset.store.prefix), dataset.version)
    return dataset


def is_published(url: str) -> bool:
    """Return whether a URL is that of a dataset, not of bare tars."""
    if "::" in url or url.endswith(".tar") or scheme_of(url) not in ("", "file", "s3"):
        return False
    return exists(open_store(url), POINTER_KEY)


def tars_of(url: str) -> list[Entry]:
    """Return the tars that a URL names, each once, by name; keys are absolute URLs."""
    parts = [part.strip() for part in url.split("::")]
    for part in parts:
        if not part or part.startswith("pipe:"):
            raise ConfigError(f"{url}: {part!r} is no URL that can be read by range; use that of the tars")
    with ThreadPoolExecutor(_LIST_THREADS) as threads:
        found = {entry.key: entry for part in parts for entry in _tars_of(part, threads)}
    if not found:
        raise NotFound(
            f"{url} holds no published dataset (no {POINTER_KEY}) and names no WebDataset tar; create a dataset "
            f"with `pipeline shard`, or name a folder, a URL or a pattern of .tar files"
        )
    return sorted(found.values(), key=lambda entry: entry.key)


def _tars_of(part: str, threads: ThreadPoolExecutor) -> Iterator[Entry]:
    try:
        names = list(braceexpand(absolute_url(_LOCAL.sub("", part))))
    except ValueError as error:
        raise ConfigError(f"{part} is no brace pattern ({error}); write it as shard-{{000000..000123}}.tar") from error
    tars = [name for name in names if name.endswith(".tar")]
    plain_on_s3 = [name for name in tars if scheme_of(name) == "s3" and not any(sign in name for sign in "*?")]
    yield from _listed_on_s3(plain_on_s3)
    for entries in threads.map(expand, sorted(set(tars) - set(plain_on_s3))):
        yield from entries
    for folder in sorted(set(names) - set(tars)):
        yield from _tars_below(folder)


def _tars_below(folder: str) -> Iterator[Entry]:
    manifests = []
    try:
        for entry in walk_files(folder):
            if is_tar(entry.key):
                yield entry._replace(key=join(folder, entry.key))
            elif entry.key.endswith(POINTER_KEY):
                manifests.append(entry.key)
        refuse_datasets_below(folder, manifests)
    except NoBucket:
        raise
    except NotFound:
        return  # reported by the caller, who knows what else it might have been


def _listed_on_s3(urls: list[str]) -> Iterator[Entry]:
    """Yield size and time of tars on S3 with one listing a folder: a request a tar takes minutes for 100,000."""
    by_folder: dict[str, list[str]] = defaultdict(list)
    for url in urls:
        by_folder[parent(url)].append(url)
    for folder, members in by_folder.items():
        shared = os.path.commonprefix(members)  # noqa: RUF071 - S3 lists by characters, not by parts of a path
        prefix = shared.removeprefix(f"{folder}/")
        listed = {f"{folder}/{entry.key}": entry for entry in open_store(folder).list(prefix)}
        for url in members:
            if url not in listed:
                raise NotFound(f"{url} does not exist; check the pattern")
            yield listed[url]._replace(key=url)


def _identity(tars: list[Entry]) -> str:
    listed = "\n".join([FORMAT, *(f"{tar.key}\t{tar.num_bytes}\t{tar.modified}" for tar in tars)])
    return hashlib.sha256(listed.encode()).hexdigest()[:16]


def _index_folder() -> Path:
    given = os.environ.get(_FOLDER_VARIABLE)
    return Path(given).absolute() if given else Path.home() / ".cache" / "bit-pretrain" / "index"


def _root_of(identity: str) -> Path:
    """Return the folder of an index: one of its own where rejects of the usual one may be readable by now.

    What could not be decoded depends on the decoders that were installed then.
    """
    root = _index_folder() / identity
    published = published_version(LocalStore(root))
    if published is None or not published.version.num_rejects:
        return root
    with suppress(NotFound):
        if LocalStore(root).read(_DECODERS_KEY) == _decoders():
            return root
    return root.with_name(f"{identity}-{hashlib.sha256(_decoders()).hexdigest()[:8]}")


def _decoders() -> bytes:
    found = [name for name in _DECODERS if importlib.util.find_spec(name)]
    return "\n".join([_DECODER_VERSION, *found, ""]).encode()


def _index(root: Path, tars: list[Entry], on_tar: Callable[[int, int], None]) -> None:
    config = ShardConfig()
    store = LocalStore(root)
    with _alone(root), closing(_Threads(os.cpu_count() or 1)) as pool:
        put(store, _DECODERS_KEY, _decoders())
        version = adopt(
            store,
            pool,
            tars,
            split=config.split,
            classes=(),
            block_bytes=config.block_bytes,
            on_tar=on_tar,
        )
    ignored = ignored_members(store, version)
    if ignored:
        logger.warning("%s", ignored_line(ignored))


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keep other processes of this machine from indexing the same tars; they find them indexed then."""
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        lock = root.with_suffix(".lock").open("w")
    except OSError as error:
        raise Denied(f"cannot write an index in {root.parent} ({error}); set {_FOLDER_VARIABLE} to a folder") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Threads:
    """A pool of threads: a library call must not start processes, which would run the caller's script again."""

    may_lose_workers = False
    num_reported = 0

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._executor = ThreadPoolExecutor(num_slots, thread_name_prefix="index")

    def submit(self, function: Callable[..., T], *arguments: Any) -> "Future[T]":
        """See Pool.submit."""
        return self._executor.submit(function, *arguments)

    def cancel(self, future: "Future[Any]") -> None:
        """See Pool.cancel."""
        future.cancel()

    def close(self) -> None:
        """See Pool.close."""
        self._executor.shutdown(cancel_futures=True)
