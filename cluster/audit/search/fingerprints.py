"""Fingerprints of third-party tars: an index of them that can be audited like a dataset.

A tar is fingerprinted once per descriptor version, whatever its name and whichever sets it is in. Two records lead to
its sidecar: one by name, size and modification time, so that a rerun reads nothing, and one by its bytes, so that a
moved tar is read but not decoded.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import blake3
import pyarrow as pa

from cluster.audit.base.stored_tasks import AuditJob, Quarantined, results_of
from pipeline.base.errors import EmptySource, NotFound, ServiceError
from pipeline.dataset.dataset import open_dataset
from pipeline.dataset.publish import Addition, publish
from pipeline.dataset.schema import (
    DIGEST_BYTES,
    PIXELS_COLUMN,
    CommitRecord,
    ManifestVersion,
    sha256_hex,
    to_parquet,
)
from pipeline.dataset.tables import read_table
from pipeline.dataset.versions import published_version
from pipeline.image.decode import decode
from pipeline.image.fingerprint import DESCRIPTOR_VERSION
from pipeline.packing.foreign_tars.index_tars import described_tar, opened_tar, whole_tar
from pipeline.packing.foreign_tars.open_any import is_published, tars_of
from pipeline.packing.pack_run import Packed
from pipeline.packing.plan import ShardConfig
from pipeline.store.any_url import size_of
from pipeline.store.base import Entry, Store, commit
from pipeline.store.url import absolute_url, open_store

_KEY_DIGITS = 32


@dataclass(frozen=True)
class FingerprintTask:
    """One tar.

    Attributes:
        out: URL of the index.
        tar: Absolute URL.
        identity: Digest of its name, size, modification time and the descriptor version.
    """

    out: str
    tar: str
    identity: str

    def __str__(self) -> str:
        return f"fingerprints of {self.tar}"


def fingerprint_set(url: str, out: Store, job: AuditJob) -> ManifestVersion:
    """Fingerprint the tars that a URL names; a rerun continues, and reads no tar that has its fingerprints.

    Args:
        url: Of a tar, a folder or a pattern of tars, several joined by `::`; or of a dataset that was packed without
            fingerprints or with those of another release.
        out: Receives sidecars and a manifest, whose new version replaces the one before.
        job: Where tars are read.

    Raises:
        NotFound: No tar matches.
        CorruptShard: A tar is damaged.
        EmptySource: No picture is usable.
        ServiceError: A tar was quarantined.
    """
    tars = _dataset_tars(url) if is_published(url) else tars_of(url)
    tasks = [FingerprintTask(out.url, tar.key, _identity(tar)) for tar in tars]
    number_of = {task: number for number, task in enumerate(tasks)}
    packed, quarantined = Packed(), []
    with job.reporting.progress("fingerprinting", len(tasks), "tars") as advance:
        for task, record in results_of(job.pool, fingerprint_tar, tasks, job.reporting.event):
            if isinstance(record, Quarantined):
                quarantined.append(f"{task.tar} ({record.reason})")
                continue
            named = record.model_copy(update={"plan_shard": number_of[task], "path": task.tar})
            packed.add(named)
            job.reporting.event("shard", **named.model_dump(exclude={"blocks"}))
            advance(1, record.num_bytes)
    if quarantined:
        raise ServiceError(
            f"{len(quarantined)} of {len(tasks)} tars could not be fingerprinted, first {quarantined[0]}; nothing is "
            f"published. Repair them or leave them out of the pattern; the fingerprints of the others are kept"
        )
    return _published(url, out, packed, sha256_hex("\n".join(task.identity for task in tasks).encode())[:16])


def _dataset_tars(url: str) -> list[Entry]:
    dataset = open_dataset(url)
    tars = [dataset.shard_url(row["shard"]) for row in dataset.shards]
    return [Entry(absolute_url(tar), size_of(tar)) for tar in tars]


def _identity(tar: Entry) -> str:
    identity = f"{DESCRIPTOR_VERSION}\t{tar.key}\t{tar.num_bytes}\t{tar.modified}"
    return hashlib.sha256(identity.encode()).hexdigest()[:_KEY_DIGITS]


def _folder() -> str:
    return f"fingerprints/{DESCRIPTOR_VERSION.replace('/', '-')}"


def fingerprint_tar(task: FingerprintTask) -> CommitRecord:
    """Return the record of a tar; fingerprint it if there is none."""
    store, by_name = open_store(task.out), f"{_folder()}/by-name/{task.identity}.json"
    try:
        return CommitRecord.model_validate_json(store.read(by_name))
    except NotFound:
        record = _record_by_bytes(store, task.tar)
    commit(store, by_name, record.to_json())
    return record


def _record_by_bytes(store: Store, tar: str) -> CommitRecord:
    with opened_tar(tar) as file:
        _, digest = whole_tar(file)
        by_bytes = f"{_folder()}/{digest[:_KEY_DIGITS]}"
        try:
            return CommitRecord.model_validate_json(store.read(f"{by_bytes}.json"))
        except NotFound:
            pixels: list[bytes] = []
            file.seek(0)
            packed = described_tar(
                file, tar, digest, digest, ShardConfig().block_bytes, lambda data: pixels.append(pixel_digest(data))
            )
    kind = pa.binary(DIGEST_BYTES)
    sidecar = to_parquet(packed.samples.append_column(PIXELS_COLUMN, pa.array(pixels, kind)))
    rejects = f"{by_bytes}-rejects.parquet" if packed.rejects.num_rows else None
    if rejects:
        commit(store, rejects, to_parquet(packed.rejects))
    commit(store, f"{by_bytes}.parquet", sidecar)
    reasons = packed.rejects["reason"].to_pylist()
    labels = [label for sample in packed.samples["labels"].to_pylist() for label in sample]
    record = CommitRecord(
        plan_id=digest[:16],
        plan_shard=0,
        split=ShardConfig().split,
        path=tar,
        num_samples=packed.samples.num_rows,
        num_bytes=packed.num_bytes,
        blake3=packed.blake3,
        sidecar=f"{by_bytes}.parquet",
        sidecar_bytes=len(sidecar),
        sidecar_sha256=sha256_hex(sidecar),
        num_rejects=packed.rejects.num_rows,
        rejects=rejects,
        reject_reasons={reason: reasons.count(reason) for reason in sorted(set(reasons))},
        highest_label=max(labels, default=-1),
        blocks=packed.blocks,
    )
    commit(store, f"{by_bytes}.json", record.to_json())
    return record


def pixel_digest(data: bytes) -> bytes:
    """Return a digest of the upright RGB pixels and their shape; lossless copies have the same one."""
    pixels = decode(data)
    return blake3.blake3(repr(pixels.shape).encode() + pixels.tobytes()).digest(length=DIGEST_BYTES)


def _published(url: str, out: Store, packed: Packed, plan_id: str) -> ManifestVersion:
    before = published_version(out)
    if before and before.version.plan_ids == (plan_id,):
        return before.version
    shards, blocks = packed.tables(0)
    if not shards.num_rows:
        raise EmptySource(f"{url}: no picture is usable ({dict(packed.reject_reasons)})")
    addition = Addition(
        plan_id=plan_id,
        split=ShardConfig().split,
        shards=shards,
        blocks=blocks,
        rejects=_rejects(out, [packed.rejecting[number] for number in sorted(packed.rejecting)]),
        retries=False,
        classes=(),
        num_classes=packed.highest_label + 1,
        num_duplicates=0,
        has_fingerprints=True,
    )
    return publish(out, before, addition, replaces=True)


def _rejects(out: Store, keys: Sequence[str]) -> Iterable[pa.Table]:
    return (read_table(out, key) for key in keys)
