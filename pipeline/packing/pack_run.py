"""Packs every shard of a stored plan that is not committed yet, and gathers the commit records."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.base.errors import TooManyRejects
from pipeline.base.parsing import parse_record
from pipeline.dataset.schema import BLOCK_SCHEMA, SHARD_SCHEMA, CommitRecord, table_of
from pipeline.dataset.tables import read_table
from pipeline.packing.commit import PackTask, pack_and_commit, record_key
from pipeline.packing.plan import Plan
from pipeline.store.base import Store
from pipeline.store.lease import Lease
from pipeline.work.pools import Pool, report_done
from pipeline.work.schedule import Attempt, Count, run_calls

_READ_THREADS = 16  # of commit records; boto3 does about 400 small reads a second in one process
_CAREFUL_AFTER = 2  # workers lost over a shard
_EARLY_ROWS = 10_000  # before these are done, a rate of rejects means little
_EARLY_FACTOR = 2.0


@dataclass
class Packed:
    """Commit records of a plan as they come in, kept small: 131 k shards have 4 M blocks.

    Attributes:
        shards: Rows of schema.SHARD_SCHEMA without `shard`, by number in the plan.
        num_rejects: Rejected rows.
        num_done: Rows packed or rejected.
        reject_reasons: Rejected rows by reason.
        highest_label: -1 where no sample has one.
        rejecting: Keys of reject lists by number in the plan.
    """

    shards: dict[int, dict[str, Any]] = field(default_factory=dict)
    num_rejects: int = 0
    num_done: int = 0
    reject_reasons: Counter[str] = field(default_factory=Counter)
    highest_label: int = -1
    rejecting: dict[int, str] = field(default_factory=dict)
    _blocks: dict[int, np.ndarray[Any, np.dtype[np.int64]]] = field(default_factory=dict)

    def add(self, record: CommitRecord) -> None:
        """Add a record."""
        about = record.model_dump(include=set(SHARD_SCHEMA.names))
        self.shards[record.plan_shard] = about
        blocks = record.blocks
        self._blocks[record.plan_shard] = np.array(
            [blocks.num_samples, blocks.offset, blocks.num_bytes, blocks.crc32c], np.int64
        )
        self.highest_label = max(self.highest_label, record.highest_label)
        self.num_rejects += record.num_rejects
        self.num_done += record.num_samples + record.num_rejects
        self.reject_reasons.update(record.reject_reasons)
        if record.rejects:
            self.rejecting[record.plan_shard] = record.rejects

    def tables(self, first_shard: int) -> tuple[pa.Table, pa.Table]:
        """Return the rows of the manifest's tables of shards and blocks; shards without a sample have none.

        Args:
            first_shard: Number of the first of them in the manifest.
        """
        numbers = [number for number in sorted(self.shards) if self.shards[number]["num_samples"]]
        shards = [self.shards[number] | {"shard": first_shard + index} for index, number in enumerate(numbers)]
        parts = [self._block_table(first_shard + index, self._blocks[number]) for index, number in enumerate(numbers)]
        return table_of(shards, SHARD_SCHEMA), pa.concat_tables(parts or [BLOCK_SCHEMA.empty_table()])

    @staticmethod
    def _block_table(shard: int, blocks: np.ndarray[Any, np.dtype[np.int64]]) -> pa.Table:
        counts, offsets, sizes, checksums = blocks
        first_rows = np.cumsum(counts) - counts
        columns = [np.full(len(counts), shard), first_rows, counts, offsets, sizes, checksums]
        return pa.table(
            [
                pa.array(column.astype(kind.to_pandas_dtype()), kind)
                for column, kind in zip(columns, BLOCK_SCHEMA.types, strict=True)
            ],
            schema=BLOCK_SCHEMA,
        )


def pack_plan(
    store: Store,
    plan: Plan,
    pool: Pool,
    lease: Lease,
    *,
    max_reject_fraction: float,
    on_images: Callable[[int, int], None] = lambda count, num_bytes: None,
    on_event: Callable[..., None] = lambda event, **values: None,
) -> Packed:
    """Pack what is missing.

    Args:
        store: The destination, which holds the plan.
        plan: The plan.
        pool: Where shards are packed. The bytes do not depend on it.
        lease: The right to publish what is packed.
        max_reject_fraction: Share of rejected rows, 0..1, above which the run ends.
        on_images: Called with pictures done and bytes of tars written since the last call.
        on_event: Called with the name and the values of each event, for the log.

    Raises:
        TooManyRejects: More rows than allowed were rejected.
        Fenced: A newer run has taken over.
        ServiceError: Workers kept dying over one shard.
        StorageError: As the destination.
    """
    packed = _already_packed(store, plan, max_reject_fraction)
    on_images(packed.num_done, sum(about["num_bytes"] for about in packed.shards.values()))
    on_event(
        "resumed",
        num_shards=len(packed.shards),
        num_missing=plan.num_shards - len(packed.shards),
        num_rejects=packed.num_rejects,
    )
    missing = (
        PackTask(store.url, plan.plan_id, number, may_die=pool.may_lose_workers)
        for number in range(plan.num_shards)
        if number not in packed.shards
    )

    def on_call_event(event: str, task: PackTask, detail: str) -> None:
        on_event(event, shard=task.number, detail=detail)

    count = Count(pool, plan.num_samples - packed.num_done, on_images)
    for _, record in run_calls(pool, _attempt, missing, on_call_event, count.poll):
        packed.add(record)
        count.add(record.num_samples + record.num_rejects, record.num_bytes)
        on_event("shard", **record.model_dump(exclude={"blocks"}))
        _check_rejects(store, packed, plan, max_reject_fraction)
        lease.check()
    return packed


def _attempt(attempt: Attempt[PackTask]) -> CommitRecord:
    task = attempt.call
    careful = attempt.num_losses >= _CAREFUL_AFTER
    wanted = PackTask(task.url, task.plan_id, task.number, careful, task.may_die and not careful)
    return pack_and_commit(wanted, lambda num_bytes: report_done(1))


def committed_records(store: Store, plan_id: str) -> Iterator[CommitRecord]:
    """Yield the commit records of a plan, in any order."""
    keys = [entry.key for entry in store.list(f"commits/{plan_id}/")]
    with ThreadPoolExecutor(_READ_THREADS) as threads:
        for key, body in zip(keys, threads.map(store.read, keys), strict=True):
            yield parse_record(CommitRecord, body, f"{store.url}/{key}")


def _already_packed(store: Store, plan: Plan, max_reject_fraction: float) -> Packed:
    """Gather what earlier runs committed.

    Where they rejected more than is allowed, nothing is published yet, and shards with rejects are deleted and
    packed again: the user may have repaired the pictures.
    """
    packed = Packed()
    for record in committed_records(store, plan.plan_id):
        packed.add(record)
    if packed.num_rejects <= max_reject_fraction * plan.num_samples:
        return packed
    kept = Packed()
    for record in committed_records(store, plan.plan_id):
        if record.rejects is None:
            kept.add(record)
            continue
        # The record goes first: without it the rest is nothing, and is superseded if it stays.
        for key in (record_key(plan.plan_id, record.plan_shard), record.rejects, record.sidecar, record.path):
            store.delete(key)
    return kept


def _check_rejects(store: Store, packed: Packed, plan: Plan, max_reject_fraction: float) -> None:
    """End a run whose rejects exceed the limit, or are on the way to twice that: credentials or a server are gone."""
    early = _EARLY_FACTOR * max(packed.num_done, min(_EARLY_ROWS, plan.num_samples))
    if packed.num_rejects <= max_reject_fraction * min(plan.num_samples, early):
        return
    key = next(iter(packed.rejecting.values()))
    first = read_table(store, key).slice(0, 1).to_pylist()[0]
    raise TooManyRejects(
        f"{packed.num_rejects} of {plan.num_samples} pictures cannot be used ({dict(packed.reject_reasons)}), first "
        f"{first['source']}: {first['reason']} ({first['detail']}); nothing is published. Repair or remove them, or "
        f"allow a share with --max-reject-fraction"
    )
