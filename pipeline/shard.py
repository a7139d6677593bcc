"""`pipeline shard`: plan, pack, commit and publish. A rerun goes on where the last one stopped."""

import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

import pyarrow as pa

from pipeline.errors import ConfigError, EmptySource, ServiceError, TooManyRejects
from pipeline.manifest import CommitRecord, ManifestVersion, from_parquet, sha256_hex, to_parquet
from pipeline.pack import pack_shard
from pipeline.plan import Plan
from pipeline.publish import current_version, publish, reject_reasons
from pipeline.sources.files import read_file
from pipeline.store.base import Store, commit
from pipeline.store.url import open_store

# Shards in flight per worker process: one being packed, one queued behind it.
_TASKS_PER_WORKER = 2
_PARENT_WATCH_SECONDS = 0.5


def shard(
    plan: Plan,
    rows: pa.Table,
    classes: Sequence[str],
    store: Store,
    *,
    num_workers: int,
    max_reject_fraction: float,
    on_images: Callable[[int], None] = lambda count: None,
    on_shard: Callable[[CommitRecord], None] = lambda record: None,
) -> ManifestVersion:
    """Packs every shard of the plan that is not committed yet, then publishes the dataset.

    Args:
        plan: The plan.
        rows: Its rows in plan order.
        classes: Class names; may be empty.
        store: The destination.
        num_workers: Packing processes; 1 packs in this process. The bytes do not depend on it.
        max_reject_fraction: Share of rejected rows, 0..1, above which nothing is published.
        on_images: Called with the number of pictures done since the last call.
        on_shard: Called after each commit.

    Raises:
        ConfigError: The destination holds a dataset made from other inputs.
        EmptySource: Every row was rejected.
        TooManyRejects: More rows than allowed were rejected; nothing is published.
        StorageError: As the destination.
    """
    published = current_version(store)
    if published and published.plan_ids == (plan.plan_id,):
        on_images(plan.num_samples)
        return published
    if published:
        raise ConfigError(
            f"{store.url} holds a dataset of other inputs or settings (plan {', '.join(published.plan_ids)}, "
            f"this one {plan.plan_id}); choose another destination"
        )
    _commit_plan(store, plan, rows)
    records = _committed(store, plan)
    num_rejects = 0
    for record in records.values():
        on_images(record.num_samples + record.num_rejects)
    missing = [number for number in range(len(plan.shard_ends)) if number not in records]
    for record in _pack_all(plan, rows, store, missing, num_workers, on_images):
        records[record.shard] = record
        on_shard(record)
        num_rejects += record.num_rejects
        if num_rejects > max_reject_fraction * plan.num_samples:
            raise TooManyRejects(_told_rejects(store, records.values(), plan.num_samples))
    if not any(record.num_samples for record in records.values()):
        raise EmptySource(f"all {plan.num_samples} pictures were rejected: {reject_reasons(records.values())}")
    return publish(store, list(records.values()), classes, plan.num_classes)


def shard_key(plan: Plan, number: int) -> str:
    """Gives the key of a shard's tar; it holds the plan, so that two plans can never mix their shards."""
    return f"shards/{plan.plan_id[:8]}/{plan.config.split}-{number:06d}.tar"


def record_key(plan_id: str, number: int) -> str:
    """Gives the key of a shard's commit record."""
    return f"commits/{plan_id}/{number:06d}.json"


def pack_and_commit(
    url: str, plan: Plan, rows: pa.Table, number: int, on_image: Callable[[], None] = lambda: None
) -> CommitRecord:
    """Packs one shard and commits tar, sidecar, rejects and, last, the record. Safe to repeat and to race."""
    store = open_store(url)
    packed = pack_shard(rows, number, plan.config, read_file, on_image)
    path = shard_key(plan, number)
    sidecar = to_parquet(packed.samples)
    sidecar_key = path.removesuffix(".tar") + ".parquet"
    rejects_key = f"rejects/{plan.plan_id}/{number:06d}.parquet" if packed.rejects.num_rows else None
    commit(store, path, packed.tar)
    commit(store, sidecar_key, sidecar)
    if rejects_key:
        commit(store, rejects_key, to_parquet(packed.rejects))
    record = CommitRecord(
        shard=number,
        split=plan.config.split,
        path=path,
        num_samples=packed.samples.num_rows,
        num_bytes=len(packed.tar),
        sha256=sha256_hex(packed.tar),
        sidecar=sidecar_key,
        sidecar_bytes=len(sidecar),
        sidecar_sha256=sha256_hex(sidecar),
        num_rejects=packed.rejects.num_rows,
        rejects=rejects_key,
        reject_reasons=dict(sorted(Counter(packed.rejects["reason"].to_pylist()).items())),
        plan_id=plan.plan_id,
        blocks=packed.blocks,
    )
    commit(store, record_key(plan.plan_id, number), record.to_json())
    return record


def _commit_plan(store: Store, plan: Plan, rows: pa.Table) -> None:
    commit(store, f"plans/{plan.plan_id}/rows.parquet", to_parquet(rows.drop_columns(["uri"])))
    commit(store, f"plans/{plan.plan_id}/plan.json", plan.to_json())


def _committed(store: Store, plan: Plan) -> dict[int, CommitRecord]:
    """Gives the shards that need no packing.

    Nothing is published yet, so a shard with rejects is taken back and packed again: the user may have mended them.
    """
    kept = {}
    for entry in list(store.list(f"commits/{plan.plan_id}/")):
        record = CommitRecord.model_validate_json(store.read(entry.key))
        if record.rejects is None:
            kept[record.shard] = record
            continue
        for key in (entry.key, record.rejects, record.sidecar, record.path):
            store.delete(key)
    return kept


def _pack_all(
    plan: Plan,
    rows: pa.Table,
    store: Store,
    numbers: Sequence[int],
    num_workers: int,
    on_images: Callable[[int], None],
) -> Iterator[CommitRecord]:
    def rows_of(number: int) -> pa.Table:
        start, end = plan.shard_rows(number)
        return rows.slice(start, end - start)

    if num_workers == 1 or len(numbers) <= 1:
        for number in numbers:
            yield pack_and_commit(store.url, plan, rows_of(number), number, lambda: on_images(1))
        return
    # spawn: forking a process that has threads or an S3 client is not safe.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_end_with_parent)
    try:
        waiting = list(numbers)
        running: set[Future[CommitRecord]] = set()
        while waiting or running:
            while waiting and len(running) < _TASKS_PER_WORKER * num_workers:
                number = waiting.pop(0)
                running.add(pool.submit(pack_and_commit, store.url, plan, rows_of(number).combine_chunks(), number))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                record = future.result()
                on_images(record.num_samples + record.num_rejects)
                yield record
    except BrokenProcessPool as error:
        raise ServiceError(
            "a packing process was killed, perhaps for its memory; lower --workers or --shard-mb and run again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _told_rejects(store: Store, records: Iterable[CommitRecord], num_rows: int) -> str:
    rejecting = [record for record in records if record.rejects]
    reject = from_parquet(store.read(str(rejecting[0].rejects))).slice(0, 1).to_pylist()[0]
    return (
        f"{sum(record.num_rejects for record in rejecting)} of {num_rows} pictures cannot be used "
        f"({reject_reasons(rejecting)}), first {reject['source']}: {reject['reason']} ({reject['detail']}); nothing is "
        f"published. Mend or remove them, or allow a share with --max-reject-fraction"
    )


def _end_with_parent() -> None:
    """Makes a packing process end when the run is killed, instead of waiting for work for ever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
