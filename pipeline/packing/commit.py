"""One shard from plan to commit: what a worker does. Safe to repeat, to race and to kill at any point."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.base.errors import Conflict, NotFound
from pipeline.base.parsing import parse_record
from pipeline.dataset.schema import CommitRecord, sha256_hex, to_parquet
from pipeline.image.guarded import Isolated, prepare_or_die
from pipeline.image.policy import prepare
from pipeline.packing.build_shard import PackedShard, Prepare, pack_shard
from pipeline.packing.fetch import fetch
from pipeline.packing.plan import SHARDS_PER_PART, Plan, plan_key
from pipeline.store.any_url import open_file
from pipeline.store.base import ObjectWriter, Store, commit, commit_written
from pipeline.store.url import open_store

_MOST_ATTEMPTS = 8  # at one shard by runs that read different pictures


@dataclass(frozen=True)
class PackTask:
    """What a worker needs to know to pack a shard; it finds the rest in the plan.

    Attributes:
        url: Of the dataset.
        plan_id: See Plan.
        number: Of the shard in the plan.
        is_careful: Whether each picture is prepared in a process of its own: after workers died over this shard.
        may_die: Whether the process is a worker that ends with a picture that takes too long.
    """

    url: str
    plan_id: str
    number: int
    is_careful: bool = False
    may_die: bool = False

    def __str__(self) -> str:
        return f"shard {self.number} of {self.url}"


def shard_key(plan: Plan, number: int, attempt: int = 0) -> str:
    """Return the key of a shard's tar; it holds the plan, so that two plans can never mix their shards."""
    again = f"-r{attempt}" if attempt else ""
    return f"shards/{plan.plan_id[:8]}/{plan.config.split}-{plan.config.first_shard + number:06d}{again}.tar"


def record_key(plan_id: str, number: int) -> str:
    """Return the key of a shard's commit record."""
    return f"commits/{plan_id}/{number:06d}.json"


def pack_and_commit(task: PackTask, on_image: Callable[[int], None] = lambda num_bytes: None) -> CommitRecord:
    """Pack one shard and commit tar, rejects, sidecar and, last, the record, which alone makes it a shard.

    Whoever writes the record first has packed the shard. An attempt that died before its record leaves objects that
    are equal to those of the next one, which adopts them; where the pictures changed in between they are not, and the
    next one writes under a name of its own. So what a record names was always written by one attempt.

    Raises:
        StorageError: As the destination, or as the local or S3 store that the pictures come from.
    """
    store, plan = open_plan(task.url, task.plan_id)
    for attempt in range(_MOST_ATTEMPTS):
        try:
            return read_record(store, plan.plan_id, task.number)
        except NotFound:
            pass
        try:
            return _pack_once(store, plan, task, attempt, on_image)
        except Conflict:
            if attempt == _MOST_ATTEMPTS - 1:
                raise
    raise AssertionError


def read_record(store: Store, plan_id: str, number: int) -> CommitRecord:
    """Return a shard's commit record. Raises NotFound."""
    key = record_key(plan_id, number)
    return parse_record(CommitRecord, store.read(key), f"{store.url}/{key}")


def _pack_once(store: Store, plan: Plan, task: PackTask, attempt: int, on_image: Callable[[int], None]) -> CommitRecord:
    path = shard_key(plan, task.number, attempt)
    rows = shard_rows(store, plan, task.number)
    with _preparing(task) as preparing, store.writer(path) as writer:
        packed = prepare_shard(plan, task.number, rows, writer, preparing, on_image)
        commit_written(store, path, writer, packed.blake3)
    return commit_shard(
        store, packed, plan.plan_id, task.number, plan.config.split, path, f"{path.removesuffix('.tar')}.parquet"
    )


def commit_shard(
    store: Store, packed: PackedShard, plan_id: str, number: int, split: str, path: str, sidecar_key: str
) -> CommitRecord:
    """Commit rejects, sidecar and record of a shard whose tar is there.

    Args:
        store: The destination.
        packed: The shard.
        plan_id: Of the plan.
        number: Of the shard in the plan.
        split: Of the dataset.
        path: Key of the tar.
        sidecar_key: Where the sidecar goes.
    """
    rejects = f"rejects/{plan_id}/{number:06d}-{PurePosixPath(path).stem}.parquet" if packed.rejects.num_rows else None
    if rejects:
        commit(store, rejects, to_parquet(packed.rejects))
    sidecar = to_parquet(packed.samples)
    commit(store, sidecar_key, sidecar)
    labels = packed.samples["labels"].combine_chunks().flatten()
    record = CommitRecord(
        plan_id=plan_id,
        plan_shard=number,
        split=split,
        path=path,
        num_samples=packed.samples.num_rows,
        num_bytes=packed.num_bytes,
        blake3=packed.blake3,
        sidecar=sidecar_key,
        sidecar_bytes=len(sidecar),
        sidecar_sha256=sha256_hex(sidecar),
        num_rejects=packed.rejects.num_rows,
        rejects=rejects,
        reject_reasons=dict(sorted(Counter(packed.rejects["reason"].to_pylist()).items())),
        highest_label=pc.max(labels).as_py() if len(labels) else -1,
        blocks=packed.blocks,
    )
    commit(store, record_key(plan_id, number), record.to_json())
    return record


def prepare_shard(
    plan: Plan,
    number: int,
    rows: pa.Table,
    writer: ObjectWriter,
    preparing: Prepare = prepare,
    on_image: Callable[[int], None] = lambda num_bytes: None,
) -> PackedShard:
    """Read and pack the rows of a shard; the writer has its tar then, not yet finished."""
    fetched = fetch(rows, plan.bases, plan.image_columns, plan.config.image.max_bytes)
    return pack_shard(fetched, plan.config.first_shard + number, plan.config, writer, preparing, plan.plan_id, on_image)


@contextmanager
def _preparing(task: PackTask) -> Iterator[Prepare]:
    if not task.is_careful:
        yield prepare_or_die if task.may_die else prepare
        return
    isolated = Isolated()
    try:
        yield isolated
    finally:
        isolated.close()


def shard_rows(store: Store, plan: Plan, number: int) -> pa.Table:
    """Return the rows of a shard, a table of schema.PLAN_SCHEMA, reading no other row of the plan.

    Raises:
        NotFound: The plan is not stored there.
    """
    part, group = divmod(number, SHARDS_PER_PART)
    with open_file(f"{store.url}/{plan.parts[part]}") as file:
        return pq.ParquetFile(file, pre_buffer=False).read_row_group(group, use_threads=False)


def read_plan(store: Store, plan_id: str) -> Plan:
    """Return a stored plan. Raises NotFound."""
    return parse_record(Plan, store.read(plan_key(plan_id)), f"{store.url}/{plan_key(plan_id)}")


@lru_cache(maxsize=4)
def open_plan(url: str, plan_id: str) -> tuple[Store, Plan]:
    """Return a dataset's store and a plan of it, once a process. Raises NotFound."""
    store = open_store(url)
    return store, read_plan(store, plan_id)
