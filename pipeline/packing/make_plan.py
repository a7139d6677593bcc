"""From sources to a plan: one pass to list and hash the rows, one to sort, cut and write them.

At no time is the list of rows in memory; see external_sort.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base.errors import ConfigError, EmptySource
from pipeline.base.ignored import Ignored, IgnoredFiles
from pipeline.dataset.schema import PLAN_SCHEMA, sha256_hex
from pipeline.packing.external_sort import NAME_HASH, ExternalSort
from pipeline.packing.labels import Labels
from pipeline.packing.plan import (
    OVERHEAD_BYTES,
    Hashes,
    Plan,
    ShardConfig,
    duplicates_key,
    hash_names,
    num_windows,
    part_key,
    plan_digest,
    plan_key,
)
from pipeline.packing.probe import Probe
from pipeline.packing.sources.rows import REJECTED, ParallelMap, Source, place_of
from pipeline.packing.write_plan import PlanWriter
from pipeline.store.base import Store, commit

_PROBED_ROWS = 64  # estimate mean sizes within about 10 % and take 0.1 s on a local disk
_NAMED_UNLABELLED = 3
_KNOWN = "_known"  # marks rows of the dataset that is appended to
_SORTED_SCHEMA = pa.schema(
    [pa.field("labels", pa.list_(pa.string())) if f.name == "labels" else f for f in PLAN_SCHEMA]
    + [pa.field(_KNOWN, pa.bool_())]
)


@dataclass(frozen=True)
class Planned:
    """A plan with its rows, not yet stored.

    Attributes:
        plan: The plan.
        parts: Parquet files of its rows, in the scratch folder.
        probe: What trying a few pictures showed.
        duplicates: Parquet file of the rows left out for equal image bytes; None where none was looked for.
    """

    plan: Plan
    parts: tuple[Path, ...]
    probe: Probe
    duplicates: Path | None = None


def make_plan(
    sources: Sequence[tuple[str, Source]],
    config: ShardConfig,
    scratch: Path,
    *,
    probe: Callable[[pa.Table, Sequence[tuple[str, Source]]], Probe],
    request: str | None = None,
    known: Iterable[pa.Table] = (),
    classes: tuple[str, ...] = (),
    parallel_map: ParallelMap[Any, Any] = map,
    on_rows: Callable[[int], None] = lambda count: None,
) -> Planned:
    """List, order and cut the rows of all sources.

    Args:
        sources: Each with the prefix of its names.
        config: See ShardConfig.
        scratch: Existing folder for the sort and for the plan's files; takes about twice the plan's size.
        probe: Tries a few of the rows.
        request: See Plan.
        known: Tables of (source, num_bytes) of rows that the dataset has; such rows are left out and counted.
        classes: Names that the dataset to append to numbers its labels by; new names follow them.
        parallel_map: How to read the parts of a source.
        on_rows: Called with the number of rows since the last call.

    Raises:
        EmptySource: There is no row.
        ConfigError: Labels are numbers here and names there; a name is in no class list; a known picture changed.
        StorageFull: The scratch folder is.
    """
    reading = _Reading(sources, config, classes)
    external_sort = ExternalSort(scratch)
    for batch, names, runs in reading.batches(parallel_map):
        on_rows(batch.num_rows)
        external_sort.add(batch, names, runs)
    reading.labels.check()
    if not reading.num_rows:
        raise EmptySource(f"{', '.join(source.url for _, source in sources)}: no picture")
    for batch, names, runs in reading.known_batches(known):
        external_sort.add(batch, names, runs)
    found = probe(reading.sample, sources)
    writer = PlanWriter(scratch, config, found)
    content = (reading.num_bytes + reading.num_unknown * found.mean_source_bytes) * found.stored_fraction
    windows = num_windows(int(content) + reading.num_rows * OVERHEAD_BYTES, config.shard_bytes)
    num_known = 0
    for rows in external_sort.sorted_tables(windows):
        fresh = _without_known(rows)
        num_known += rows.num_rows - fresh.num_rows - pc.sum(rows[_KNOWN]).as_py()
        writer.add(reading.numbered(fresh))
    writer.close()
    class_names = reading.labels.class_names()
    plan = Plan(
        plan_id="",
        config=config,
        bases=tuple(source.url for _, source in sources),
        image_columns=tuple(source.image_column for _, source in sources),
        request=request,
        classes=class_names,
        num_classes=max(len(class_names), max(writer.used_labels, default=-1) + 1),
        num_samples=writer.num_rows,
        num_known=num_known,
        num_ignored=sum(kind.count for kind in reading.ignored),
        ignored=reading.ignored,
        num_unlabelled=reading.num_unlabelled,
        unlabelled=reading.unlabelled,
        unused_classes=tuple(name for label, name in enumerate(class_names) if label not in writer.used_labels),
        num_bytes=writer.num_bytes,
        shard_ends=tuple(writer.shard_ends),
    )
    plan = plan.model_copy(update={"plan_id": plan_digest(plan, writer.digests)})
    return Planned(plan, tuple(writer.paths), found)


def store_plan(store: Store, planned: Planned) -> Plan:
    """Write a plan's rows, then its record. Safe to repeat; a plan whose sources moved keeps its new places.

    Raises:
        StorageError: As the destination.
    """
    plan = planned.plan
    parts = []
    for part, path in enumerate(planned.parts):
        body = path.read_bytes()
        parts.append(part_key(plan.plan_id, part, sha256_hex(body)))
        commit(store, parts[-1], body)
    if planned.duplicates:
        commit(store, duplicates_key(plan.plan_id), planned.duplicates.read_bytes())
    plan = plan.model_copy(update={"parts": tuple(parts)})
    key = plan_key(plan.plan_id)
    if not store.create(key, plan.to_json()):
        found, tag = store.read_tagged(key)
        if found != plan.to_json():  # the same pictures at other places
            store.replace(key, plan.to_json(), tag)
    return plan


def _hashes(batch: pa.Table, seed: int) -> tuple[Hashes, Hashes]:
    """Return the hashes of names and of runs; a picture of its own is a run of its own."""
    names = hash_names(batch["source"].to_pylist(), seed)
    runs = batch["run"].combine_chunks()
    if runs.null_count == len(runs):
        return names, names
    return names, np.where(runs.is_null().to_numpy(zero_copy_only=False), names, pc.fill_null(runs, 0).to_numpy())


def _without_known(rows: pa.Table) -> pa.Table:
    """Leave out rows whose names are known, and the known ones themselves."""
    old = rows[_KNOWN].combine_chunks().to_numpy(zero_copy_only=False)
    if not old.any():
        return rows
    hashes = rows[NAME_HASH].to_numpy()
    suspects = np.flatnonzero(np.isin(hashes, hashes[old]) & ~old)
    sizes = dict(zip(*(rows[name].filter(pa.array(old)).to_pylist() for name in ("source", "num_bytes")), strict=True))
    kept = ~old
    for row, name, size in zip(
        suspects.tolist(), *(rows[n].take(pa.array(suspects)).to_pylist() for n in ("source", "num_bytes")), strict=True
    ):
        if name not in sizes:
            continue
        if size >= 0 and sizes[name] >= 0 and size != sizes[name]:
            raise ConfigError(
                f"{name!r} is in the dataset with {sizes[name]:,} bytes, and has {size:,} now; write NAME=URL for the "
                f"source if it is another picture"
            )
        kept[row] = False
    return rows.filter(pa.array(kept))


class _Reading:
    """The first pass: rows of all sources, and what is counted on the way."""

    def __init__(self, sources: Sequence[tuple[str, Source]], config: ShardConfig, classes: tuple[str, ...]) -> None:
        self._sources = sources
        self._seed = config.seed
        self.labels = Labels([source for _, source in sources], classes)
        self.num_rows = self.num_bytes = self.num_unknown = self.num_unlabelled = 0
        self.unlabelled: tuple[str, ...] = ()
        self.sample = _SORTED_SCHEMA.empty_table()
        self._sample_hashes = np.empty(0, np.uint64)

    def batches(self, parallel_map: ParallelMap[Any, Any]) -> Iterator[tuple[pa.Table, Hashes, Hashes]]:
        """Yield rows with the hashes of their names and of their runs."""
        for base, (prefix, source) in enumerate(self._sources):
            for batch in source.read(parallel_map):
                table = self._taken(batch, base, prefix, source)
                names, runs = _hashes(table, self._seed)
                self._count(table, names)
                yield table, names, runs

    def known_batches(self, known: Iterable[pa.Table]) -> Iterator[tuple[pa.Table, Hashes, Hashes]]:
        """Yield the rows that the dataset has, marked as such."""
        for table in known:
            own = {"source": table["source"], "num_bytes": table["num_bytes"], "run": table["run"]}
            marks = {_KNOWN: pa.repeat(pa.scalar(True), table.num_rows)}
            filled = [(own | marks).get(field.name, pa.nulls(table.num_rows, field.type)) for field in _SORTED_SCHEMA]
            marked = pa.table(filled, schema=_SORTED_SCHEMA)
            yield marked, *_hashes(marked, self._seed)

    def numbered(self, rows: pa.Table) -> pa.Table:
        """Return rows in the plan's schema, their labels as numbers."""
        place = rows.column_names.index("labels")
        numbers = self.labels.numbered(rows["labels"].combine_chunks())
        return rows.set_column(place, "labels", numbers).select(PLAN_SCHEMA.names).cast(PLAN_SCHEMA)

    def _taken(self, batch: pa.RecordBatch, base: int, prefix: str, source: Source) -> pa.Table:
        count = batch.num_rows
        names, path, run = batch["source"], batch["path"], pa.nulls(count, pa.uint64())
        if prefix:
            path = pc.coalesce(path, names)
            names = pc.binary_join_element_wise(prefix, names, "")
        if batch["run"].null_count < count:
            encoded = batch["run"].dictionary_encode()
            hashes = hash_names([f"{prefix}{name}" for name in encoded.dictionary.to_pylist()], self._seed)
            run = pa.array(hashes).take(encoded.indices)
        columns = {name: batch[name] for name in ("container", "offset", "num_bytes", "extra")} | {
            "source": names,
            "base": pa.repeat(pa.scalar(base, pa.int16()), count),
            "path": path,
            "labels": self.labels.taken(batch["labels"], source, partial(place_of, batch)),
            "run": run,
            _KNOWN: pa.repeat(pa.scalar(False), count),
        }
        self._note_unlabelled(names, batch)
        return pa.table([columns[name] for name in _SORTED_SCHEMA.names], schema=_SORTED_SCHEMA)

    def _note_unlabelled(self, names: pa.Array, batch: pa.RecordBatch) -> None:
        without = pc.and_(
            pc.equal(pc.list_value_length(batch["labels"]), 0), pc.not_equal(batch["container"], REJECTED)
        )
        self.num_unlabelled += pc.sum(without).as_py() or 0
        first = heapq.nsmallest(_NAMED_UNLABELLED, names.filter(without).to_pylist())
        self.unlabelled = tuple(sorted({*self.unlabelled, *first})[:_NAMED_UNLABELLED])

    @property
    def ignored(self) -> tuple[IgnoredFiles, ...]:
        """What the sources hold besides images; call it when all was read."""
        found = Ignored()
        for prefix, source in self._sources:
            found.add_all(source.ignored.kinds, prefix)
        return found.kinds

    def _count(self, table: pa.Table, hashes: Hashes) -> None:
        """Keep the rows with the lowest hashes: a random sample that does not depend on the order of reading."""
        sizes = table["num_bytes"].to_numpy()
        self.num_rows += table.num_rows
        self.num_bytes += int(sizes[sizes > 0].sum())
        self.num_unknown += int((sizes < 0).sum())
        limit = self._sample_hashes[-1] if len(self._sample_hashes) == _PROBED_ROWS else np.uint64(2**64 - 1)
        low = np.flatnonzero(hashes <= limit)
        both = pa.concat_tables([self.sample, table.take(pa.array(low))])
        both_hashes = np.concatenate([self._sample_hashes, hashes[low]])
        order = np.argsort(both_hashes, kind="stable")[:_PROBED_ROWS]
        self.sample, self._sample_hashes = both.take(pa.array(order)), both_hashes[order]
