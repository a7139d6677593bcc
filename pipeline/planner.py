"""Makes a plan from sources: one pass to list, hash and spill the rows, one to sort, cut and write them.

At no time is the list of rows in memory; see spill.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, EmptySource
from pipeline.manifest import PLAN_SCHEMA
from pipeline.plan import (
    SHARDS_PER_PART,
    Plan,
    ShardConfig,
    cut,
    duplicates_key,
    hash_names,
    num_windows,
    part_key,
    plan_digest,
    plan_key,
    sample_bytes,
)
from pipeline.probe import Probe
from pipeline.sources.rows import Mapping, Source
from pipeline.spill import NAME_HASH, RUN_HASH, Spill, scratch_errors
from pipeline.store.base import Store, commit

_IDENTITY = ("source", "container", "offset", "num_bytes", "labels", "extra")
_PROBED_ROWS = 64  # tell mean sizes within about 10 % and take 0.1 s on a local disk
_KNOWN = "_known"


@dataclass(frozen=True)
class Planned:
    """A plan with its rows, not yet stored.

    Attributes:
        plan: The plan.
        parts: Parquet files of its rows, in the scratch folder.
        probe: What trying a few pictures told.
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
    mapped: Mapping[Any, Any] = map,
    on_rows: Callable[[int], None] = lambda count: None,
) -> Planned:
    """Lists, orders and cuts the rows of all sources.

    Args:
        sources: Each with the prefix of its names.
        config: See ShardConfig.
        scratch: Existing folder for the sort and for the plan's files; takes about twice the plan's size.
        probe: Tries a few of the rows.
        request: See Plan.
        known: Tables of (source, num_bytes) of rows that the dataset has; such rows are left out and counted.
        classes: Names that the dataset to append to numbers its labels by; new names follow them.
        mapped: How to read the parts of a source.
        on_rows: Called with the number of rows since the last call.

    Raises:
        EmptySource: There is no row.
        ConfigError: Labels are numbers here and names there; a name is in no class list; a known picture changed.
        StorageFull: The scratch folder is.
    """
    reading = _Reading(sources, config, classes)
    spill = Spill(scratch)
    for batch in reading.batches(mapped):
        on_rows(batch.num_rows)
        spill.add(batch, *_hashes(batch, config.seed))
    if not reading.num_rows:
        raise EmptySource(f"{', '.join(source.url for _, source in sources)}: no picture")
    for batch in reading.known_batches(known):
        spill.add(batch, *_hashes(batch, config.seed))
    found = probe(reading.sample, sources)
    writer = PlanWriter(scratch, config, found)
    total = reading.num_bytes + reading.num_unknown * found.mean_source_bytes
    windows = num_windows(int(total * found.stored_fraction), config.shard_bytes)
    for rows in spill.sorted_tables(windows):
        writer.add(reading.numbered(_without_known(rows, writer)))
    writer.close()
    names = reading.class_names()
    plan = Plan(
        plan_id="",
        config=config,
        bases=tuple(source.url for _, source in sources),
        image_columns=tuple(source.image_column for _, source in sources),
        request=request,
        classes=names,
        num_classes=max(len(names), writer.highest_label + 1),
        num_samples=writer.num_rows,
        num_known=writer.num_known,
        num_ignored=sum(source.num_ignored[0] for _, source in sources),
        num_bytes=writer.num_bytes,
        shard_ends=tuple(writer.shard_ends),
    )
    plan = plan.model_copy(update={"plan_id": plan_digest(plan, writer.digests)})
    return Planned(plan, tuple(writer.paths), found)


def store_plan(store: Store, planned: Planned) -> Plan:
    """Writes a plan's rows, then its record. Safe to repeat; a plan whose sources moved keeps its new places.

    Raises:
        StorageError: As the destination.
    """
    plan = planned.plan
    key = plan_key(plan.plan_id)
    for part, path in enumerate(planned.parts):
        commit(store, part_key(plan.plan_id, part), path.read_bytes())
    if planned.duplicates:
        commit(store, duplicates_key(plan.plan_id), planned.duplicates.read_bytes())
    if not store.create(key, plan.to_json()):
        body, tag = store.read_tagged(key)
        if body != plan.to_json():  # the same pictures at other places
            store.replace(key, plan.to_json(), tag)
    return plan


def _hashes(batch: pa.Table, seed: int) -> tuple[Any, Any]:
    """Gives the hashes of names and of runs; a picture of its own is a run of its own."""
    names = hash_names(batch["source"].to_pylist(), seed)
    runs = batch["run"].combine_chunks()
    if runs.null_count == len(runs):
        return names, names
    return names, np.where(runs.is_null().to_numpy(zero_copy_only=False), names, pc.fill_null(runs, 0).to_numpy())


def _without_known(rows: pa.Table, counts: "PlanWriter") -> pa.Table:
    """Leaves out rows whose names are known, and the known ones themselves."""
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
        counts.num_known += 1
    return rows.filter(pa.array(kept))


@dataclass
class _Reading:
    """The first pass: rows of all sources with labels of one kind, and what is told of them on the way."""

    sources: Sequence[tuple[str, Source]]
    config: ShardConfig
    first_classes: tuple[str, ...]
    num_rows: int = 0
    num_bytes: int = 0
    num_unknown: int = 0
    sample: pa.Table = field(default_factory=lambda: PLAN_SCHEMA.empty_table())
    names: set[str] = field(default_factory=set)
    named: bool | None = None
    numbered_at: str = ""

    def __post_init__(self) -> None:
        lists = {source.classes for _, source in self.sources}
        if self.first_classes:
            lists = {None}
        self.shared = lists.pop() if len(lists) == 1 else None

    def batches(self, mapped: Mapping[Any, Any]) -> Iterator[pa.Table]:
        for base, (prefix, source) in enumerate(self.sources):
            for batch in source.read(mapped):
                yield self._taken(batch, base, prefix, source)

    def known_batches(self, known: Iterable[pa.Table]) -> Iterator[pa.Table]:
        kind = pa.list_(pa.string() if self.named else pa.int32())
        for table in known:
            count = table.num_rows
            own = {"source": table["source"], "num_bytes": table["num_bytes"], "run": table["run"]}
            yield pa.table(
                [
                    own.get(f.name, pa.nulls(count, kind if f.name == "labels" else f.type))
                    for f in PLAN_SCHEMA
                ]
                + [pa.repeat(pa.scalar(True), count)],
                names=[*PLAN_SCHEMA.names, _KNOWN],
            )

    def _taken(self, batch: pa.RecordBatch, base: int, prefix: str, source: Source) -> pa.Table:
        count = batch.num_rows
        names = batch["source"]
        path = batch["path"]
        run = batch["run"]
        if prefix:
            path = pc.coalesce(path, names)
            names = pc.binary_join_element_wise(prefix, names, "")
        if run.null_count < count:
            told = run.dictionary_encode()
            hashes = hash_names([f"{prefix}{name}" for name in told.dictionary.to_pylist()], self.config.seed)
            run = pa.array(hashes).take(told.indices)
        else:
            run = pa.nulls(count, pa.uint64())
        columns = {
            "source": names,
            "base": pa.repeat(pa.scalar(base, pa.int16()), count),
            "path": path,
            "container": batch["container"],
            "offset": batch["offset"],
            "num_bytes": batch["num_bytes"],
            "labels": self._labels(batch["labels"], source),
            "extra": batch["extra"],
            "run": run,
        }
        table = pa.table([columns[name] for name in PLAN_SCHEMA.names], names=PLAN_SCHEMA.names)
        sizes = batch["num_bytes"].to_numpy()
        self.num_rows += count
        self.num_bytes += int(sizes[sizes > 0].sum())
        self.num_unknown += int((sizes < 0).sum())
        self._sample(table)
        return table.append_column(_KNOWN, pa.repeat(pa.scalar(False), count))

    def _sample(self, table: pa.Table) -> None:
        """Keeps the rows with the lowest hashes: a random sample that does not depend on the order of reading."""
        both = pa.concat_tables([self.sample, table.drop_columns(["labels"])], promote_options="default")
        order = np.argsort(hash_names(both["source"].to_pylist(), self.config.seed), kind="stable")
        self.sample = both.take(pa.array(order[:_PROBED_ROWS]))

    def _labels(self, labels: pa.Array, source: Source) -> pa.Array:
        values = labels.flatten()
        are_names = pa.types.is_string(values.type)
        if self.shared:
            if are_names:
                values = _indices(values, self.shared, source.url)
            elif len(values) and pc.max(values).as_py() >= len(self.shared):
                raise ConfigError(
                    f"{source.url}: label {pc.max(values).as_py()} is beyond the {len(self.shared):,} names of the "
                    f"class list"
                )
        elif not are_names and source.classes and len(values):
            values, are_names = pa.array(source.classes).take(values), True
        is_named = are_names and not self.shared
        if self.named is None and len(values):
            self.named, self.numbered_at = is_named, source.url
        elif self.named is not None and len(values) and is_named != self.named:
            raise ConfigError(
                f"labels are all numbers or all names; those of {self.numbered_at} are "
                f"{'names' if self.named else 'numbers'}, those of {source.url} are not"
            )
        if is_named:
            self.names.update(pc.unique(values).to_pylist())
        if not len(values):
            values = pa.array([], pa.string() if self.named else pa.int32())
        return pa.ListArray.from_arrays(labels.offsets, values)

    def class_names(self) -> tuple[str, ...]:
        """Gives the names by label."""
        if self.named:
            return (*self.first_classes, *sorted(self.names - set(self.first_classes)))
        return self.shared or self.first_classes

    def numbered(self, rows: pa.Table) -> pa.Table:
        """Gives the rows with numbers for names, in the plan's schema."""
        labels = rows["labels"].combine_chunks()
        values = labels.flatten()
        if pa.types.is_string(values.type):
            values = _indices(values, self.class_names(), "")
        offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(pc.list_value_length(labels))])
        place = rows.column_names.index("labels")
        rows = rows.set_column(place, "labels", pa.ListArray.from_arrays(offsets.cast(pa.int32()), values))
        return rows.select(PLAN_SCHEMA.names).cast(PLAN_SCHEMA)


def _indices(names: pa.Array, classes: tuple[str, ...], url: str) -> pa.Array:
    found = pc.index_in(names, pa.array(classes, pa.string()))
    if found.null_count:
        missing = names.filter(pc.is_null(found))[0].as_py()
        raise ConfigError(f"{url}: class {missing!r} is not in the class list")
    return found


class PlanWriter:
    """The second pass: cuts sorted rows into shards and writes them, a row group a shard."""

    def __init__(self, folder: Path, config: ShardConfig, probe: Probe) -> None:
        self._folder = folder
        self._config = config
        self._probe = probe
        self._pending = PLAN_SCHEMA.empty_table()
        self._part: pq.ParquetWriter | None = None
        self.paths: list[Path] = []
        self.shard_ends: list[int] = []
        self.digests: list[bytes] = []
        self.num_rows = self.num_bytes = self.num_known = 0
        self.highest_label = -1

    def add(self, rows: pa.Table) -> None:
        """Adds rows; all whole shards are written, the rest waits for more."""
        pending = pa.concat_tables([self._pending, rows]).combine_chunks()
        sizes = self._sizes(pending)
        ends = cut(sizes, self._config.shard_bytes, self._config.max_samples_per_shard)
        start = 0
        for end in ends[:-1]:
            self._write(pending.slice(start, end - start))
            start = end
        self._pending = pending.slice(start)
        self.num_bytes += int(sizes[:start].sum())

    def close(self) -> None:
        """Writes what is left.

        Raises:
            EmptySource: Nothing was added.
        """
        if self._pending.num_rows:
            self.num_bytes += int(self._sizes(self._pending).sum())
            self._write(self._pending)
        if self._part:
            with scratch_errors(self._folder):
                self._part.close()

    def _sizes(self, rows: pa.Table) -> npt.NDArray[np.int64]:
        return sample_bytes(
            rows["num_bytes"].to_numpy().astype(np.int64), self._probe.mean_source_bytes, self._probe.stored_fraction
        )

    def _write(self, rows: pa.Table) -> None:
        rows = rows.combine_chunks()
        self.num_rows += rows.num_rows
        self.shard_ends.append(self.num_rows)
        self.digests.append(_digest(rows))
        labels = rows["labels"].combine_chunks().flatten()
        if len(labels):
            self.highest_label = max(self.highest_label, pc.max(labels).as_py())
        with scratch_errors(self._folder):
            if len(self.digests) % SHARDS_PER_PART == 1 or SHARDS_PER_PART == 1:
                if self._part:
                    self._part.close()
                self.paths.append(self._folder / f"rows-{len(self.paths):05d}.parquet")
                self._part = pq.ParquetWriter(self.paths[-1], PLAN_SCHEMA, compression="zstd", write_statistics=False)
            if self._part:
                self._part.write_table(rows, row_group_size=rows.num_rows)


def _digest(rows: pa.Table) -> bytes:
    """Gives a digest of the values of the rows' identity, whatever Arrow's buffers look like."""
    digest = hashlib.sha256()
    for name in _IDENTITY:
        column = rows[name].combine_chunks()
        if pa.types.is_list(column.type):
            digest.update(pc.list_value_length(column).to_numpy().astype("<i4").tobytes())
            column = column.flatten()
        if pa.types.is_string(column.type):
            digest.update(pc.binary_length(column).to_numpy().astype("<i4").tobytes())
            digest.update("".join(column.to_pylist()).encode())
        else:
            digest.update(column.to_numpy().astype("<i8").tobytes())
    return digest.digest()
