"""The labels of a table's column as Arrow lists, one a row: numbers or names, checked where the row is known."""

import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base.errors import ConfigError
from pipeline.dataset.tar_reader import MOST_CLASSES

WHOLE = r"^-?\d{1,18}(\.0*)?$"


def label_lists(column: Any, classes: tuple[str, ...], url: str, first_row: int) -> pa.Array:
    """Return lists of numbers (int32), or of text: names, or numbers as text (`packing.labels` decides).

    Args:
        column: Numbers, names, or lists of either; an array or one in chunks. Null, NaN and empty text are no label.
        classes: Class names by label; names among them become numbers. Empty for none.
        url: What the table is called in messages.
        first_row: Where the column begins in the table.

    Raises:
        ConfigError: A label is neither a number nor a name, is too large or negative, or is not in the class list.
    """
    column = _plain(column)
    lists = column if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) else _as_lists(column)
    values, rows = pc.list_flatten(lists), pc.list_parent_indices(lists)

    def check(bad: pa.Array, problem: str) -> None:
        if pc.any(bad).as_py():
            at = pc.index(bad, True).as_py()
            raise ConfigError(f"{url}, row {first_row + rows[at].as_py() + 1}: {problem.format(values[at].as_py())}")

    values = _plain(values)
    if _is_text(values.type):
        check(pc.fill_null(pc.equal(values, ""), True), "a list of labels holds an empty one")
        values = values.cast(pa.string())
        if not classes:
            return with_values(lists, values)
        numbers = _among(values, classes)
        check(pc.is_null(numbers), "class {!r} is not in the class list")
        return with_values(lists, numbers.cast(pa.int32()))
    if pa.types.is_floating(values.type):
        check(pc.fill_null(pc.not_equal(values, pc.floor(values)), True), "label {!r} is not a whole number")
    elif not (pa.types.is_integer(values.type) or pa.types.is_null(values.type)):
        raise ConfigError(
            f"{url}: labels are all numbers or all names, or lists of them; found {values.type}. Write them as text or "
            f"whole numbers"
        )
    most = len(classes) or MOST_CLASSES
    bad = pc.fill_null(pc.or_(pc.less(values, 0), pc.greater_equal(values, most)), True)
    check(bad, f"label {{!r}} is not a class number from 0 to {most - 1:,}")
    return with_values(lists, values.cast(pa.int32()))


def _plain(column: Any) -> pa.Array:
    """Return a column as one array, without a dictionary, and truth values as text."""
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.chunks else pa.array([], column.type)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return pc.if_else(column, "True", "False") if pa.types.is_boolean(column.type) else column


def _among(values: pa.Array, classes: tuple[str, ...]) -> pa.Array:
    """Return the numbers of names; null where one is not in the list.

    Where no name looks like a number, numbers as text are numbers.
    """
    numbers = pc.index_in(values, pa.array(classes))
    if any(is_number(name) for name in classes):
        return numbers
    as_numbers = pc.if_else(pc.match_substring_regex(values, WHOLE), as_whole(values), pa.scalar(None, pa.string()))
    as_numbers = as_numbers.cast(pa.int64())
    in_range = pc.if_else(pc.less(as_numbers, len(classes)), as_numbers, pa.scalar(None, pa.int64()))
    return pc.coalesce(numbers.cast(pa.int64()), in_range)


def is_number(text: str) -> bool:
    """Return whether text is a whole number, perhaps with the `.0` that pandas writes where a column has gaps."""
    return bool(re.fullmatch(WHOLE.strip("^$"), text))


def as_whole(values: pa.Array) -> pa.Array:
    """Return text without the `.0` after a whole number."""
    return pc.replace_substring_regex(values, r"^(-?\d+)\.0*$", r"\1")


def with_values(lists: pa.Array, values: pa.Array) -> pa.Array:
    """Return lists of the lengths of `lists`, a null as an empty one, with other values."""
    return _cut(values, pc.fill_null(pc.list_value_length(lists), 0))


def _as_lists(values: pa.Array) -> pa.Array:
    """Return each value as a list of one; null, NaN and empty text as an empty list."""
    if _is_text(values.type):
        values = pc.if_else(pc.equal(pc.utf8_trim_whitespace(values), ""), pa.scalar(None, values.type), values)
    elif pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    return _cut(values.drop_null(), pc.is_valid(values))


def _cut(values: pa.Array, lengths: pa.Array) -> pa.Array:
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths.cast(pa.int32()))])
    return pa.ListArray.from_arrays(offsets, values)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
