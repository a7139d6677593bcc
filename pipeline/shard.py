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

from pipeline.commit import read_plan
from pipeline.console import silent
from pipeline.duplicates import leave_out_duplicates
from pipeline.errors import ConfigError, EmptySource, NotFound
from pipeline.lease import Lease
from pipeline.manifest import ManifestVersion, from_parquet
from pipeline.plan import SHARDS_PER_PART, Plan, ShardConfig, part_key
from pipeline.planner import Planned, make_plan, store_plan
from pipeline.probe import prober
from pipeline.publish import Addition, Published, outstanding_rejects, publish, published_version
from pipeline.run import Packed, pack_plan
from pipeline.sources.files import open_file
from pipeline.sources.rows import COLUMNS, Source
from pipeline.store.base import Store
from pipeline.work.pools import Pool
from pipeline.work.schedule import Attempt, run_calls

_REJECT_BATCH_ROWS = 65_536


@dataclass(frozen=True)
class Reporting:
    """Where a job tells how far it is.

    Attributes:
        progress: Context of a progress display of (what, total or None, unit); gives a function of (count, bytes).
        event: Is called with the name and the values of each event.
    """

    progress: Callable[[str, int | None, str], Any] = silent
    event: Callable[..., None] = lambda name, **values: None


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
    """Plans the rows of all sources, in the scratch folder; see planner.make_plan for options and errors."""

    def mapped(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return (result for _, result in run_calls(job.pool, partial(_call, function), items))

    with job.reporting.progress("planning", None, "rows") as advance:
        return make_plan(
            sources,
            config,
            job.scratch,
            probe=prober(config.image),
            mapped=mapped,
            on_rows=lambda count: advance(count, 0),
            **options,
        )


def _call(function: Callable[[Any], Any], attempt: Attempt[Any]) -> Any:
    return function(attempt.call)


def request_of(sources: Sequence[tuple[str, Source]], config: ShardConfig, settings: Any) -> str | None:
    """Gives the digest of a request whose sources need not be listed again while their files are unchanged."""
    if any(source.identity is None for _, source in sources):
        return None
    told = [[prefix, source.url, source.identity] for prefix, source in sources]
    return hashlib.sha256(f"{json.dumps(told)}\n{config.model_dump_json()}\n{settings!r}".encode()).hexdigest()[:16]


def find_plan(store: Store, **wanted: str | None) -> Plan | None:
    """Gives the stored plan whose `request` or `slimmed_from` is the one wanted; none for None."""
    if None in wanted.values():
        return None
    for entry in store.list("plans/"):
        if entry.key.endswith("/plan.json"):
            plan = Plan.model_validate_json(store.read(entry.key))
            if all(getattr(plan, name) == value for name, value in wanted.items()):
                return plan
    return None


def shard(
    job: Job, sources: Sequence[tuple[str, Source]], config: ShardConfig, settings: Any = None
) -> ManifestVersion:
    """Packs sources into a new dataset.

    Args:
        job: See Job.
        sources: Each with the prefix of its names.
        config: See ShardConfig.
        settings: How the sources are read, besides themselves: part of the identity of the request.

    Raises:
        ConfigError: The destination holds a dataset made from other inputs.
        EmptySource: There is no row, or every row was rejected.
        TooManyRejects: More rows than allowed were rejected; nothing is published.
        Fenced: A newer run has taken over.
        StorageError: As the destination.
    """
    request = request_of(sources, config, settings)
    published = published_version(job.store)
    plan = find_plan(job.store, request=request)
    if plan is None:
        planned = plan_sources(job, sources, config, request=request)
        if config.skip_duplicates:
            plan = find_plan(job.store, slimmed_from=planned.plan.plan_id)
        if published and plan is None and planned.plan.plan_id != published.version.plan_ids[0]:
            raise _other_dataset(job.store, published, planned.plan)
        plan = plan or _stored(job, planned)
    if published and plan.plan_id != published.version.plan_ids[0]:
        raise _other_dataset(job.store, published, plan)
    return published.version if published else _pack_and_publish(job, plan, None, retries=False)


def _other_dataset(store: Store, published: Published, plan: Plan) -> ConfigError:
    return ConfigError(
        f"{store.url} holds a dataset of other inputs or settings (plan {', '.join(published.version.plan_ids)}, "
        f"this one {plan.plan_id}); choose another destination, or `pipeline append` to it"
    )


def append(job: Job, sources: Sequence[tuple[str, Source]], settings: Any = None) -> ManifestVersion:
    """Packs what the dataset does not have yet into a new version of it, with the settings it was made with.

    Readers of the older version are not disturbed. Rows with a name that the dataset has are left out.

    Raises:
        NotFound: Nothing is published there.
        ConfigError: A picture changed, or labels are numbered otherwise.
        BitError: As `shard`.
    """
    published = _require(job.store)
    latest = _latest_plan(job.store, published.version)
    config = latest.config.model_copy(update={"first_shard": latest.config.first_shard + latest.num_shards})
    request = request_of(sources, config, settings)
    plan = find_plan(job.store, request=request)
    if plan is None:
        planned = plan_sources(
            job,
            sources,
            config,
            request=request,
            known=_known_rows(job.store, published.version),
            classes=latest.classes,
        )
        if planned.plan.num_samples == 0:
            return published.version
        if planned.plan.classes and not latest.classes and published.version.num_classes:
            raise ConfigError(
                f"{job.store.url} has numbers for labels, the new source has names; give it numbers, or --classes"
            )
        plan = _stored(job, planned)
    return _pack_and_publish(job, plan, published, retries=False)


def retry_rejects(job: Job) -> ManifestVersion:
    """Packs the pictures that were rejected and can be used now into a new version; those that cannot stay rejected.

    Raises:
        NotFound: Nothing is published there.
        BitError: As `shard`.
    """
    published = _require(job.store)
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
    return _pack_and_publish(
        job, store_plan(job.store, Planned(plan, planned.parts, planned.probe)), published, retries=True
    )


def _reject_batches(rows: pa.Table, mapped: Any) -> Iterator[pa.RecordBatch]:
    columns = rows.drop_columns(["run"]).append_column("run", pa.nulls(rows.num_rows, pa.string())).select(COLUMNS)
    yield from columns.combine_chunks().to_batches(max_chunksize=_REJECT_BATCH_ROWS)


def _require(store: Store) -> Published:
    published = published_version(store)
    if published is None:
        raise NotFound(f"{store.url} holds no published dataset; make one with `pipeline shard`")
    return published


def _latest_plan(store: Store, version: ManifestVersion) -> Plan:
    try:
        return read_plan(store, version.plan_ids[-1])
    except NotFound as error:
        raise ConfigError(
            f"{store.url} was indexed, not packed, so nothing can be added to it; pack its tars with `pipeline shard`"
        ) from error


def _known_rows(store: Store, version: ManifestVersion) -> Iterator[pa.Table]:
    for plan_id in version.plan_ids:
        plan = read_plan(store, plan_id)
        for part in range(-(-plan.num_shards // SHARDS_PER_PART)):
            with open_file(f"{store.url}/{part_key(plan_id, part)}") as file:
                parts = pq.ParquetFile(file, pre_buffer=False)
                for batch in parts.iter_batches(columns=["source", "num_bytes", "run"], use_threads=False):
                    yield pa.Table.from_batches([batch])


def _stored(job: Job, planned: Planned) -> Plan:
    if planned.plan.config.skip_duplicates:
        with job.reporting.progress("reading for duplicates", planned.plan.num_samples, "images") as advance:
            planned = leave_out_duplicates(
                job.store, planned, job.scratch, job.pool, on_images=lambda count: advance(count, 0)
            )
    return store_plan(job.store, planned)


def _pack_and_publish(job: Job, plan: Plan, before: Published | None, *, retries: bool) -> ManifestVersion:
    lease = Lease(job.store)
    job.reporting.event("plan", plan_id=plan.plan_id, num_samples=plan.num_samples, num_shards=plan.num_shards)
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
    if packed.num_rejects == packed.num_done and not retries:
        raise EmptySource(f"all {plan.num_samples} pictures were rejected: {dict(packed.reject_reasons)}")
    lease.check(now=True)
    version = publish(job.store, before, _addition(job.store, plan, packed, before, retries=retries))
    job.reporting.event("published", **version.model_dump())
    return version


def _addition(store: Store, plan: Plan, packed: Packed, before: Published | None, *, retries: bool) -> Addition:
    shards, blocks = packed.tables(before.version.num_shards if before else 0)
    rejecting = [packed.rejecting[number] for number in sorted(packed.rejecting)]
    return Addition(
        plan_id=plan.plan_id,
        split=plan.config.split,
        shards=shards,
        blocks=blocks,
        rejects=(from_parquet(store.read(key)) for key in rejecting),
        retries=retries,
        classes=plan.classes,
        num_classes=plan.num_classes,
        num_duplicates=plan.num_duplicates,
        has_fingerprints=plan.config.image.check == "decode",
    )
