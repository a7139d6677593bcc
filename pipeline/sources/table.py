"""Label tables: CSV, TSV, JSONL or Parquet with a column of image URLs and a column of labels.

A label is a number, a name, or a list of either; names are numbered in sorted order unless a class list is given.
Further columns travel with the sample.
"""

import json
import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from pipeline.errors import ConfigError, EmptySource
from pipeline.manifest import from_parquet, table_of
from pipeline.sources.files import join, parent, read_file, scheme_of
from pipeline.sources.rows import ROW_SCHEMA, SourceRows

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def read_table(url: str, image_column: str, label_column: str, classes: Sequence[str] = ()) -> SourceRows:
    """Reads a label table. Image paths that are not absolute are taken from the table's folder.

    Raises:
        NotFound: There is no such table.
        ConfigError: A column is missing, the table cannot be parsed, or a label is not in `classes`.
        EmptySource: The table has no row.
    """
    table = _parse(url)
    for column in (image_column, label_column):
        if column not in table.column_names:
            raise ConfigError(f"{url} has no column {column!r}; it has {', '.join(table.column_names)}")
    if table.num_rows == 0:
        raise EmptySource(f"{url} has no row")
    values = [_as_list(value) for value in table[label_column].to_pylist()]
    names = _class_names(url, values, classes)
    number = {name: label for label, name in enumerate(names)}
    extras = table.drop_columns([image_column, label_column]).to_pylist()
    folder = parent(url)
    rows = []
    for line, (path, labels, extra) in enumerate(zip(table[image_column].to_pylist(), values, extras, strict=True), 1):
        if not path:
            raise ConfigError(f"{url}, row {line}: column {image_column!r} is empty")
        rows.append(
            {
                "source": str(path),
                "uri": join(folder, str(path)),
                "num_bytes": _local_bytes(join(folder, str(path))),
                "labels": [_label(url, line, value, number) for value in labels],
                "extra": json.dumps(extra, sort_keys=True, default=str),
            }
        )
    return SourceRows(table_of(rows, ROW_SCHEMA), tuple(names))


def _parse(url: str) -> pa.Table:
    body = read_file(url)
    try:
        if url.endswith(".parquet"):
            return from_parquet(body)
        if url.endswith(".jsonl"):
            return pyarrow.json.read_json(pa.BufferReader(body))
        delimiter = "\t" if url.endswith(".tsv") else ","
        options = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        return pyarrow.csv.read_csv(pa.BufferReader(body), parse_options=options)
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{url} cannot be read as a table: {error}") from error


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _class_names(url: str, values: list[list[Any]], classes: Sequence[str]) -> list[str]:
    seen = {value for labels in values for value in labels}
    names = {value for value in seen if isinstance(value, str)}
    if names and len(names) != len(seen):
        raise ConfigError(f"{url} mixes numbers and names as labels; use one of them")
    return list(classes) if classes else sorted(names)


def _label(url: str, line: int, value: Any, number: dict[str, int]) -> int:
    if isinstance(value, str):
        if value not in number:
            raise ConfigError(f"{url}, row {line}: class {value!r} is not in the class list")
        return number[value]
    if not isinstance(value, int) or value < 0 or (number and value >= len(number)):
        raise ConfigError(f"{url}, row {line}: label {value!r} is not a class number")
    return value


def _local_bytes(uri: str) -> int:
    if scheme_of(uri):
        return -1
    try:
        return os.stat(uri).st_size
    except OSError:
        return -1  # read at packing time, where it becomes a reject with its reason
