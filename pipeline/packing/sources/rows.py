"""What every source yields: record batches with one row per picture."""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from pipeline.base.errors import BadImage, ConfigError
from pipeline.base.ignored import Ignored

# `labels` is a list of int32 (numbers) or of string (names); everything else as in schema.PLAN_SCHEMA.
# `run` names the run of rows that is read at once (a row group of a Parquet file), null for a picture of its own.
COLUMNS = ("source", "path", "container", "offset", "num_bytes", "labels", "extra", "run")
RESERVED = frozenset(["source", "labels", "width", "height"])  # what packing itself writes to each sample's JSON
FILE, TAR, PARQUET = "file", "tar", "parquet"
REJECTED = "rejected"  # a row that its source knows to be unusable; `extra` holds the reason and the detail
NO_EXTRA = "{}"
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
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
        ignored: After reading: other files or members.
        are_names: Whether text labels are names even where all of them look like numbers.
    """

    url: str
    read: Callable[[ParallelMap[Any, Any]], Iterator[pa.RecordBatch]]
    classes: tuple[str, ...] | None = None
    identity: str | None = None
    image_column: str | None = None
    ignored: Ignored = field(default_factory=Ignored)
    are_names: bool = False


def batch_of(
    source: Any,
    *,
    labels: Any,
    container: str | list[str],
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
        container: FILE, TAR, PARQUET or REJECTED; one for all rows, or one for each.
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
        pa.repeat(pa.scalar(container), count) if isinstance(container, str) else pa.array(container, pa.string()),
        column(offset, pa.int64(), 0),
        column(num_bytes, pa.int64(), -1),
        labels,
        column(extra, pa.string(), NO_EXTRA),
        column(run, pa.string(), None),
    ]
    return pa.RecordBatch.from_arrays(columns, names=COLUMNS)


def placed(batch: pa.RecordBatch, url: str, first_row: int) -> pa.RecordBatch:
    """Return the batch with its place in a table, which messages name instead of the images."""
    return batch.replace_schema_metadata({"url": url, "first_row": str(first_row)})


def place_of(batch: pa.RecordBatch, row: int) -> str:
    """Return what a row of a batch is called in messages."""
    about = batch.schema.metadata or {}
    if b"url" in about:
        return f"{about[b'url'].decode()}, row {int(about[b'first_row']) + row + 1}"
    return str(batch["source"][row])


def rejected_extra(error: BadImage) -> str:
    """Return the `extra` of a row of kind REJECTED."""
    return json.dumps({"reason": error.reason, "detail": error.detail})


def rejection_of(extra: str) -> BadImage:
    """Return what `rejected_extra` stored."""
    found = json.loads(extra)
    return BadImage(found["reason"], found["detail"])


SPLIT_NAMES = frozenset(["train", "val", "valid", "validation", "test"])
_SPLIT_OF = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}
_WORD_ENDS = re.compile(r"[-_.\d\s]+")


def split_of(path: str) -> str | None:
    """Return the split that a table's or tar's path names: a folder `val`, or a word of its name, `x-train-0.tar`."""
    *folders, name = path.lower().split("/")
    words = [*folders, *_WORD_ENDS.split(name.rpartition(".")[0])]
    found = {_SPLIT_OF.get(word, word) for word in words if word in SPLIT_NAMES or word in _SPLIT_OF}
    return found.pop() if len(found) == 1 else None


def check_one_split(url: str, paths: Iterable[str]) -> None:
    """Refuse files of several splits as one source.

    Args:
        url: What names them.
        paths: Below their common folder.

    Raises:
        ConfigError: Names the splits and a file of each.
    """
    first: dict[str, str] = {}
    for path in paths:
        split = split_of(path)
        if split:
            first.setdefault(split, path)
    if len(first) > 1:
        listed = ", ".join(f"{split} ({path})" for split, path in sorted(first.items()))
        raise ConfigError(
            f"{url} holds the splits {listed}; name the files of one, as in '*train*', or give each split as a source "
            f"of its own to pack them together"
        )


def extra_of(columns: dict[str, Any]) -> str:
    """Return further columns of a picture as a JSON object; NaN and infinity, which JSON does not know, as null."""
    return json.dumps(_finite(columns), sort_keys=True, default=str, allow_nan=False) if columns else NO_EXTRA


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
