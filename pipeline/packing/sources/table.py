"""Label tables: CSV, TSV, JSONL or Parquet with a column of image paths, URLs or bytes and a column of labels.

A label is a number, a name, or a list of either. Further columns travel with the sample. Tables are read in batches;
the bytes of inline images are not read before packing.
"""

import csv
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from pipeline.base.errors import ConfigError, EmptySource
from pipeline.base.ignored import IgnoredFiles
from pipeline.packing.sources.label_lists import label_lists
from pipeline.packing.sources.rows import (
    FILE,
    PARQUET,
    RESERVED,
    ParallelMap,
    Source,
    batch_of,
    check_one_split,
    extra_of,
    placed,
)
from pipeline.packing.sources.text_tables import text_batches
from pipeline.store.any_url import common_folder, expand, identity_of, join, open_file, parent, scheme_of
from pipeline.store.base import Entry

_BATCH_ROWS, _BATCH_BYTES = 131_072, 256_000_000
_ROWS_AT_ONCE = 1024  # a choice: a long text that a million rows repeat is small in the file, and not in memory
_MOST_GROUP_BYTES = 1_000_000_000  # 9,000 images of 110 kB; groups of 100 have 11 MB
_LIKELY_IMAGE = re.compile(r"path|file|im(a)?g|url|jpe?g|photo|picture")
_LIKELY_LABEL = re.compile(r"label|class|categor|target|kind|cls")


@dataclass(frozen=True)
class Columns:
    """How a table is read.

    Attributes:
        image: Column of paths, URLs or image bytes.
        label: Column of labels; None where the pictures have none.
        num_bytes: Column of file sizes, for URLs whose size is known to the table.
        classes: Class names by label; labels are then names among them, or numbers below their count.
        image_members: Endings of the names of images in tars; see `scan_tar`.
        folder_labels: Whether the folder of an image in a tar is its class.
    """

    image: str = "image"
    label: str | None = "label"
    num_bytes: str | None = None
    classes: tuple[str, ...] = ()
    image_members: tuple[str, ...] = ()
    folder_labels: bool = False


@dataclass
class _Part:
    """A batch of a table, and where it stands in its file."""

    url: str
    first_row: int
    table: pa.Table
    run: str | None = None
    mean_bytes: int = -1
    columns: Columns = field(default_factory=Columns)


def table_source(url: str, columns: Columns) -> Source:
    """Return a table, or all tables that a pattern such as `s3://bucket/part-*.parquet` names, as a source.

    Raises:
        NotFound: There is no such table.
        ConfigError: The pattern names several splits.
    """
    return source_of_tables(expand(url), url, columns)


def source_of_tables(
    entries: list[Entry], url: str, columns: Columns, *, ignored: tuple[IgnoredFiles, ...] = ()
) -> Source:
    """Return tables as a source. Image paths that are not absolute are taken from the table's folder.

    Args:
        entries: The tables.
        url: What names them.
        columns: How they are read.
        ignored: Files beside them that are no tables.

    Reading raises:
        ConfigError: A column is missing, the table cannot be parsed, or a label is invalid.
        EmptySource: The table has no row.
    """
    base = common_folder([entry.key for entry in entries])
    check_one_split(url, (entry.key.removeprefix(base).lstrip("/") for entry in entries))

    def read(parallel_map: ParallelMap[Any, Any]) -> Iterator[pa.RecordBatch]:
        source.ignored.clear()
        source.ignored.add_all(ignored)
        num_rows = num_labels = 0
        for entry in entries:
            for part in _parts(entry, columns):
                batch = _batch(part, base)
                num_rows += batch.num_rows
                num_labels += len(batch["labels"].flatten())
                yield batch
        if num_rows == 0:
            raise EmptySource(f"{url} has no row")
        if num_labels == 0 and columns.label:
            raise ConfigError(
                f"{url}: all rows of column {columns.label!r} are empty; name another with --label-column, or write "
                f"--no-labels"
            )

    classes = _class_names(entries[0], columns) if entries[0].key.endswith(".parquet") else None
    source = Source(base, read, classes or columns.classes or None, identity_of(entries), columns.image)
    return source


def _class_names(entry: Entry, columns: Columns) -> tuple[str, ...] | None:
    """Return the names that a Hugging Face table keeps beside its numbers."""
    with open_file(entry.key) as file:
        metadata = _parquet(entry.key, file).schema_arrow.metadata or {}
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        names = features[columns.label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(str(name) for name in names)


def _parts(entry: Entry, columns: Columns) -> Iterator[_Part]:
    if entry.key.endswith(".parquet"):
        with open_file(entry.key) as file:
            yield from _parquet_parts(entry.key, _parquet(entry.key, file), columns)
        return
    first_row = 0
    try:
        for batch in text_batches(entry.key, columns.image, columns.label):
            yield _Part(entry.key, first_row, pa.Table.from_batches([batch]), columns=columns)
            first_row += batch.num_rows
    except (pa.ArrowException, OSError, csv.Error) as error:
        problem = _first_line_not_utf8(entry.key) or str(error)
        raise ConfigError(f"{entry.key} cannot be read as a table: {problem}") from error


def _first_line_not_utf8(url: str) -> str:
    with open_file(url) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                shown = line[:60].decode("latin-1").strip()
                return f"line {number} is not UTF-8 ({shown!r}); convert it, as with `iconv -f latin1 -t utf-8`"
    return ""


def _parquet(url: str, file: Any) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{url} cannot be read as a table: {error}") from error


def is_inline(kind: pa.DataType) -> bool:
    """Return whether a column's type holds image bytes: binary, or Hugging Face's struct of bytes and path."""
    return _is_binary(kind) or (
        pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)
    )


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _parquet_parts(url: str, file: pq.ParquetFile, columns: Columns) -> Iterator[_Part]:
    schema = file.schema_arrow
    _check_columns(url, schema.names, columns)
    if not is_inline(schema.field(columns.image).type):
        first_row = 0
        for table in _tables(file):
            yield _Part(url, first_row, table, columns=columns)
            first_row += table.num_rows
        return
    others = [name for name in schema.names if name != columns.image]
    first_row = 0
    for number in range(file.num_row_groups):
        about = file.metadata.row_group(number)
        inline = [about.column(column) for column in range(about.num_columns)]
        stored = sum(c.total_uncompressed_size for c in inline if c.path_in_schema.split(".")[0] == columns.image)
        if stored > _MOST_GROUP_BYTES:
            raise ConfigError(
                f"{url}: row group {number} holds {stored / 1e9:.1f} GB of images, and a worker reads a group at once; "
                f"write the file again with row_group_size=100 or so"
            )
        table = _group(url, file, number, others)
        yield _Part(
            url,
            first_row,
            table.append_column(columns.image, pa.nulls(about.num_rows)),
            run=f"{url}#{number}",
            mean_bytes=stored // max(1, about.num_rows),
            columns=columns,
        )
        first_row += about.num_rows


def _tables(file: pq.ParquetFile) -> Iterator[pa.Table]:
    """Yield all rows, many at once as long as they do not take much memory."""
    parts: list[pa.RecordBatch] = []
    for part in file.iter_batches(_ROWS_AT_ONCE, use_threads=False):
        parts.append(part)
        if sum(each.num_rows for each in parts) >= _BATCH_ROWS or sum(each.nbytes for each in parts) >= _BATCH_BYTES:
            yield pa.Table.from_batches(parts).combine_chunks()
            parts = []
    if parts:
        yield pa.Table.from_batches(parts).combine_chunks()


def _group(url: str, file: pq.ParquetFile, number: int, names: list[str]) -> pa.Table:
    """Return some columns of a row group.

    Raises:
        ConfigError: They take more memory than images of a group may.
    """
    if not names:
        return pa.table({"": pa.nulls(file.metadata.row_group(number).num_rows)}).select([])
    parts: list[pa.RecordBatch] = []
    for part in file.iter_batches(_ROWS_AT_ONCE, row_groups=[number], columns=names, use_threads=False):
        parts.append(part)
        if sum(each.nbytes for each in parts) > _MOST_GROUP_BYTES:
            raise ConfigError(
                f"{url}: the columns {', '.join(names)} of row group {number} take more than "
                f"{_MOST_GROUP_BYTES / 1e9:.0f} GB; write the file again with row_group_size=100 or so"
            )
    return pa.Table.from_batches(parts, pa.schema([file.schema_arrow.field(name) for name in names])).combine_chunks()


def _check_columns(url: str, names: list[str], columns: Columns) -> None:
    for column, option, likely in (
        (columns.image, "--image-column", _LIKELY_IMAGE),
        (columns.label, "--label-column", _LIKELY_LABEL),
        (columns.num_bytes, "--bytes-column", re.compile("size|bytes")),
    ):
        if column and column not in names:
            similar = [name for name in names if likely.search(name.lower())]
            remedy = f"; try {option} {similar[0]!r}" if similar else f"; name it with {option}"
            if option == "--label-column":
                remedy += ", or write --no-labels if there are none"
            raise ConfigError(f"{url} has no column {column!r}; it has {', '.join(names)}{remedy}")
    own = [name for name in (columns.image, columns.label, columns.num_bytes) if name]
    twice = sorted({name for name in names if names.count(name) > 1})
    reserved = sorted(RESERVED & (set(names) - set(own)))
    if twice or reserved:
        raise ConfigError(
            f"{url}: rename the columns {', '.join(twice + reserved)}; "
            + ("they come twice" if twice else "each sample has facts of that name already")
        )


def _batch(part: _Part, base: str) -> pa.RecordBatch:
    columns, table = part.columns, part.table
    _check_columns(part.url, table.column_names, columns)
    if columns.label:
        labels = label_lists(table[columns.label].combine_chunks(), columns.classes, part.url, part.first_row)
    else:
        labels = pa.array([[]] * table.num_rows, pa.list_(pa.int32()))
    extra = _extra(table, columns)
    if part.run is not None:
        name = part.url.removeprefix(base).lstrip("/")
        rows = range(part.first_row, part.first_row + table.num_rows)
        batch = batch_of(
            [f"{name}#{row}" for row in rows],
            labels=labels,
            container=PARQUET,
            path=pa.repeat(pa.scalar(name), table.num_rows),
            offset=list(rows),
            num_bytes=pa.repeat(pa.scalar(part.mean_bytes, pa.int64()), table.num_rows),
            extra=extra,
            run=pa.repeat(pa.scalar(part.run.removeprefix(base)), table.num_rows),
        )
        return placed(batch, part.url, part.first_row)
    paths = _paths(part)
    folder = parent(part.url)
    inner = folder.removeprefix(base).lstrip("/")
    located = paths if not inner else [join(inner, path) for path in paths.to_pylist()]
    batch = batch_of(
        paths,
        labels=labels,
        container=FILE,
        path=None if located is paths else located,
        num_bytes=_sizes(part, folder, paths),
        extra=extra,
    )
    return placed(batch, part.url, part.first_row)


def _paths(part: _Part) -> pa.Array:
    paths = part.table[part.columns.image].combine_chunks()
    if not (pa.types.is_string(paths.type) or pa.types.is_large_string(paths.type)):
        if pa.types.is_nested(paths.type):
            raise ConfigError(f"{part.url}: column {part.columns.image!r} holds {paths.type}, not paths or image bytes")
        paths = paths.cast(pa.string())
    empty = pc.fill_null(pc.equal(pc.utf8_length(paths), 0), True)
    if pc.any(empty).as_py():
        row = part.first_row + pc.index(empty, True).as_py() + 1
        raise ConfigError(f"{part.url}, row {row}: column {part.columns.image!r} is empty")
    return paths.cast(pa.string())


def _sizes(part: _Part, folder: str, paths: pa.Array) -> Any:
    if part.columns.num_bytes:
        return pc.fill_null(part.table[part.columns.num_bytes].combine_chunks().cast(pa.int64()), -1)
    if scheme_of(folder) not in ("", "file"):
        return None
    return [_local_bytes(join(folder, path)) for path in paths.to_pylist()]


def _local_bytes(uri: str) -> int:
    if scheme_of(uri) not in ("", "file"):
        return -1
    try:
        return os.stat(uri.removeprefix("file://")).st_size
    except (OSError, ValueError):
        return -1  # read at packing time, where it becomes a reject with its reason


def _extra(table: pa.Table, columns: Columns) -> list[str] | None:
    own = {columns.image, columns.label, columns.num_bytes}
    others = [name for name in table.column_names if name not in own]
    if not others:
        return None
    rows = table.select(others).to_pylist()
    return [extra_of(row) for row in rows]
