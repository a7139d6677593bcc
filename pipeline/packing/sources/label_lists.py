"""The labels of a table's column as Arrow lists, one a row: numbers or names, checked where the row is known."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base.errors import ConfigError

_MOST_CLASSES = 1_000_000  # a larger number is a mistake: ImageNet-21k has 21,843, JFT 18,291


def label_lists(column: Any, classes: tuple[str, ...], url: str, first_row: int) -> pa.Array:
    """Return lists of numbers (int32) or of names.

    Args:
        column: Numbers, names, or lists of either; an array or one in chunks. Null and empty text are no label.
        classes: Class names by label; names among them become numbers. Empty for none.
        url: What the table is called in messages.
        first_row: Where the column begins in the table.

    Raises:
        ConfigError: A label is neither a number nor a name, is too large or negative, or is not in the class list.
    """
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.chunks else pa.array([], column.type)
    lists = column if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) else _as_lists(column)
    values, rows = pc.list_flatten(lists), pc.list_parent_indices(lists)
    if _is_text(values.type):
        if not classes:
            return with_values(lists, values)
        numbers = pc.index_in(values.cast(pa.string()), pa.array(classes))
        bad, problem = pc.is_null(numbers), "class {!r} is not in the class list"
    elif pa.types.is_integer(values.type) or pa.types.is_null(values.type):
        most = len(classes) or _MOST_CLASSES
        numbers, bad = values, pc.fill_null(pc.or_(pc.less(values, 0), pc.greater_equal(values, most)), True)
        problem = f"label {{!r}} is not a class number from 0 to {most - 1:,}"
    else:
        raise ConfigError(f"{url}: labels are all numbers or all names, or lists of them; found {values.type}")
    if pc.any(bad).as_py():
        at = pc.index(bad, True).as_py()
        raise ConfigError(f"{url}, row {first_row + rows[at].as_py() + 1}: {problem.format(values[at].as_py())}")
    return with_values(lists, numbers.cast(pa.int32()))


def with_values(lists: pa.Array, values: pa.Array) -> pa.Array:
    """Return lists of the lengths of `lists`, a null as an empty one, with other values."""
    return _cut(values, pc.fill_null(pc.list_value_length(lists), 0))


def _as_lists(values: pa.Array) -> pa.Array:
    """Return each value as a list of one; null and empty text as an empty list."""
    if _is_text(values.type):
        values = pc.if_else(pc.equal(values, ""), pa.scalar(None, values.type), values)
    return _cut(values.drop_null(), pc.is_valid(values))


def _cut(values: pa.Array, lengths: pa.Array) -> pa.Array:
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths.cast(pa.int32()))])
    return pa.ListArray.from_arrays(offsets, values)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
