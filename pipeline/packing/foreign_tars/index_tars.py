"""Makes third-party WebDataset tars readable as a dataset, without touching them: sidecars and a manifest."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import blake3

from pipeline.base.errors import BadImage, ConfigError, EmptySource, StorageFull
from pipeline.base.ignored import Ignored, IgnoredFiles, IgnoredList, is_hidden
from pipeline.base.parsing import parse_record
from pipeline.dataset.publish import Addition, publish
from pipeline.dataset.schema import (
    INDEX_FOLDER,
    POINTER_KEY,
    REJECT_SCHEMA,
    CommitRecord,
    ManifestVersion,
    image_digest,
    table_of,
)
from pipeline.dataset.tables import read_table
from pipeline.dataset.tar_reader import TarSample, labels_of, scan_tar
from pipeline.dataset.versions import published_version, refuse_datasets_below
from pipeline.image.policy import ImagePolicy, prepare
from pipeline.packing.build_shard import PackedShard, blocks_of, sidecar_table
from pipeline.packing.commit import commit_shard
from pipeline.packing.pack_run import Packed, committed_records
from pipeline.packing.sources.folder import check_name
from pipeline.packing.sources.rows import NO_EXTRA, TAR, check_one_split
from pipeline.packing.sources.tars import refuse_ambiguous
from pipeline.store.any_url import is_remote, join, open_file
from pipeline.store.base import Entry, Store, commit
from pipeline.store.lease import Lease
from pipeline.store.url import open_store
from pipeline.work.pools import Pool
from pipeline.work.schedule import Attempt, run_calls

_READ_BYTES = 8 << 20
_READ_THREADS = 16
_IGNORED_ENDING = ".ignored.json"  # beside the sidecar of a tar that has such members


@dataclass(frozen=True)
class _IndexTask:
    """One tar to be indexed.

    Attributes:
        url: Root of the dataset.
        path: Key of the tar below it, or its absolute URL.
        number: Its place among the tars.
        plan_id: Digest of the list of tars.
        split: Of the dataset.
        block_bytes: Target size of a block.
        classes: Class names by label.
    """

    url: str
    path: str
    number: int
    plan_id: str
    split: str
    block_bytes: int
    classes: tuple[str, ...]


def adopt(
    store: Store,
    pool: Pool,
    tars: Sequence[Entry] | None = None,
    *,
    split: str,
    classes: Sequence[str],
    block_bytes: int,
    on_tar: Callable[[int, int], None] = lambda count, num_bytes: None,
) -> ManifestVersion:
    """Index tars and publish them as version 1 of a dataset.

    Pictures that cannot be used stay in their tar, are not indexed, and are listed as rejects. Interrupted, it goes on.
    What it publishes is a function of the tars, their keys, and the settings.

    Args:
        store: Receives sidecars below `index/` and the manifest.
        pool: Where tars are read.
        tars: Their keys are absolute URLs; by default all tars below the store's root.
        split: Of the dataset.
        classes: Class names by label; may be empty.
        block_bytes: Target size of a block.
        on_tar: Called after each tar with 1 and its bytes.

    Raises:
        ConfigError: A dataset is published there already; the tars hold several splits; or labels are names that are
            not in `classes`, or members of a sample do not follow each other.
        EmptySource: There is no tar, or no usable picture.
        CorruptShard: A tar is damaged.
    """
    is_whole_store = tars is None
    tars, manifests = _below(store) if tars is None else (list(tars), [])
    tars.sort(key=lambda entry: entry.key)
    if not tars:
        raise EmptySource(f"{store.url} holds no .tar file")
    plan_id = _identity(tars, split, classes, block_bytes)
    published = published_version(store)
    if published:
        if published.version.plan_ids == (plan_id,):
            return published.version
        raise ConfigError(f"{store.url} holds a published dataset; index tars in a folder of their own")
    if is_whole_store:
        refuse_datasets_below(store.url, manifests)
        check_one_split(store.url, (entry.key for entry in tars))
    lease = Lease.take(store)
    packed = Packed()
    for record in committed_records(store, plan_id):
        packed.add(record)
        on_tar(1, record.num_bytes)
    tasks = [
        _IndexTask(store.url, entry.key, number, plan_id, split, block_bytes, tuple(classes))
        for number, entry in enumerate(tars)
        if number not in packed.shards
    ]
    for _, record in run_calls(pool, _index_tar, tasks):
        packed.add(record)
        on_tar(1, record.num_bytes)
        lease.check()
    shards, blocks = packed.tables(0)
    if not shards.num_rows:
        named = f"{join(store.url, tars[0].key)} and {len(tars) - 1:,} further tars"
        raise EmptySource(f"{named}: no picture can be used ({dict(packed.reject_reasons)})")
    lease.check(now=True)
    addition = Addition(
        plan_id=plan_id,
        split=split,
        shards=shards,
        blocks=blocks,
        rejects=(read_table(store, packed.rejecting[number]) for number in sorted(packed.rejecting)),
        retries=False,
        classes=classes,
        num_classes=max(len(classes), packed.highest_label + 1),
        num_duplicates=0,
        has_fingerprints=True,
    )
    return publish(store, None, addition)


def _below(store: Store) -> tuple[list[Entry], list[str]]:
    """Return the tars of a whole store, and the keys of what may be manifests of datasets."""
    tars, manifests = [], []
    for entry in store.walk():
        if is_tar(entry.key):
            tars.append(entry)
        elif entry.key.endswith(POINTER_KEY):
            manifests.append(entry.key)
    return tars, manifests


def is_tar(key: str) -> bool:
    """Return whether a file below a folder is one of its tars; hidden ones are not."""
    return key.endswith(".tar") and not is_hidden(key)


def _identity(tars: Sequence[Entry], split: str, classes: Sequence[str], block_bytes: int) -> str:
    listed = [f"{entry.key}\t{entry.num_bytes}" for entry in tars]
    return hashlib.sha256(repr((listed, split, list(classes), block_bytes)).encode()).hexdigest()[:16]


def _index_tar(attempt: Attempt[_IndexTask]) -> CommitRecord:
    """Read one tar and commit its sidecar and its record."""
    task = attempt.call
    store = open_store(task.url)
    url = join(store.url, task.path)
    with opened_tar(url) as file:
        packed = described_tar(file, url, task.path, task.plan_id, task.block_bytes, classes=task.classes)
    sidecar = _sidecar_key(task)
    if packed.ignored:
        body = IgnoredList(kinds=packed.ignored).to_json()
        commit(store, f"{sidecar.removesuffix('.parquet')}{_IGNORED_ENDING}", body)
    return commit_shard(store, packed, task.plan_id, task.number, task.split, task.path, sidecar)


def ignored_members(store: Store, version: ManifestVersion) -> tuple[IgnoredFiles, ...]:
    """Return the members of the tars of an adopted dataset that are in no sample."""
    found = Ignored()
    listed = store.list(_index_of(version.plan_ids[0]))
    keys = [entry.key for entry in listed if entry.key.endswith(_IGNORED_ENDING)]
    with ThreadPoolExecutor(_READ_THREADS) as threads:
        for key, body in zip(keys, threads.map(store.read, keys), strict=True):
            found.add_all(parse_record(IgnoredList, body, f"{store.url}/{key}").kinds)
    return found.kinds


def described_tar(
    file: BinaryIO,
    url: str,
    path: str,
    plan_id: str,
    block_bytes: int,
    on_picture: Callable[[bytes], None] = lambda data: None,
    classes: Sequence[str] = (),
) -> PackedShard:
    """Read a tar whole and return what its sidecar and its commit record hold.

    Args:
        file: The open tar, see `opened_tar`.
        url: What it is called in messages.
        path: What its rejects are called by.
        plan_id: That of its rejects.
        block_bytes: Target size of a block.
        on_picture: Called with the bytes of each usable picture, in order.
        classes: Class names by label.

    Raises:
        CorruptShard: It is damaged.
        ConfigError: As `adopt`, of one tar.
    """
    samples: list[tuple[Any, ...]] = []
    rejects: list[dict[str, Any]] = []
    starts: list[int] = []
    ignored, listed = Ignored(), Ignored()
    found, end = scan_tar(file, url, ignored=ignored)
    listed.add_all(ignored.kinds, f"{path}#")
    refuse_ambiguous(found, url, are_adjacent=True)
    for sample in found:
        check_name(url, sample.key)
        labels: list[int] = []
        try:
            labels = _numbers(sample, url, classes)
            data = _image(file, sample)
            samples.append(_sidecar_row(sample, labels, data))
            on_picture(data)
            starts.append(sample.start)
        except BadImage as error:
            rejects.append(_reject(path, plan_id, sample, labels, error))
        rejects += [_second_image(path, plan_id, sample, labels, name) for name in sample.images[1:] if sample.image]
    blocks = blocks_of(file, [*starts, end], block_bytes)
    num_bytes, digest = whole_tar(file)
    return PackedShard(
        samples=sidecar_table(samples),
        rejects=table_of(rejects, REJECT_SCHEMA),
        blocks=blocks,
        num_bytes=num_bytes,
        blake3=digest,
        ignored=listed.kinds,
    )


@contextmanager
def opened_tar(url: str) -> Iterator[BinaryIO]:
    """Open a tar. A remote one is copied aside first, since it is read four times: members, pictures, two digests."""
    with open_file(url) as file:
        if not is_remote(url):
            yield file
            return
        with tempfile.TemporaryFile() as aside:
            try:
                shutil.copyfileobj(file, aside, _READ_BYTES)
            except OSError as error:
                folder = tempfile.gettempdir()
                raise StorageFull(f"no space for a copy of {url} in {folder} ({error}); set TMPDIR") from error
            aside.seek(0)
            yield aside


def whole_tar(file: BinaryIO) -> tuple[int, str]:
    """Return the number of all bytes and their BLAKE3."""
    digest, num_bytes = blake3.blake3(), 0
    file.seek(0)
    while chunk := file.read(_READ_BYTES):
        digest.update(chunk)
        num_bytes += len(chunk)
    return num_bytes, digest.hexdigest()


def _sidecar_key(task: _IndexTask) -> str:
    """Return the key by the tar's name; by its number elsewhere, since URLs may differ in what a key cannot hold."""
    is_below = join(task.url, task.path) != task.path
    name = task.path.removesuffix(".tar") if is_below else f"{task.number:06d}"
    return f"{_index_of(task.plan_id)}{name}.parquet"


def _index_of(plan_id: str) -> str:
    return f"{INDEX_FOLDER}{plan_id[:8]}/"


def _image(file: BinaryIO, sample: TarSample) -> bytes:
    if sample.problem:
        raise sample.problem
    if sample.image is None:
        dotted = f", only {', '.join(sample.images[:3])}, after a further dot" if sample.images else ""
        raise BadImage("missing", f"the sample has no picture{dotted}")
    offset, num_bytes = sample.image
    file.seek(offset)
    return file.read(num_bytes)


def _numbers(sample: TarSample, url: str, classes: Sequence[str]) -> list[int]:
    """Return the labels of a sample as numbers. Raises BadImage and ConfigError."""
    labels = labels_of(sample, classes)
    names = [label for label in labels if isinstance(label, str) and label not in classes]
    if names:
        remedy = "is not in the class list" if classes else "is a name; list all names in a file for --classes"
        raise ConfigError(
            f"{url}: label {names[0]!r} of sample {sample.key} {remedy}, or pack the tar with `pipeline shard`"
        )
    return [classes.index(label) if isinstance(label, str) else label for label in labels]


def _sidecar_row(sample: TarSample, labels: list[int], data: bytes) -> tuple[Any, ...]:
    """Return a sidecar row. The picture is checked as if it were packed, and stays as it is."""
    prepared = prepare(data, ImagePolicy())
    return (
        sample.key,
        *(sample.image or (0, 0)),
        *sample.about_span,
        labels,
        prepared.width,
        prepared.height,
        image_digest(data),
        prepared.code,
        prepared.quality,
    )


def _second_image(path: str, plan_id: str, sample: TarSample, labels: list[int], name: str) -> dict[str, Any]:
    error = BadImage("second-image", f"sample {sample.key} has {sample.images[0]} already")
    return _reject(path, plan_id, sample, labels, error) | {"source": f"{path}#{name}", "offset": 0, "num_bytes": -1}


def _reject(path: str, plan_id: str, sample: TarSample, labels: list[int], error: BadImage) -> dict[str, Any]:
    offset, num_bytes = sample.image or (0, -1)
    return {
        "source": f"{path}#{sample.key}",
        "base": 0,
        "path": path,
        "container": TAR,
        "offset": offset,
        "num_bytes": num_bytes,
        "labels": labels,
        "extra": NO_EXTRA,
        "run": None,
        "plan_id": plan_id,
        "reason": error.reason,
        "detail": error.detail,
    }
