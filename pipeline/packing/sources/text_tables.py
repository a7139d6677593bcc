"""Rows of tables in text files: what separates their columns, and which of them are numbers."""

import csv
import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from pipeline.store.any_url import open_file

_PARSE_BYTES = 16 << 20  # a batch of text is parsed at once; types are inferred from the first
_MOST_HEADER_BYTES = 1 << 20
# Text that Arrow's reader of CSV takes for a missing value.
_NULLS = pa.array(pyarrow.csv.ConvertOptions().null_values)
_PADDED = r"^[+-]?0\d"
_WHOLE = r"^\s*[+-]?\d+\s*$"
_FRACTION = r"^\s*[+-]?(\d+\.\d*|\.\d+|\d+(\.\d*)?[eE][+-]?\d+)\s*$"
_OTHER = r"[^\s\d+.eE-]"  # no number at all, as far as a single sign can tell


def text_batches(url: str, image_column: str, label_column: str | None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a CSV, TSV or JSONL file, with types that suit all of its rows.

    Raises:
        ArrowException, csv.Error: It is no such table.
    """
    if url.endswith(".jsonl"):
        reading = pyarrow.json.ReadOptions(use_threads=False, block_size=_PARSE_BYTES)
        with open_file(url) as file:
            yield from pyarrow.json.open_json(file, reading)
        return
    with open_file(url) as file:
        delimiter, names = _header(url, file, image_column)
    # Each pass opens the file for itself: Arrow reads ahead in a thread of its own.
    with open_file(url) as file:
        types = _column_types(
            _open_csv(file, delimiter, dict.fromkeys(names, pa.string())), {image_column, label_column}
        )
    with open_file(url) as file:
        yield from _open_csv(file, delimiter, types)


def _open_csv(file: Any, delimiter: str, types: dict[str, pa.DataType]) -> Any:
    return pyarrow.csv.open_csv(
        file,
        pyarrow.csv.ReadOptions(use_threads=False, block_size=_PARSE_BYTES),
        pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        pyarrow.csv.ConvertOptions(column_types=types),
    )


def _header(url: str, file: Any, image_column: str) -> tuple[str, list[str]]:
    """Return what separates the columns, and their names.

    A comma, in TSV a tab, unless another sign makes the image column one or is the only one there.
    """
    default = "\t" if url.endswith(".tsv") else ","
    start = file.read(_MOST_HEADER_BYTES).decode("utf-8-sig", "replace")
    signs = (default, *(sign for sign in (";", "\t", ",", "|") if sign != default))
    names = {sign: next(csv.reader(io.StringIO(start, newline=""), delimiter=sign), []) for sign in signs}
    for sign in signs:
        if image_column in names[sign]:
            return sign, names[sign]
    likely = default if len(names[default]) > 1 else max(signs, key=lambda sign: len(names[sign]))
    return likely, names[likely]


def _column_types(reader: Any, own: set[str | None]) -> dict[str, pa.DataType]:
    """Return the types of columns whose text must not be taken for numbers, from all rows of a CSV file.

    Paths and labels stay text, and so does a column with zeros in front of digits, or with numbers and other text.
    Whole numbers and fractions in one column are fractions.
    """
    whole, fraction, padded, other = (set[str]() for _ in range(4))
    for batch in reader:
        for name in set(batch.schema.names) - own - padded:
            values = batch[name].filter(pc.invert(pc.is_in(batch[name], _NULLS)))
            for found, pattern in ((padded, _PADDED), (whole, _WHOLE), (fraction, _FRACTION), (other, _OTHER)):
                if name not in found and pc.any(pc.match_substring_regex(values, pattern)).as_py():
                    found.add(name)
    text = padded | (other & (whole | fraction)) | {name for name in own if name}
    return dict.fromkeys(text, pa.string()) | dict.fromkeys((whole & fraction) - text, pa.float64())
