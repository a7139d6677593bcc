"""What is computed from the pixels of a set beyond its fingerprints: variant codes and embeddings, as stored tasks.

Variant codes are computed for the downstream side only. Vectors are stored by the shard's digest and the embedding's
version, so that nothing upstream is embedded again for a new test set.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.audit.base.sets import Pinned, open_pinned, read_picture
from cluster.audit.base.stored_tasks import (
    AuditJob,
    Quarantined,
    compiled_digest,
    key_of,
    load_or_compute,
    stored_results,
)
from cluster.audit.search.embedding import embedding
from cluster.audit.search.embedding.embedding import DIMENSIONS, Embedder, sign_codes
from cluster.audit.search.join import VARIANTS_COLUMN
from cluster.audit.search.variants import VARIANTS_VERSION, variant_codes
from pipeline.base.errors import BadImage
from pipeline.dataset.dataset import Address
from pipeline.image.decode import Pixels, decode
from pipeline.image.fingerprint import CODE_BYTES, DESCRIPTOR_VERSION
from pipeline.store.url import open_store

VARIANTS = "variants"  # the kind of the features that are no embedding
_VARIANTS_SCHEMA = pa.schema([(VARIANTS_COLUMN, pa.list_(pa.binary(CODE_BYTES))), ("failed", pa.string())])
_VECTORS_SCHEMA = pa.schema(
    [("sign_code", pa.binary(CODE_BYTES)), ("vector", pa.list_(pa.float16(), DIMENSIONS)), ("failed", pa.string())]
)


@dataclass(frozen=True)
class FeatureTask:
    """The features of one shard.

    Attributes:
        kind: VARIANTS, or the embedding's model.
        work: URL of the work folder.
    """

    side: Pinned
    shard: int
    kind: str
    work: str
    result_key: str

    def __str__(self) -> str:
        return f"{self.kind} of shard {self.shard} of {self.side.url}"


@lru_cache(maxsize=1)
def embedder_of(model: str) -> Embedder:
    """Load an embedding, once per process. Raises ConfigError as embedding.load."""
    return embedding.load(model)


def feature_tasks(side: Pinned, kind: str, job: AuditJob) -> list[FeatureTask]:
    """Return the tasks of all shards of a set, in order."""
    version = (
        [VARIANTS_VERSION, DESCRIPTOR_VERSION, compiled_digest()] if kind == VARIANTS else embedder_of(kind).version
    )
    folder = "variants" if kind == VARIANTS else "vectors"
    return [
        FeatureTask(
            side, row["shard"], kind, job.work.url, key_of(folder, row["blake3"], row["sidecar_sha256"], version)
        )
        for row in open_pinned(side).shards
    ]


def compute_features(
    tasks: Sequence[FeatureTask], title: str, job: AuditJob
) -> tuple[dict[int, str], list[tuple[int, int, str]]]:
    """Compute the features that are missing; their tables are stored under the keys of the tasks.

    Args:
        tasks: Of one set.
        title: Of the progress bar.
        job: Where they run.

    Returns:
        The reason of each quarantined shard, and (shard, row, reason) of each unreadable picture.
    """
    quarantined, failed = {}, []
    sizes = open_pinned(tasks[0].side).shards.table["num_samples"].to_pylist() if tasks else []
    with job.reporting.progress(title, sum(sizes), "pictures") as advance:
        for task, result in stored_results(job, shard_features, tasks, lambda task: advance(sizes[task.shard], 0)):
            if isinstance(result, Quarantined):
                quarantined[task.shard] = result.reason
                continue
            reasons = enumerate(result["failed"].to_pylist())
            failed += [(task.shard, row, reason) for row, reason in reasons if reason]
    return quarantined, sorted(failed)


def shard_features(task: FeatureTask) -> pa.Table:
    """Return a row per picture of the shard: its codes or vector, and in `failed` the error of one that is broken."""
    describe = _variants if task.kind == VARIANTS else partial(_vector, embedder_of(task.kind))
    schema = _VARIANTS_SCHEMA if task.kind == VARIANTS else _VECTORS_SCHEMA
    return load_or_compute(open_store(task.work), task.result_key, partial(_describe_shard, task, describe, schema))


def _describe_shard(
    task: FeatureTask, describe: Callable[[Pixels | None], dict[str, Any]], schema: pa.Schema
) -> pa.Table:
    dataset = open_pinned(task.side)
    rows = []
    for row in range(dataset.samples(task.shard).num_rows):
        pixels, failed = None, None
        data = read_picture(dataset, Address(task.shard, row))
        try:
            pixels = decode(data)
        except BadImage as error:
            failed = str(error)
        rows.append(describe(pixels) | {"failed": failed})
    return pa.Table.from_pylist(rows, schema=schema)


def _variants(pixels: Pixels | None) -> dict[str, Any]:
    return {VARIANTS_COLUMN: [] if pixels is None else variant_codes(pixels)}


def _vector(embedder: Embedder, pixels: Pixels | None) -> dict[str, Any]:
    vector = np.zeros(DIMENSIONS, np.float16) if pixels is None else embedder.embed([pixels])[0].astype(np.float16)
    return {"sign_code": sign_codes(vector[None].astype(np.float32))[0].tobytes(), "vector": list(vector)}


def numbered(shard: int, table: pa.Table) -> pa.Table:
    """Add `shard` and `row` in front of the columns of a shard's table."""
    rows = pa.array(np.arange(table.num_rows, dtype=np.int32))
    return table.add_column(0, "row", rows).add_column(0, "shard", pa.array(np.full(table.num_rows, shard, np.int32)))
