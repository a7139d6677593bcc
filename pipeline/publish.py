"""From commit records to a manifest version that readers can open."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import metadata

from pydantic import ValidationError

from pipeline.errors import ConfigError, Conflict, NotFound
from pipeline.fingerprint import DESCRIPTOR_VERSION
from pipeline.manifest import (
    BLOCK_SCHEMA,
    POINTER_KEY,
    SHARD_SCHEMA,
    CommitRecord,
    ManifestVersion,
    sha256_hex,
    table_of,
    to_parquet,
    version_key,
)
from pipeline.store.base import Store, commit


def current_version(store: Store) -> ManifestVersion | None:
    """Gives the version that MANIFEST.json points to, or None where nothing is published.

    Raises:
        ConfigError: There is a MANIFEST.json of another kind.
    """
    try:
        body = store.read(POINTER_KEY)
    except NotFound:
        return None
    try:
        return ManifestVersion.model_validate_json(body)
    except ValidationError as error:
        raise ConfigError(
            f"{store.url}/{POINTER_KEY} is not of a dataset that this release wrote; choose another destination"
        ) from error


def reject_reasons(records: Iterable[CommitRecord]) -> dict[str, int]:
    """Gives the number of rejected rows by reason."""
    total: Counter[str] = Counter()
    for record in records:
        total.update(record.reject_reasons)
    return dict(sorted(total.items()))


def publish(store: Store, records: Sequence[CommitRecord], classes: Sequence[str], num_classes: int) -> ManifestVersion:
    """Writes version 1 of a dataset from its complete set of commit records, then swings the pointer to it.

    Every object is created if absent and the pointer comes last, so a crash anywhere leaves either no version or a
    whole one, and a second writer with the same plan ends with the same objects.

    Raises:
        Conflict: The destination already has another dataset.
    """
    ordered = sorted(records, key=lambda record: record.shard)
    shard_names = set(SHARD_SCHEMA.names)
    shards = to_parquet(table_of([record.model_dump(include=shard_names) for record in ordered], SHARD_SCHEMA))
    blocks = to_parquet(
        table_of(
            [{"shard": record.shard} | block.model_dump() for record in ordered for block in record.blocks],
            BLOCK_SCHEMA,
        )
    )
    classes_body = (json.dumps(list(classes), ensure_ascii=False, indent=0) + "\n").encode()
    plan_ids = tuple(sorted({record.plan_id for record in ordered}))
    version = ManifestVersion(
        version=1,
        split=ordered[0].split,
        num_shards=len(ordered),
        num_samples=sum(record.num_samples for record in ordered),
        num_bytes=sum(record.num_bytes for record in ordered),
        num_rejects=sum(record.num_rejects for record in ordered),
        reject_reasons=reject_reasons(ordered),
        num_classes=num_classes,
        shards="manifests/v000001.shards.parquet",
        shards_sha256=sha256_hex(shards),
        blocks="manifests/v000001.blocks.parquet",
        blocks_sha256=sha256_hex(blocks),
        classes="manifests/v000001.classes.json" if classes else None,
        classes_sha256=sha256_hex(classes_body) if classes else None,
        descriptor=DESCRIPTOR_VERSION,
        plan_ids=plan_ids,
        writer=f"bit-pretrain {metadata.version('bit-pretrain')}",
    )
    commit(store, version.shards, shards)
    commit(store, version.blocks, blocks)
    if version.classes:
        commit(store, version.classes, classes_body)
    commit(store, version_key(1), version.to_json())
    if not store.create(POINTER_KEY, version.to_json()):
        found = current_version(store)
        if found != version:
            raise Conflict(
                f"{store.url} holds another dataset (plans {found.plan_ids if found else ()}); nothing published"
            )
    return version
