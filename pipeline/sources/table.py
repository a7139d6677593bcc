"""Label tables: CSV, TSV, JSONL or Parquet with a column of image URLs and a column of labels.

A label is a number, a name, or a list of either; names are numbered in sorted order unless a class list is given.
Further columns travel with the sample.
"""

import json
import math
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

RESERVED = frozenset(["source", "labels", "width", "height"])  # of each sample's JSON
_MOST_CLASSES = 1_000_000  # a larger number is a mistake: ImageNet-21k has 21,843, JFT 18,291
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def read_table(url: str, image_column: str, label_column: str, classes: Sequence[str] = ()) -> SourceRows:
    """Reads a label table. Image paths that are not absolute are taken from the table's folder.

    Raises:
        NotFound: There is no such table.
        ConfigError: A column is missing, the table cannot be parsed, or a label is not in `classes`.
        EmptySource: The table has no row.
    """
    table = _parse(url, label_column if classes else None)
    _check_columns(url, table.column_names, image_column, label_column)
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
                "extra": json.dumps(_finite(extra), sort_keys=True, default=str, allow_nan=False),
            }
        )
    return SourceRows(table_of(rows, ROW_SCHEMA), tuple(names))


def _check_columns(url: str, names: list[str], image_column: str, label_column: str) -> None:
    for column in (image_column, label_column):
        if column not in names:
            raise ConfigError(f"{url} has no column {column!r}; it has {', '.join(names)}")
    twice = sorted({name for name in names if names.count(name) > 1})
    reserved = sorted(RESERVED & (set(names) - {image_column, label_column}))
    if twice or reserved:
        raise ConfigError(
            f"{url}: rename the columns {', '.join(twice + reserved)}; "
            + ("they come twice" if twice else "each sample has facts of that name already")
        )


def _parse(url: str, text_column: str | None) -> pa.Table:
    """Reads the table; `text_column` of a CSV stays text, so that the class name 001 is not the number 1."""
    body = read_file(url)
    try:
        if url.endswith(".parquet"):
            return from_parquet(body)
        if url.endswith(".jsonl"):
            return pyarrow.json.read_json(pa.BufferReader(body), pyarrow.json.ReadOptions(use_threads=False))
        parsing = pyarrow.csv.ParseOptions(delimiter="\t" if url.endswith(".tsv") else ",", newlines_in_values=True)
        types = {text_column: pa.string()} if text_column else {}
        converting = pyarrow.csv.ConvertOptions(column_types=types)
        reading = pyarrow.csv.ReadOptions(use_threads=False)
        return pyarrow.csv.read_csv(pa.BufferReader(body), reading, parsing, converting)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{url} cannot be read as a table: {error}") from error


def _finite(value: Any) -> Any:
    """Gives the value with every NaN and infinity, which JSON does not know, as None."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_list(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list) else [value]


def _class_names(url: str, values: list[list[Any]], classes: Sequence[str]) -> list[str]:
    kinds = {type(value) for labels in values for value in labels}
    if not kinds <= {int} and not kinds <= {str}:
        told = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ConfigError(f"{url}: labels are all numbers or all names, or lists of them; found {told}")
    names = {value for labels in values for value in labels if isinstance(value, str)}
    return list(classes) if classes else sorted(names)


def _label(url: str, line: int, value: Any, number: dict[str, int]) -> int:
    if isinstance(value, str):
        if value not in number:
            raise ConfigError(f"{url}, row {line}: class {value!r} is not in the class list")
        return number[value]
    most = len(number) or _MOST_CLASSES
    if not 0 <= value < most:
        raise ConfigError(f"{url}, row {line}: label {value!r} is not a class number from 0 to {most - 1:,}")
    return int(value)


def _local_bytes(uri: str) -> int:
    if scheme_of(uri):
        return -1
    try:
        return os.stat(uri).st_size
    except (OSError, ValueError):
        return -1  # read at packing time, where it becomes a reject with its reason
