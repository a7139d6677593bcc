"""What every source yields: record batches with one row per picture."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

# `labels` is a list of int32 (numbers) or of string (names); everything else as in schema.PLAN_SCHEMA.
# `run` names the run of rows that is read at once (a row group of a Parquet file), null for a picture of its own.
COLUMNS = ("source", "path", "container", "offset", "num_bytes", "labels", "extra", "run")
RESERVED = frozenset(["source", "labels", "width", "height"])  # what packing itself writes to each sample's JSON
FILE, TAR, PARQUET = "file", "tar", "parquet"
NO_EXTRA = "{}"
A = TypeVar("A")
B = TypeVar("B")
# How to run a function over many arguments: `map`, or over the workers of a run. In any order.
ParallelMap = Callable[[Callable[[A], B], Iterable[A]], Iterator[B]]


@dataclass(frozen=True)
class Source:
    """One source of pictures, not yet read.

    Attributes:
        url: What relative paths of its rows are relative to.
        read: Yields its rows as batches of `batch_of`'s kind, in any order; may be called again.
        classes: Class names by label, where the source brings its own numbering.
        identity: Digest of the files that list its pictures (name, size, time); None where only listing shows a change.
        image_column: Column of the image bytes in Parquet files.
        num_ignored: After reading: other files, or samples without a picture.
    """

    url: str
    read: Callable[[ParallelMap[Any, Any]], Iterator[pa.RecordBatch]]
    classes: tuple[str, ...] | None = None
    identity: str | None = None
    image_column: str | None = None
    num_ignored: list[int] = field(default_factory=lambda: [0])


def batch_of(
    source: Any,
    *,
    labels: Any,
    container: str,
    path: Any = None,
    offset: Any = None,
    num_bytes: Any = None,
    extra: Any = None,
    run: Any = None,
) -> pa.RecordBatch:
    """Return a batch; what is left out is null, 0, -1 or an empty object.

    Args:
        source: Names.
        labels: Lists of numbers or of names.
        container: FILE, TAR or PARQUET.
        path: Relative paths or URLs, where they differ from the names.
        offset: First bytes, or rows.
        num_bytes: Sizes.
        extra: JSON objects.
        run: Names of runs.
    """
    count = len(source)

    def column(values: Any, kind: pa.DataType, default: Any) -> pa.Array:
        if values is None:
            return pa.repeat(pa.scalar(default, kind), count)
        return values if isinstance(values, pa.Array) else pa.array(values, kind)

    names = pa.list_(pa.string())
    if not isinstance(labels, pa.Array):
        first = next((label for row in labels for label in row), 0)
        labels = pa.array(labels, names if isinstance(first, str) else pa.list_(pa.int32()))
    columns = [
        column(source, pa.string(), None),
        column(path, pa.string(), None),
        pa.repeat(pa.scalar(container), count),
        column(offset, pa.int64(), 0),
        column(num_bytes, pa.int64(), -1),
        labels,
        column(extra, pa.string(), NO_EXTRA),
        column(run, pa.string(), None),
    ]
    return pa.RecordBatch.from_arrays(columns, names=COLUMNS)


def extra_of(columns: dict[str, Any]) -> str:
    """Return further columns of a picture as a JSON object; NaN and infinity, which JSON does not know, as null."""
    return json.dumps(_finite(columns), sort_keys=True, default=str, allow_nan=False) if columns else NO_EXTRA


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
