"""Pictures of any kind of source in numbered parts, of which each is worked on once: what `predict` and `embed` read.

A dataset is cut between its blocks. Everything else is listed once, and the list is kept beside the results: a start
that goes on reads the same list, whatever happened to the sources since.
"""

import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.base.parsing import parse_json, parse_record
from pipeline.base.records import Record
from pipeline.dataset.schema import PLAN_SCHEMA, to_parquet
from pipeline.dataset.tables import read_table
from pipeline.image.policy import ImagePolicy
from pipeline.packing.fetch import fetch
from pipeline.packing.foreign_tars.open_any import is_published, open_any
from pipeline.packing.sources.folder import is_image_name
from pipeline.packing.sources.open import named_source, open_sources
from pipeline.packing.sources.rows import FILE, Source, batch_of
from pipeline.packing.sources.table import Columns
from pipeline.store.base import Store, exists, put
from pipeline.streaming.one_pass import encoded_samples, pictures_of
from pipeline.streaming.order import Piece
from pipeline.streaming.rendered import Picture
from pipeline.streaming.selection import Selection

REQUEST_KEY = "request.json"  # what was asked for
_LIST_KEY = "inputs.json"
# As a plan's rows, without labels and with runs by name.
LISTED_SCHEMA = pa.schema(
    [pa.field("run", pa.string()) if f.name == "run" else f for f in PLAN_SCHEMA if f.name != "labels"]
)


class Origin(NamedTuple):
    """What is known of a picture before a model has seen it.

    Attributes:
        source: Name of its file, or of its row in a table.
        labels: Class names that a dataset gives it; else none.
    """

    source: str
    labels: tuple[str, ...] = ()


class Inputs(Protocol):
    """Pictures in numbered parts.

    Attributes:
        sizes: Pictures of each part.
    """

    @property
    def sizes(self) -> Sequence[int]:
        """See above."""

    def pictures(self, parts: Sequence[int]) -> Generator[Picture[Origin]]:
        """Yield the pictures of some parts, part by part, always in the same order."""


def open_inputs(
    store: Store, sources: Sequence[str], data_version: int | None, image_column: str, part_size: int
) -> Inputs:
    """Return the pictures of sources; what is no dataset is listed below the store unless its list is there.

    Args:
        store: Of the results.
        sources: Absolute URLs: one dataset, or pictures, folders, tables and tars.
        data_version: Of the dataset; None where the sources are something else.
        image_column: Of tables.
        part_size: About how many pictures a part has.

    Raises:
        NotFound: A source does not exist.
        EmptySource: There is no picture.
        ConfigError: A source cannot be read.
    """
    if data_version is not None:
        return DatasetInputs(Selection(open_any(sources[0], data_version)), part_size)
    return ListedInputs(store, _listed(store) or _list_sources(store, sources, image_column, part_size))


def is_begun(store: Store) -> bool:
    """Return whether results were begun at a store: what they are of can no longer be changed."""
    return any(True for prefix in (_LIST_KEY, "predictions/", "embeddings/") for _ in store.list(prefix))


def begun_request(store: Store) -> dict[str, Any]:
    """Return what was asked for when the results at a store were begun; nothing where none were."""
    if not (is_begun(store) and exists(store, REQUEST_KEY)):
        return {}
    return dict(parse_json(store.read(REQUEST_KEY), f"{store.url}/{REQUEST_KEY}", dict))


def is_dataset(sources: Sequence[str]) -> bool:
    """Return whether the sources are one dataset that `pipeline shard` published."""
    return len(sources) == 1 and not is_image_name(sources[0]) and is_published(sources[0])


def block_parts(block_counts: npt.NDArray[np.int64], part_size: int) -> list[range]:
    """Return runs of blocks that hold `part_size` pictures or little more; the last one may hold fewer."""
    parts: list[range] = []
    first = held = 0
    for block, count in enumerate(block_counts.tolist()):
        held += count
        if held >= part_size:
            parts.append(range(first, block + 1))
            first, held = block + 1, 0
    return [*parts, range(first, len(block_counts))] if held else parts


class DatasetInputs:
    """The pictures of a dataset; parts are runs of whole blocks."""

    def __init__(self, selection: Selection, part_size: int) -> None:
        self._selection = selection
        self._parts = block_parts(selection.block_counts, part_size)

    @cached_property
    def sizes(self) -> list[int]:
        """See Inputs."""
        return [int(self._selection.block_counts[part.start : part.stop].sum()) for part in self._parts]

    def pictures(self, parts: Sequence[int]) -> Generator[Picture[Origin]]:
        """See Inputs. Raises CorruptShard where a sample is damaged."""
        selection, counts = self._selection, self._selection.block_counts
        blocks = itertools.chain.from_iterable(self._parts[part] for part in parts)
        pieces = (Piece(block, 0, int(counts[block])) for block in blocks if counts[block])
        names = selection.dataset.class_name
        for sample, data, is_trusted in pictures_of(selection, encoded_samples(selection, pieces, named=True)):
            yield Picture(Origin(sample.source, tuple(map(names, sample.labels))), data, is_trusted)


class InputList(Record):
    """The record that a list of pictures is whole; its rows are in `inputs/`.

    Attributes:
        bases: What relative paths of rows are relative to.
        image_columns: Column of image bytes in tables, for each base.
        sizes: Pictures of each part.
    """

    bases: tuple[str, ...]
    image_columns: tuple[str | None, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class ListedInputs:
    """Pictures by a list that is kept beside the results."""

    store: Store
    listed: InputList

    @property
    def sizes(self) -> Sequence[int]:
        """See Inputs."""
        return self.listed.sizes

    def pictures(self, parts: Sequence[int]) -> Generator[Picture[Origin]]:
        """See Inputs. Pictures that cannot be had come with the reason; raises Unreachable where a store is gone."""
        most_bytes = ImagePolicy().max_bytes
        for part in parts:
            rows = read_table(self.store, _rows_key(part))
            for row, data in fetch(rows, self.listed.bases, self.listed.image_columns, most_bytes):
                yield Picture(Origin(row["source"]), data)


def _listed(store: Store) -> InputList | None:
    found = [entry for entry in store.list(_LIST_KEY) if entry.key == _LIST_KEY]
    return parse_record(InputList, store.read(_LIST_KEY), f"{store.url}/{_LIST_KEY}") if found else None


def _list_sources(store: Store, sources: Sequence[str], image_column: str, part_size: int) -> InputList:
    opened = _opened(sources, image_column)
    sizes: list[int] = []
    for part, rows in enumerate(cut(_rows(opened), part_size)):
        put(store, _rows_key(part), to_parquet(rows))
        sizes.append(rows.num_rows)
    listed = InputList(
        bases=tuple(source.url for _, source in opened),
        image_columns=tuple(source.image_column for _, source in opened),
        sizes=tuple(sizes),
    )
    store.create(_LIST_KEY, listed.to_json())
    return listed


def _rows_key(part: int) -> str:
    return f"inputs/part-{part:06d}.parquet"


def _opened(sources: Sequence[str], image_column: str) -> list[tuple[str, Source]]:
    """Return sources with the prefixes of their names; pictures that are named one by one are a source of their own."""
    pictures = [url for url in sources if is_image_name(url)]
    others = [url for url in sources if not is_image_name(url)]
    opened: list[tuple[str, Source]] = []
    if pictures:
        batch = batch_of(pictures, labels=[[]] * len(pictures), container=FILE)
        opened.append(("", Source("", lambda parallel_map: iter([batch]))))
    if others:
        opened += open_sources(others, Columns(image=image_column, label=None))
    return opened


def _rows(sources: Sequence[tuple[str, Source]]) -> Iterator[pa.Table]:
    """Yield the rows of all sources, in the order in which they are listed."""
    for base, (prefix, source) in enumerate(sources):
        for batch in source.read(map):
            count = batch.num_rows
            columns: dict[str, Any] = {name: batch[name] for name in batch.schema.names if name != "labels"}
            columns["base"] = pa.repeat(pa.scalar(base, pa.int16()), count)
            if prefix:
                columns["path"] = pa.compute.coalesce(batch["path"], batch["source"])
                columns["source"] = pa.compute.binary_join_element_wise(prefix, batch["source"], "")
            yield pa.table([columns[name] for name in LISTED_SCHEMA.names], schema=LISTED_SCHEMA)


def cut(tables: Iterable[pa.Table], part_size: int) -> Iterator[pa.Table]:
    """Yield the rows of tables in parts of `part_size` rows; rows of a run, which are read at once, stay together."""
    held = LISTED_SCHEMA.empty_table()
    for table in tables:
        held = pa.concat_tables([held, table]).combine_chunks()
        begins = np.flatnonzero(_begins_run(held["run"].chunk(0) if held.num_rows else held["run"]))
        first = 0
        for stop in begins.tolist():
            if stop - first >= part_size:
                yield held.slice(first, stop - first)
                first = stop
        held = held.slice(first)
    if held.num_rows:
        yield held


def _begins_run(runs: pa.Array) -> npt.NDArray[np.bool_]:
    """Return for each row whether it may begin a part: it is in no run, or in another one than the row before."""
    encoded = runs.dictionary_encode().indices.fill_null(-1).to_numpy()
    return np.concatenate([[True], (encoded[1:] != encoded[:-1]) | (encoded[1:] < 0)]) if len(runs) else encoded < 0


def absolute_sources(sources: Sequence[str]) -> tuple[str, ...]:
    """Return sources that mean the same in every process; `NAME=URL` keeps its name."""
    return tuple(f"{name}={url}" if is_named else url for name, url, is_named in map(named_source, sources))
