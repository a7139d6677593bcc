"""What is computed from the pixels of a set beyond its fingerprints: further codes and embeddings, as stored tasks.

Codes of variants and crops are computed for the downstream side only, those of insets for the upstream side only.
All are stored by the shard's digest and a version, so that nothing upstream is computed again for a new test set.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

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
    stored_results,
)
from cluster.audit.base.tables import AuditConfig, unreadable_row
from cluster.audit.search.crops import CROPS_VERSION, crop_codes
from cluster.audit.search.embedding import models
from cluster.audit.search.embedding.embedding import VIEW_COLUMN, ViewVectors
from cluster.audit.search.embedding.models import DIMENSIONS, Embedder
from cluster.audit.search.insets import INSETS_VERSION, inset_codes
from cluster.audit.search.join import CROPS_COLUMN, INSETS_COLUMN, VARIANTS_COLUMN
from cluster.audit.search.variants import VARIANTS_VERSION, variant_codes
from pipeline.base.errors import BadImage, ServiceError
from pipeline.dataset.dataset import Address
from pipeline.dataset.tables import read_table
from pipeline.image.decode import Pixels, decode
from pipeline.image.fingerprint import CODE_BYTES, DESCRIPTOR_VERSION
from pipeline.store.url import open_store

VARIANTS, CROPS, INSETS = "variants", "crops", "insets"  # the kinds of features that are no embedding
_VERSIONS = {VARIANTS: VARIANTS_VERSION, CROPS: CROPS_VERSION, INSETS: INSETS_VERSION}
_VECTORS_VERSION = 2  # raised with every change of what vectors_table returns for a model
_CODES_TYPE = pa.list_(pa.binary(CODE_BYTES))
_UNREADABLE_SCHEMA = pa.schema([("row", pa.int32()), ("reason", pa.string())])


class FeatureTable(NamedTuple):
    """Where the features of a shard are stored, or of a part of it: a row per picture.

    Attributes:
        first_row: Of the shard, to which the table's first row belongs.
        key: In the work folder.
    """

    shard: int
    first_row: int
    num_rows: int
    key: str


@dataclass(frozen=True)
class FeatureTask:
    """The features of one shard, or of a part of it.

    Their table is stored beside the result, a row of _UNREADABLE_SCHEMA for each picture that is broken: vectors of
    300 M pictures are 1.5 TB, which the process that collects the results must not read.

    Attributes:
        kind: VARIANTS, CROPS, INSETS, or the embedding's model.
        work: URL of the work folder.
        rows: Pictures of the shard that are described.
        features_key: Key of their table.
    """

    side: Pinned
    shard: int
    kind: str
    work: str
    rows: range
    features_key: str

    def __str__(self) -> str:
        return f"{self.kind} of pictures {self.rows.start} to {self.rows.stop} of shard {self.shard} of {self.side.url}"

    @property
    def result_key(self) -> str:
        """Key of its result in the work folder."""
        return key_of("unreadable", self.features_key)

    @property
    def table(self) -> FeatureTable:
        """Where the features are."""
        return FeatureTable(self.shard, self.rows.start, len(self.rows), self.features_key)


@dataclass(frozen=True)
class DownFeatures:
    """Where the features of the downstream side are stored, in the order of its pictures.

    Attributes:
        work: URL of the work folder.
        variants: Codes of variants; empty within one set.
        crops: Codes of crops; empty where these are not asked for.
        vectors: Vectors; empty without an embedding.
    """

    work: str
    variants: tuple[FeatureTable, ...] = ()
    crops: tuple[FeatureTable, ...] = ()
    vectors: tuple[FeatureTable, ...] = ()


def down_features(config: AuditConfig, sides: Sides, job: AuditJob) -> DownFeatures:
    """Return where the features of the downstream side are stored, or will be."""
    kinds: list[list[FeatureTask]] = [
        [] if sides.is_within else feature_tasks(sides.down, VARIANTS, job),
        feature_tasks(sides.down, CROPS, job) if config.crops else [],
        feature_tasks(sides.down, config.embedding, job) if config.embedding else [],
    ]
    return DownFeatures(job.work.url, *(tuple(task.table for task in tasks) for tasks in kinds))


@lru_cache(maxsize=1)
def down_vectors(down: DownFeatures) -> ViewVectors:
    """Read the vectors of the downstream side, once per process."""
    return ViewVectors.joined([ViewVectors.of(stored_vectors(down.work, table)) for table in down.vectors])


def stored_insets(work: str, table: FeatureTable) -> pa.Table:
    """Read the codes of the insets of some pictures: see `inset_rows`."""
    return inset_rows(table.shard, read_table(open_store(work), table.key), table.first_row)


def stored_vectors(work: str, table: FeatureTable) -> pa.Table:
    """Read the vectors of some pictures: see `vector_rows`."""
    return vector_rows(table.shard, read_table(open_store(work), table.key), table.first_row)


@lru_cache(maxsize=1)
def embedder_of(model: str) -> Embedder:
    """Load an embedding, once per process. Raises ConfigError as models.load."""
    return models.load(model)


def feature_tasks(side: Pinned, kind: str, job: AuditJob) -> list[FeatureTask]:
    """Return the tasks of all pictures of a set, in order."""
    version = (
        [_VERSIONS[kind], DESCRIPTOR_VERSION, compiled_digest()]
        if kind in _VERSIONS
        else [embedder_of(kind).version, _VECTORS_VERSION]
    )
    folder, shards = kind if kind in _VERSIONS else "vectors", open_pinned(side).shards
    tasks = []
    for row in shards:
        shared, num_samples = (folder, row["blake3"], row["sidecar_sha256"], version), row["num_samples"]
        parts = [(rows, key_of(*shared, rows.start, rows.stop)) for rows in parts_of(num_samples, len(shards))]
        tasks += [
            FeatureTask(side, row["shard"], kind, job.work.url, rows, key)
            for rows, key in parts or [(range(num_samples), key_of(*shared))]
        ]
    return tasks


def describe_sides(
    config: AuditConfig, sides: Sides, job: AuditJob
) -> tuple[DownFeatures, dict[int, str], dict[tuple[str | None, int], list[FeatureTable]], list[dict[str, Any]]]:
    """Compute the features that are missing.

    Returns:
        Where the downstream features are, reasons of quarantined upstream shards, where the upstream features are by
        kind and shard, and rows of UNCHECKED_SCHEMA for unreadable pictures.

    Raises:
        ServiceError: A downstream shard cannot be read.
    """
    wanted = [] if sides.is_within else [("downstream", sides.down, VARIANTS, "computing variants")]
    if config.crops:
        wanted.append(("downstream", sides.down, CROPS, "computing crops"))
    if config.insets:
        wanted.append(("upstream", sides.up, INSETS, "computing insets"))
    if config.embedding:
        wanted.append(("downstream", sides.down, config.embedding, "embedding downstream"))
        wanted.append(("upstream", sides.up, config.embedding, "embedding upstream"))
    quarantined: dict[str, dict[int, str]] = {"upstream": {}, "downstream": {}}
    unreadable: dict[tuple[str, int, int], dict[str, Any]] = {}
    own: dict[tuple[str | None, int], list[FeatureTable]] = defaultdict(list)
    for name, side, kind, title in wanted:
        tasks = feature_tasks(side, kind, job)
        more, failed = compute_features(tasks, title, job)
        quarantined[name] |= more
        for shard, row, detail in failed:  # once, for however many features
            unreadable.setdefault((name, shard, row), unreadable_row(name, shard, row, detail))
        if name == "upstream":
            for task in tasks:
                own[kind, task.shard].append(task.table)
    if quarantined["downstream"]:
        shard, reason = min(quarantined["downstream"].items())
        raise ServiceError(
            f"shard {shard} of the test set {sides.down.url} cannot be read for the join ({reason}); check it "
            f"with `pipeline verify` and repair it"
        )
    return down_features(config, sides, job), quarantined["upstream"], own, list(unreadable.values())


def compute_features(
    tasks: Sequence[FeatureTask], title: str, job: AuditJob
) -> tuple[dict[int, str], list[tuple[int, int, str]]]:
    """Compute the features that are missing; their tables are stored where the tasks say.

    Args:
        tasks: Of one set.
        title: Of the progress bar.
        job: Where they run.

    Returns:
        The reason of each quarantined shard, and (shard, row, reason) of each unreadable picture.
    """
    quarantined, failed = {}, []
    with job.reporting.progress(title, sum(len(task.rows) for task in tasks), "pictures") as advance:
        for task, result in stored_results(job, describe, tasks, lambda task: advance(len(task.rows), 0)):
            if isinstance(result, Quarantined):
                quarantined[task.shard] = result.reason
                continue
            failed += [(task.shard, row["row"], row["reason"]) for row in result.to_pylist()]
    return quarantined, sorted(failed)


def describe(task: FeatureTask) -> pa.Table:
    """Store the features of the pictures of a task; return its result."""
    return load_or_compute(open_store(task.work), task.result_key, partial(_unreadable, task))


def _unreadable(task: FeatureTask) -> pa.Table:
    codes = {VARIANTS: _variants, CROPS: crop_table, INSETS: inset_table}
    describing = codes.get(task.kind) or partial(vectors_table, embedder_of(task.kind))
    table = load_or_compute(open_store(task.work), task.features_key, partial(_described, task, describing))
    reasons = enumerate(table["failed"].to_pylist(), task.rows.start)
    rows = [{"row": row, "reason": reason} for row, reason in reasons if reason]
    return pa.Table.from_pylist(rows, schema=_UNREADABLE_SCHEMA)


def _described(task: FeatureTask, describing: Callable[[Sequence[Pixels | None]], pa.Table]) -> pa.Table:
    """Return a row per picture of the task: its codes or vectors, and in `failed` the error of one that is broken."""
    dataset = open_pinned(task.side)
    tables = [describing([])]
    failed: list[str | None] = []
    for row in task.rows:
        data = read_picture(dataset, Address(task.shard, row))
        try:
            tables.append(describing([decode(data)]))
            failed.append(None)
        except BadImage as error:
            tables.append(describing([None]))
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
