"""What is computed from the pixels of a set beyond its fingerprints: further codes and embeddings, as stored tasks.

Codes of variants and crops are computed for the downstream side only, those of insets for the upstream side only.
All are stored by the shard's digest and a version, so that nothing upstream is computed again for a new test set.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.audit.base.sets import Pinned, Sides, open_pinned, read_picture
from cluster.audit.base.stored_tasks import (
    AuditJob,
    Quarantined,
    compiled_digest,
    key_of,
    load_or_compute,
    parts_of,
    shard_results,
)
from cluster.audit.base.tables import AuditConfig
from cluster.audit.search.crops import CROPS_VERSION, crop_codes
from cluster.audit.search.embedding import models
from cluster.audit.search.embedding.embedding import EMBEDDING_VERSION, VIEW_COLUMN, ViewVectors
from cluster.audit.search.embedding.models import DIMENSIONS, Embedder
from cluster.audit.search.insets import INSETS_VERSION, inset_codes
from cluster.audit.search.join import CROPS_COLUMN, INSETS_COLUMN, VARIANTS_COLUMN
from cluster.audit.search.variants import VARIANTS_VERSION, variant_codes
from pipeline.base.errors import BadImage
from pipeline.dataset.dataset import Address
from pipeline.dataset.tables import read_table
from pipeline.image.decode import Pixels, decode
from pipeline.image.fingerprint import CODE_BYTES, DESCRIPTOR_VERSION
from pipeline.store.url import open_store

VARIANTS, CROPS, INSETS = "variants", "crops", "insets"  # the kinds of features that are no embedding
_VERSIONS = {VARIANTS: VARIANTS_VERSION, CROPS: CROPS_VERSION, INSETS: INSETS_VERSION}
_CODES_TYPE = pa.list_(pa.binary(CODE_BYTES))


@dataclass(frozen=True)
class FeatureTask:
    """The features of one shard, or of a part of it.

    Attributes:
        kind: VARIANTS, CROPS, INSETS, or the embedding's model.
        work: URL of the work folder.
        rows: Pictures of the shard that are described.
        parts: Tasks whose tables, in a row, are that of the shard; none where it is described at once.
    """

    side: Pinned
    shard: int
    kind: str
    work: str
    result_key: str
    rows: range
    parts: tuple["FeatureTask", ...] = ()

    def __str__(self) -> str:
        return f"{self.kind} of pictures {self.rows.start} to {self.rows.stop} of shard {self.shard} of {self.side.url}"


@dataclass(frozen=True)
class DownFeatures:
    """Where the features of the downstream side are stored.

    Attributes:
        work: URL of the work folder.
        variants: Keys of the variant codes of each shard; empty within one set.
        crops: Keys of the codes of crops of each shard; empty where these are not asked for.
        vectors: Keys of the vectors of each shard; empty without an embedding.
    """

    work: str
    variants: tuple[str, ...] = ()
    crops: tuple[str, ...] = ()
    vectors: tuple[str, ...] = ()


def down_features(config: AuditConfig, sides: Sides, job: AuditJob) -> DownFeatures:
    """Return where the features of the downstream side are stored, or will be."""
    kinds: list[list[FeatureTask]] = [
        [] if sides.is_within else feature_tasks(sides.down, VARIANTS, job),
        feature_tasks(sides.down, CROPS, job) if config.crops else [],
        feature_tasks(sides.down, config.embedding, job) if config.embedding else [],
    ]
    return DownFeatures(job.work.url, *(tuple(task.result_key for task in tasks) for tasks in kinds))


@lru_cache(maxsize=1)
def down_vectors(down: DownFeatures) -> ViewVectors:
    """Read the vectors of the downstream side, once per process."""
    work = open_store(down.work)
    parts = [vector_rows(shard, read_table(work, key)) for shard, key in enumerate(down.vectors)]
    return ViewVectors.of(pa.concat_tables(parts))


def stored_features(work: str, key: str, rows: range) -> pa.Table:
    """Read what is stored of some pictures of a shard; its table is read once for parts of it that follow."""
    return _stored_table(work, key).slice(rows.start, len(rows))


@lru_cache(maxsize=2)
def _stored_table(work: str, key: str) -> pa.Table:
    return read_table(open_store(work), key)


@lru_cache(maxsize=1)
def embedder_of(model: str) -> Embedder:
    """Load an embedding, once per process. Raises ConfigError as models.load."""
    return models.load(model)


def feature_tasks(side: Pinned, kind: str, job: AuditJob) -> list[FeatureTask]:
    """Return the tasks of all shards of a set, in order."""
    version = (
        [_VERSIONS[kind], DESCRIPTOR_VERSION, compiled_digest()]
        if kind in _VERSIONS
        else [embedder_of(kind).version, EMBEDDING_VERSION]
    )
    folder, shards = kind if kind in _VERSIONS else "vectors", open_pinned(side).shards
    tasks = []
    for row in shards:
        shared = (folder, row["blake3"], row["sidecar_sha256"], version)
        whole = FeatureTask(side, row["shard"], kind, job.work.url, key_of(*shared), range(row["num_samples"]))
        parts = parts_of(row["num_samples"], len(shards))
        tasks.append(
            replace(
                whole,
                parts=tuple(
                    replace(whole, rows=rows, result_key=key_of(*shared, rows.start, rows.stop)) for rows in parts
                ),
            )
        )
    return tasks


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
    with job.reporting.progress(title, sum(len(task.rows) for task in tasks), "pictures") as advance:
        for task, result in shard_results(job, shard_features, tasks, advance):
            if isinstance(result, Quarantined):
                quarantined[task.shard] = result.reason
                continue
            reasons = enumerate(result["failed"].to_pylist())
            failed += [(task.shard, row, reason) for row, reason in reasons if reason]
    return quarantined, sorted(failed)


def shard_features(task: FeatureTask) -> pa.Table:
    """Return a row per picture of the task: its codes or vectors, and in `failed` the error of one that is broken."""
    return load_or_compute(open_store(task.work), task.result_key, partial(_features, task))


def _features(task: FeatureTask) -> pa.Table:
    if task.parts:
        return pa.concat_tables([shard_features(part) for part in task.parts])
    codes = {VARIANTS: _variants, CROPS: crop_table, INSETS: inset_table}
    return _described(task, codes.get(task.kind) or partial(vectors_table, embedder_of(task.kind)))


def _described(task: FeatureTask, describe: Callable[[Sequence[Pixels | None]], pa.Table]) -> pa.Table:
    dataset = open_pinned(task.side)
    tables = [describe([])]
    failed: list[str | None] = []
    for row in task.rows:
        data = read_picture(dataset, Address(task.shard, row))
        try:
            tables.append(describe([decode(data)]))
            failed.append(None)
        except BadImage as error:
            tables.append(describe([None]))
            failed.append(str(error))
    return pa.concat_tables(tables).append_column("failed", pa.array(failed, pa.string()))


def _variants(pictures: Sequence[Pixels | None]) -> pa.Table:
    codes = [[] if pixels is None else variant_codes(pixels) for pixels in pictures]
    return pa.table([pa.array(codes, _CODES_TYPE)], names=[VARIANTS_COLUMN])


def crop_table(pictures: Sequence[Pixels | None]) -> pa.Table:
    """Return the codes of the crops of pictures, a row each; a picture that is broken has none."""
    codes = [b"" if pixels is None else crop_codes(pixels).tobytes() for pixels in pictures]
    return pa.table([pa.array(codes, pa.binary())], names=[CROPS_COLUMN])


def inset_table(pictures: Sequence[Pixels | None]) -> pa.Table:
    """Return the codes of the pictures within pictures, a row each; a picture that is broken has none."""
    codes = [[] if pixels is None else inset_codes(pixels) for pixels in pictures]
    return pa.table([pa.array(codes, _CODES_TYPE)], names=[INSETS_COLUMN])


def vectors_table(embedder: Embedder, pictures: Sequence[Pixels | None]) -> pa.Table:
    """Return the vectors of the views of pictures, a row each; a picture that is broken has none."""
    found = [np.zeros((0, DIMENSIONS), np.float16) if pixels is None else embedder.embed(pixels).astype(np.float16)
             for pixels in pictures]  # fmt: skip
    ends = pa.array(np.cumsum([0, *(len(each) for each in found)]), pa.int32())
    flat = np.concatenate([np.zeros((0, DIMENSIONS), np.float16), *found]).ravel()
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float16()), DIMENSIONS)
    return pa.table([pa.ListArray.from_arrays(ends, vectors)], names=["vectors"])


def inset_rows(shard: int, table: pa.Table, first_row: int = 0) -> pa.Table:
    """Return a row for each inset of pictures of a shard, from a row of it on: shard, row, code."""
    rows = pc.add(pc.list_parent_indices(table[INSETS_COLUMN].combine_chunks()), first_row).cast(pa.int32())
    shards = pa.array(np.full(len(rows), shard, np.int32))
    return pa.table({"shard": shards, "row": rows, "code": pc.list_flatten(table[INSETS_COLUMN])})


def vector_rows(shard: int, table: pa.Table, first_row: int = 0) -> pa.Table:
    """Return a row for each vector of pictures of a shard, from a row of it on: shard, row, view, vector."""
    lists = table["vectors"].combine_chunks()
    counts = pc.list_value_length(lists).to_numpy()
    rows = np.repeat(np.arange(first_row, first_row + table.num_rows, dtype=np.int32), counts)
    view = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return pa.table({"shard": pa.array(np.full(len(rows), shard, np.int32)), "row": rows,
                     VIEW_COLUMN: view.astype(np.int8), "vector": pc.list_flatten(lists)})  # fmt: skip


def numbered(shard: int, table: pa.Table, first_row: int = 0) -> pa.Table:
    """Add `shard` and `row` in front of the columns of a table of a shard, which begins at a row of it."""
    rows = pa.array(np.arange(first_row, first_row + table.num_rows, dtype=np.int32))
    return table.add_column(0, "row", rows).add_column(0, "shard", pa.array(np.full(table.num_rows, shard, np.int32)))
