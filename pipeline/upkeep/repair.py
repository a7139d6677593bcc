"""Puts damaged or missing objects of shards back: packed again from the plan, and only if the bytes are the same."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.base.errors import CorruptShard, NotFound
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.schema import is_adopted, sha256_hex, to_parquet
from pipeline.dataset.tables import read_table
from pipeline.packing.commit import prepare_shard, read_plan, read_record, shard_rows
from pipeline.packing.plan import Plan
from pipeline.store.base import Store, blake3_of
from pipeline.store.local import LocalStore
from pipeline.work.pools import Pool
from pipeline.work.schedule import Attempt, run_calls

_COPY_BYTES = 8 << 20


def repair_shards(
    dataset: Dataset, shards: Iterable[int], pool: Pool, scratch: str | None = None
) -> Iterator[tuple[int, str]]:
    """Rebuild shards, in any order.

    Args:
        dataset: The dataset.
        shards: Their numbers.
        pool: Where they are rebuilt.
        scratch: Folder of each worker with room for a shard; None for its temporary folder.

    Yields:
        Each shard's number with the problem; empty where it is whole again.
    """
    calls = (tuple(dataset.shards[number].items()) for number in shards)
    for call, problem in run_calls(pool, _Repair(dataset.store, scratch), calls):
        yield dict(call)["shard"], problem


@dataclass(frozen=True)
class _Repair:
    """Rebuilds one shard; runs on a worker."""

    store: Store
    scratch: str | None

    def __call__(self, attempt: Attempt[tuple[tuple[str, Any], ...]]) -> str:
        """Return what stood in the way; empty where the shard is whole again."""
        with tempfile.TemporaryDirectory(prefix="bit-repair-", dir=self.scratch) as folder:
            try:
                _repair(self.store, dict(attempt.call), LocalStore(Path(folder)))
            except (CorruptShard, NotFound) as error:
                return str(error)
        return ""


def _repair(store: Store, row: dict[str, Any], aside: LocalStore) -> None:
    if is_adopted(row["sidecar"]):
        raise NotFound(f"{row['path']} was not packed by `pipeline shard`: restore it from where it came from")
    plan = read_plan(store, row["plan_id"])
    rows = _packed_rows(store, plan, row["plan_shard"])
    with aside.writer("rebuilt.tar") as writer:
        packed = prepare_shard(plan, row["plan_shard"], rows, writer)
        writer.finish()
    sidecar = to_parquet(packed.samples)
    if packed.blake3 != row["blake3"]:
        raise CorruptShard(f"{row['path']}: its sources, or the JPEG encoder, have changed since it was packed")
    if sha256_hex(sidecar) != row["sidecar_sha256"]:
        raise CorruptShard(
            f"{row['sidecar']}: this release of pyarrow writes it differently than the one that packed it"
        )
    if _digest(store, row["path"]) != row["blake3"]:
        _replace(store, row["path"], aside)
    if _sidecar_is_bad(store, row):
        store.delete(row["sidecar"])
        store.create(row["sidecar"], sidecar)


def _packed_rows(store: Store, plan: Plan, number: int) -> pa.Table:
    """Return the rows that were packed: a picture that was rejected then may be sound by now."""
    rows = shard_rows(store, plan, number)
    record = read_record(store, plan.plan_id, number)
    if not record.rejects:
        return rows
    rejected = [repr(row) for row in read_table(store, record.rejects).select(rows.column_names).to_pylist()]
    return rows.filter(pa.array([repr(row) not in rejected for row in rows.to_pylist()]))


def _sidecar_is_bad(store: Store, row: dict[str, Any]) -> bool:
    try:
        return bool(sha256_hex(store.read(row["sidecar"])) != row["sidecar_sha256"])
    except NotFound:
        return True


def _digest(store: Store, key: str) -> str | None:
    try:
        return blake3_of(store, key)
    except (NotFound, CorruptShard):
        return None


def _replace(store: Store, key: str, aside: LocalStore) -> None:
    store.delete(key)
    num_bytes = aside.num_bytes("rebuilt.tar")
    with store.writer(key) as writer:
        for offset in range(0, num_bytes, _COPY_BYTES):
            writer.write(aside.read_range("rebuilt.tar", offset, min(_COPY_BYTES, num_bytes - offset)))
        writer.finish()
