"""From commit records to a manifest version that readers can open."""

import io
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.errors import Conflict
from pipeline.dataset.schema import (
    POINTER_KEY,
    REJECT_SCHEMA,
    ManifestVersion,
    sha256_hex,
    to_parquet,
    version_key,
)
from pipeline.dataset.tables import read_table
from pipeline.dataset.versions import Published, outstanding_rejects, published_version
from pipeline.image.fingerprint import DESCRIPTOR_VERSION
from pipeline.store.base import Store, commit


@dataclass(frozen=True)
class Addition:
    """What a new version adds to the one before it.

    Attributes:
        plan_id: Where it comes from.
        split: First part of the shard names.
        shards: Rows of schema.SHARD_SCHEMA, numbered after those that are there.
        blocks: Their rows of schema.BLOCK_SCHEMA.
        rejects: Tables of schema.REJECT_SCHEMA.
        retries: Whether it is made of the rejects of the version before, which it resolves.
        classes: Class names by label; may be empty.
        num_classes: At least the number of names.
        num_duplicates: Rows left out for equal image bytes.
        has_fingerprints: Whether all of its samples have one.
    """

    plan_id: str
    split: str
    shards: pa.Table
    blocks: pa.Table
    rejects: Iterable[pa.Table]
    retries: bool
    classes: Sequence[str]
    num_classes: int
    num_duplicates: int
    has_fingerprints: bool


def publish(store: Store, before: Published | None, addition: Addition, *, replaces: bool = False) -> ManifestVersion:
    """Write the next version, then swing the pointer to it. With `replaces` it holds nothing of the one before.

    All objects but the pointer are created if absent, under names that hold version and content; the pointer is swung
    by compare-and-swap. So a crash anywhere leaves the old version or the new one, and a second writer of the same
    addition ends with the same objects.

    Raises:
        Conflict: Another version was published meanwhile.
    """
    old = before.version if before and not replaces else None
    number = (before.version.version if before else 0) + 1
    name = version_key(number).removesuffix(".json")
    shards = to_parquet(_joined(store, (old.shards, old.shards_sha256) if old else None, addition.shards))
    blocks = to_parquet(_joined(store, (old.blocks, old.blocks_sha256) if old else None, addition.blocks))
    rejects, num_rejects, reasons = _rejects(store, old, addition)
    classes = _classes_body(addition.classes)
    version = ManifestVersion(
        version=number,
        split=addition.split,
        num_shards=(old.num_shards if old else 0) + addition.shards.num_rows,
        num_samples=(old.num_samples if old else 0)
        + pa.compute.sum(addition.shards["num_samples"], min_count=0).as_py(),
        num_bytes=(old.num_bytes if old else 0) + pa.compute.sum(addition.shards["num_bytes"], min_count=0).as_py(),
        num_rejects=num_rejects,
        num_duplicates=(old.num_duplicates if old else 0) + addition.num_duplicates,
        reject_reasons=reasons,
        num_classes=max(old.num_classes if old else 0, addition.num_classes),
        shards=_table_key(name, shards, "shards.parquet"),
        shards_sha256=sha256_hex(shards),
        blocks=_table_key(name, blocks, "blocks.parquet"),
        blocks_sha256=sha256_hex(blocks),
        classes=_table_key(name, classes, "classes.json") if classes else None,
        classes_sha256=sha256_hex(classes) if classes else None,
        rejects=_table_key(name, rejects, "rejects.parquet") if rejects else None,
        rejects_sha256=sha256_hex(rejects) if rejects else None,
        # That of the oldest shards; an audit refuses a set with another one beside it.
        descriptor=(old.descriptor if old else DESCRIPTOR_VERSION) if addition.has_fingerprints else None,
        plan_ids=(*(old.plan_ids if old else ()), addition.plan_id),
        writer=f"bit-pretrain {metadata.version('bit-pretrain')}",
    )
    for key, body in (
        (version.shards, shards),
        (version.blocks, blocks),
        (version.classes, classes),
        (version.rejects, rejects),
    ):
        if key and body:
            commit(store, key, body)
    _swing(store, before, version)
    return version


def _swing(store: Store, before: Published | None, version: ManifestVersion) -> None:
    body = version.to_json()
    if before:
        commit(store, version_key(before.version.version), before.body)
    swung = False
    with suppress(Conflict):
        if before:
            store.replace(POINTER_KEY, body, before.tag)
            swung = True
        else:
            swung = store.create(POINTER_KEY, body)
    if not swung:
        now = published_version(store)
        if now is None or now.version != version:
            plans = now.version.plan_ids if now else ()
            raise Conflict(f"{store.url} was published by another run meanwhile (plans {', '.join(plans)}); run again")
    commit(store, version_key(version.version), body)


def _table_key(name: str, body: bytes, ending: str) -> str:
    return f"{name}-{sha256_hex(body)[:8]}.{ending}"


def _joined(store: Store, old: tuple[str, str] | None, added: pa.Table) -> pa.Table:
    return pa.concat_tables([read_table(store, *old), added]) if old else added


def _classes_body(classes: Sequence[str]) -> bytes | None:
    return (json.dumps(list(classes), ensure_ascii=False, indent=0) + "\n").encode() if classes else None


def _rejects(store: Store, old: ManifestVersion | None, addition: Addition) -> tuple[bytes | None, int, dict[str, int]]:
    """Return the outstanding rejects as Parquet, their number and their reasons."""
    sink, count = io.BytesIO(), 0
    reasons: dict[str, int] = {}
    earlier = [outstanding_rejects(store, old)] if old and not addition.retries else []
    with pq.ParquetWriter(sink, REJECT_SCHEMA, compression="zstd", write_statistics=False) as writer:
        for table in (*earlier, *addition.rejects):
            writer.write_table(table)
            count += table.num_rows
            for found in table["reason"].combine_chunks().value_counts().to_pylist():
                reasons[found["values"]] = reasons.get(found["values"], 0) + found["counts"]
    return (sink.getvalue() if count else None), count, dict(sorted(reasons.items()))
