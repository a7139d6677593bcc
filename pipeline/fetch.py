"""Reading the bytes of a shard's pictures, in plan order, wherever they lie.

Remote reads are on their way 32 at a time, row groups of Parquet files are read once each, and no more than the
pictures of one shard is held. What cannot be had ends as a reject with its reason, or, where a whole store does not
answer, as an error: a dataset must not depend on an outage.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import BadImage, CorruptShard, Denied, NotFound, Unreachable
from pipeline.sources.files import is_remote, join, open_file, read_file, read_span, scheme_of
from pipeline.sources.rows import PARQUET, TAR

_READS_AHEAD = 32  # at 50 ms a read: 640 pictures a second, more than one core decodes
SOURCE_SECONDS = 120.0  # for one picture, retries included: the slowest mirrors of img2dataset's lists take 60
_REASONS: dict[type[Exception], str] = {
    NotFound: "missing",
    CorruptShard: "truncated",
    Denied: "denied",
    Unreachable: "unreachable",
}
Row = dict[str, Any]
Fetched = tuple[Row, "bytes | BadImage"]


def fetch(
    rows: pa.Table,
    bases: Sequence[str],
    image_columns: Sequence[str | None],
    max_bytes: int,
    source_seconds: float = SOURCE_SECONDS,
) -> Iterator[Fetched]:
    """Gives every row with its bytes, or with the reason why there are none.

    Args:
        rows: Table of manifest.PLAN_SCHEMA.
        bases: What relative paths are relative to.
        image_columns: Column of image bytes in Parquet files, for each base.
        max_bytes: Larger pictures are not read where their size is known.
        source_seconds: Time-out of one remote picture.

    Raises:
        Denied: The credentials are wrong.
        Unreachable: A store of ours, or a Parquet file, does not answer.
    """
    images = _inline_images(rows, bases, image_columns)
    if not any(is_remote(place) for place in (*bases, *rows["path"].drop_null().unique().to_pylist())):
        for row in rows.to_pylist():
            yield row, _read(row, bases, images, max_bytes)
        return
    pool = ThreadPoolExecutor(_READS_AHEAD, thread_name_prefix="fetch")
    ahead: deque[tuple[Row, Future[bytes | BadImage]]] = deque()
    try:
        for row in rows.to_pylist():
            ahead.append((row, pool.submit(_read, row, bases, images, max_bytes)))
            if len(ahead) == _READS_AHEAD:
                yield _arrived(*ahead.popleft(), source_seconds)
        while ahead:
            yield _arrived(*ahead.popleft(), source_seconds)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _arrived(row: Row, reading: "Future[bytes | BadImage]", seconds: float) -> Fetched:
    try:
        return row, reading.result(seconds)
    except FutureTimeoutError:
        return row, BadImage("timeout", f"not read within {seconds:g} s")


def _read(row: Row, bases: Sequence[str], images: dict[tuple[str, int], bytes], max_bytes: int) -> "bytes | BadImage":
    url = join(bases[row["base"]], row["path"] or row["source"])
    if row["container"] == PARQUET:
        return images.pop((url, row["offset"]), b"")
    if row["num_bytes"] > max_bytes:
        return BadImage("too-large", f"{row['num_bytes']:,} bytes exceed the limit of {max_bytes:,}")
    try:
        return read_span(url, row["offset"], row["num_bytes"]) if row["container"] == TAR else read_file(url)
    except (NotFound, CorruptShard, Denied, Unreachable) as error:
        if isinstance(error, Denied | Unreachable) and scheme_of(url) in ("", "file", "s3"):
            raise  # a whole store is gone, not a picture
        return BadImage(_REASONS[type(error)], str(error))


def _inline_images(
    rows: pa.Table, bases: Sequence[str], image_columns: Sequence[str | None]
) -> dict[tuple[str, int], bytes]:
    """Reads the row groups that hold inline images, each once, and keeps the wanted ones."""
    inline = rows.filter(pa.compute.equal(rows["container"], PARQUET)).select(["source", "base", "path", "offset"])
    wanted: dict[tuple[str, str], list[int]] = {}
    for row in inline.to_pylist():
        url = join(bases[row["base"]], row["path"] or row["source"])
        wanted.setdefault((url, str(image_columns[row["base"]])), []).append(row["offset"])
    images: dict[tuple[str, int], bytes] = {}
    for (url, column), offsets in wanted.items():
        for offset, image in _images_of(url, column, sorted(offsets)):
            images[url, offset] = image
    return images


def _images_of(url: str, column: str, offsets: list[int]) -> Iterator[tuple[int, bytes]]:
    try:
        with open_file(url) as opened:
            file = pq.ParquetFile(opened, pre_buffer=False)
            first = 0
            for number in range(file.num_row_groups):
                stop = first + file.metadata.row_group(number).num_rows
                here = [offset for offset in offsets if first <= offset < stop]
                if here:
                    yield from _images_of_group(file, number, column, first, here)
                first = stop
    except (pa.ArrowException, OSError) as error:
        raise CorruptShard(f"{url} cannot be read ({error}); restore it or leave it out") from error


def _images_of_group(
    file: pq.ParquetFile, number: int, column: str, first: int, offsets: list[int]
) -> Iterator[tuple[int, bytes]]:
    """A page at a time: the whole group may be larger than a shard."""
    position = first
    for batch in file.iter_batches(64, row_groups=[number], columns=[column], use_threads=False):
        values = batch.column(0)
        for offset in [offset for offset in offsets if position <= offset < position + len(values)]:
            value = values[offset - position].as_py()
            yield offset, (value.get("bytes") if isinstance(value, dict) else value) or b""
        position += len(values)
