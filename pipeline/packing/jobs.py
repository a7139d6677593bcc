"""`pipeline shard`, `append` and `retry-rejects`: plan, pack and publish. A rerun goes on where one stopped."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.console import Reporting
from pipeline.base.errors import ConfigError, Conflict, EmptySource, NotFound
from pipeline.base.parsing import parse_record
from pipeline.base.quantities import quantity
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.publish import Addition, publish
from pipeline.dataset.schema import POINTER_KEY, ManifestVersion
from pipeline.dataset.tables import read_table
from pipeline.dataset.versions import Published, outstanding_rejects, published_version
from pipeline.packing.commit import read_plan
from pipeline.packing.duplicates import leave_out_duplicates
from pipeline.packing.label_conflicts import conflicts_of_shards, read_conflicts
from pipeline.packing.make_plan import Planned, make_plan, store_plan
from pipeline.packing.pack_run import Packed, pack_plan
from pipeline.packing.plan import Plan, ShardConfig, counted, duplicates_key
from pipeline.packing.plan_words import found_lines, interrupted, other_dataset
from pipeline.packing.probe import prober
from pipeline.packing.sources.rows import COLUMNS, Source
from pipeline.store.any_url import open_file
from pipeline.store.base import Store
from pipeline.store.destination import require_free
from pipeline.store.lease import PREFIX as LEASES, Lease
from pipeline.work.pools import Pool
from pipeline.work.schedule import Attempt, run_calls

_REJECT_BATCH_ROWS = 65_536
DATASET_MARKS = (POINTER_KEY, LEASES, "plans/")  # of a published dataset, and of one under way


@dataclass(frozen=True)
class Job:
    """What `shard`, `append` and `retry_rejects` have in common.

    Attributes:
        store: The destination.
        pool: Where plans are read and shards are packed. The bytes do not depend on it.
        scratch: Existing folder for the plan's sort and files.
        max_reject_fraction: Share of rejected rows, 0..1, above which nothing is published.
        reporting: See Reporting.
    """

    store: Store
    pool: Pool
    scratch: Path
    max_reject_fraction: float = 0.0
    reporting: Reporting = field(default_factory=Reporting)


def plan_sources(job: Job, sources: Sequence[tuple[str, Source]], config: ShardConfig, **options: Any) -> Planned:
    """Plan the rows of all sources, in the scratch folder; see `make_plan` for options and errors."""

    def parallel_map(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return (result for _, result in run_calls(job.pool, partial(_call, function), items))

    with job.reporting.progress("planning", None, "rows") as advance:
        return make_plan(
            sources,
            config,
            job.scratch,
            probe=prober(config.image),
            parallel_map=parallel_map,
            on_rows=lambda count: advance(count, 0),
            **options,
        )


def _call(function: Callable[[Any], Any], attempt: Attempt[Any]) -> Any:
    return function(attempt.call)


def request_of(sources: Sequence[tuple[str, Source]], config: ShardConfig, settings: Any) -> str | None:
    """Return the digest of a request whose sources need not be listed again while their files are unchanged."""
    if any(source.identity is None for _, source in sources):
        return None
    identities = [[prefix, source.url, source.identity] for prefix, source in sources]
    return hashlib.sha256(f"{json.dumps(identities)}\n{counted(config)}\n{settings!r}".encode()).hexdigest()[:16]


def find_plan(store: Store, **wanted: str | None) -> Plan | None:
    """Return the stored plan whose `request` or `slimmed_from` is the one wanted; none for None.

    A plan that left images uncompared because they could not be read answers nothing until it is published.
    """
    if None in wanted.values():
        return None
    for entry in store.list("plans/"):
        if entry.key.endswith("/plan.json"):
            plan = parse_record(Plan, store.read(entry.key), f"{store.url}/{entry.key}")
            if all(getattr(plan, name) == value for name, value in wanted.items()) and _is_final(store, plan):
                return plan
    return None


def _is_final(store: Store, plan: Plan) -> bool:
    if not plan.config.skip_duplicates or plan.num_unread == 0:
        return True
    published = published_version(store)
    return bool(published and plan.plan_id in published.version.plan_ids)


def shard(
    job: Job, sources: Sequence[tuple[str, Source]], config: ShardConfig, settings: Any = None
) -> ManifestVersion:
    """Pack sources into a new dataset.

    Args:
        job: See Job.
        sources: Each with the prefix of its names.
        config: See ShardConfig.
        settings: How the sources are read, besides themselves: part of the identity of the request.

    Raises:
        ConfigError: The destination holds a dataset of other inputs, or other things.
        EmptySource: There is no row, or every row was rejected.
        TooManyRejects: More rows than allowed were rejected; nothing is published.
        Fenced: A newer run has taken over.
        StorageError: As the destination.
    """
    published = published_version(job.store)
    if not published:
        require_free(job.store, "dataset", DATASET_MARKS)
    # Before anything that takes long: it shows whether the destination can be written.
    lease = None if published else Lease.take(job.store)
    plan, planned = _find_or_plan(job, sources, config, settings)
    if published:
        if plan.plan_id != published.version.plan_ids[0]:
            raise other_dataset(job.store, published, plan)
        if planned:
            store_plan(job.store, planned)  # the sources may have moved; `repair` will look for them
        version = published.version
    else:
        plan = _stored(job, planned) if planned else plan
        version = _pack_and_publish(job, plan, None, lease or Lease.take(job.store))
    _say_what_was_found(job, plan)
    return version


def _say_what_was_found(job: Job, plan: Plan) -> None:
    """Show what is in the sources and not in the dataset, and what lacks a label."""
    for line in found_lines(plan):
        job.reporting.say(line)
    conflicts = read_conflicts(job.store, plan.plan_id)
    if conflicts:
        names = dict(enumerate(plan.classes))
        job.reporting.say(conflicts.line(lambda label: names.get(label, str(label))))


def _find_or_plan(
    job: Job, sources: Sequence[tuple[str, Source]], config: ShardConfig, settings: Any, **options: Any
) -> tuple[Plan, Planned | None]:
    """Return the plan that an earlier run stored, or a new one that is not stored yet."""
    request = request_of(sources, config, settings)
    plan = find_plan(job.store, request=request)
    if plan:
        return plan, None
    planned = plan_sources(job, sources, config, request=request, **options)
    if config.skip_duplicates:
        plan = find_plan(job.store, slimmed_from=planned.plan.plan_id)
    return (plan, None) if plan else (planned.plan, planned)


def append(job: Job, sources: Sequence[tuple[str, Source]], settings: Any = None) -> ManifestVersion:
    """Pack what the dataset does not have yet into a new version of it, with the settings it was packed with.

    Readers of the older version are not disturbed. Rows with a name that the dataset has are left out, and where it was
    packed without duplicates, rows with the bytes of a picture that it has.

    Raises:
        NotFound: Nothing is published there.
        ConfigError: A picture changed, or labels are numbered otherwise.
        BitError: As `shard`.
    """
    published = _require(job.store)
    lease = Lease.take(job.store)
    latest = _latest_plan(job.store, published.version)
    config = latest.config.model_copy(update={"first_shard": latest.config.first_shard + latest.num_shards})
    known = _known_rows(job.store, published.version)
    plan, planned = _find_or_plan(job, sources, config, settings, known=known, classes=latest.classes)
    if plan.num_known:
        job.reporting.say(f"{plan.num_known:,} rows have names that the dataset has, and are left out")
    if plan.classes and not latest.classes and published.version.num_classes:
        raise ConfigError(
            f"{job.store.url} has numbers for labels, the new source has names; use numbers for it, or --classes"
        )
    if planned and plan.num_samples:
        plan = _stored(job, planned, published.version.plan_ids)
    version = published.version
    if plan.num_samples:
        version = _pack_and_publish(job, plan, published, lease)
    else:
        duplicates = (
            f"; {quantity(plan.num_duplicates, 'picture')} with the bytes of others" if plan.num_duplicates else ""
        )
        job.reporting.say(f"nothing new{duplicates}")
    _say_what_was_found(job, plan.model_copy(update={"unused_classes": ()}))
    return version


def retry_rejects(job: Job) -> ManifestVersion:
    """Pack the pictures that were rejected and can be used now into a new version; those that cannot stay rejected.

    Raises:
        NotFound: Nothing is published there.
        BitError: As `shard`.
    """
    published = _require(job.store)
    lease = Lease.take(job.store)
    rejects = outstanding_rejects(job.store, published.version)
    if not rejects.num_rows:
        return published.version
    latest = _latest_plan(job.store, published.version)
    plans = {plan_id: read_plan(job.store, plan_id) for plan_id in rejects["plan_id"].unique().to_pylist()}
    sources = []
    for plan_id, plan in plans.items():
        mine = rejects.filter(pa.compute.equal(rejects["plan_id"], plan_id))
        for base, url in enumerate(plan.bases):
            rows = mine.filter(pa.compute.equal(mine["base"], base))
            if rows.num_rows:
                sources.append(("", Source(url, partial(_reject_batches, rows), None, None, plan.image_columns[base])))
    config = latest.config.model_copy(update={"first_shard": latest.config.first_shard + latest.num_shards})
    planned = plan_sources(job, sources, config)
    # Labels are numbers already; their names are those of the dataset.
    plan = planned.plan.model_copy(update={"classes": latest.classes, "num_classes": published.version.num_classes})
    plan = store_plan(job.store, Planned(plan, planned.parts, planned.probe))
    return _pack_and_publish(job, plan, published, lease, retries=True)


def _reject_batches(rows: pa.Table, parallel_map: Any) -> Iterator[pa.RecordBatch]:
    columns = rows.drop_columns(["run"]).append_column("run", pa.nulls(rows.num_rows, pa.string())).select(COLUMNS)
    yield from columns.combine_chunks().to_batches(max_chunksize=_REJECT_BATCH_ROWS)


def _require(store: Store) -> Published:
    published = published_version(store)
    if published is None:
        raise NotFound(f"{store.url} holds no published dataset; create one with `pipeline shard`")
    return published


def _latest_plan(store: Store, version: ManifestVersion) -> Plan:
    try:
        return read_plan(store, version.plan_ids[-1])
    except NotFound as error:
        raise ConfigError(
            f"{store.url} was indexed, not packed, so nothing can be added to it; pack its tars with `pipeline shard`"
        ) from error


def _known_rows(store: Store, version: ManifestVersion) -> Iterator[pa.Table]:
    """Yield the rows of all plans of a dataset, with those left out for equal image bytes."""
    for plan_id in version.plan_ids:
        plan = read_plan(store, plan_id)
        for key in (*plan.parts, *([duplicates_key(plan_id)] if plan.num_duplicates else [])):
            with open_file(f"{store.url}/{key}") as file:
                for batch in pq.ParquetFile(file, pre_buffer=False).iter_batches(
                    columns=["source", "num_bytes", "run"], use_threads=False
                ):
                    yield pa.Table.from_batches([batch])


def _stored(job: Job, planned: Planned, earlier: Sequence[str] = ()) -> Plan:
    if planned.plan.config.skip_duplicates:
        with job.reporting.progress("reading for duplicates", planned.plan.num_samples, "images") as advance:
            planned = leave_out_duplicates(
                job.store,
                planned,
                job.scratch,
                job.pool,
                earlier=earlier,
                on_images=lambda count: advance(count, 0),
            )
    return store_plan(job.store, planned)


def _pack_and_publish(
    job: Job, plan: Plan, before: Published | None, lease: Lease, *, retries: bool = False
) -> ManifestVersion:
    # Another run may have published since this one looked; a published shard is never taken back.
    now = published_version(job.store)
    if now and plan.plan_id in now.version.plan_ids:
        return now.version
    if (now and now.version) != (before and before.version):
        raise Conflict(f"{job.store.url} was published by another run meanwhile; run again")
    job.reporting.event("plan", plan_id=plan.plan_id, num_samples=plan.num_samples, num_shards=plan.num_shards)
    try:
        with job.reporting.progress("packing", plan.num_samples, "images") as advance:
            packed = pack_plan(
                job.store,
                plan,
                job.pool,
                lease,
                max_reject_fraction=job.max_reject_fraction,
                on_images=advance,
                on_event=job.reporting.event,
            )
    except KeyboardInterrupt as error:
        raise interrupted(job.store, plan) from error
    if packed.num_rejects == packed.num_done and not retries:
        raise EmptySource(f"all {plan.num_samples} pictures were rejected: {dict(packed.reject_reasons)}")
    lease.check(now=True)
    _check_records(job.store, plan)
    if not plan.config.skip_duplicates:
        earlier = Dataset(job.store, before.version).shards if before else []
        conflicts_of_shards(job.store, packed.tables(0)[0].to_pylist(), plan.plan_id, job.scratch, earlier)
    version = publish(job.store, before, _addition(job.store, plan, packed, before, retries=retries))
    job.reporting.event("published", **version.model_dump())
    return version


def _check_records(store: Store, plan: Plan) -> None:
    """Make sure that what was packed is still there: `pipeline gc` may have removed it as abandoned."""
    committed = sum(1 for _ in store.list(f"commits/{plan.plan_id}/"))
    if committed != plan.num_shards:
        raise Conflict(
            f"{store.url}: {committed:,} of {plan.num_shards:,} shards are there; somebody removed the others "
            f"during this run. Run again to pack them"
        )


def _addition(store: Store, plan: Plan, packed: Packed, before: Published | None, *, retries: bool) -> Addition:
    shards, blocks = packed.tables(before.version.num_shards if before else 0)
    rejecting = [packed.rejecting[number] for number in sorted(packed.rejecting)]
    return Addition(
        plan_id=plan.plan_id,
        split=plan.config.split,
        shards=shards,
        blocks=blocks,
        rejects=(read_table(store, key) for key in rejecting),
        retries=retries,
        classes=plan.classes,
        num_classes=plan.num_classes,
        num_duplicates=plan.num_duplicates,
        has_fingerprints=plan.config.image.check == "decode",
    )
