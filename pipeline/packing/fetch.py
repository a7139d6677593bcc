"""Reading the bytes of a shard's pictures, in plan order, wherever they lie.

Remote reads run 32 at a time, and row groups of Parquet files are read once each. What cannot be had ends
as a reject with its reason, or, where a whole store does not answer, as an error: a dataset must not depend on an
outage.
"""

import os
import stat
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.errors import BadImage, CorruptShard, Denied, NotFound, Unreachable
from pipeline.packing.external_sort import scratch_errors
from pipeline.packing.sources.rows import PARQUET, REJECTED, TAR, rejection_of
from pipeline.store.any_url import is_remote, join, open_file, read_file, read_span, scheme_of

_READS_AHEAD = 32  # at 50 ms a read: 640 pictures a second, more than one core decodes
SOURCE_SECONDS = 120.0  # for one picture, retries included
_STORES = ("", "file", "s3")  # what does not answer here is not one picture
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
    """Yield every row with its bytes, or with the reason why there are none.

    Args:
        rows: Table of schema.PLAN_SCHEMA.
        bases: What relative paths are relative to.
        image_columns: Column of image bytes in Parquet files, for each base.
        max_bytes: Larger pictures are not read where their size is known.
        source_seconds: Time-out of one remote picture.

    Raises:
        Denied: The credentials are wrong.
        Unreachable: A local or S3 store, or a Parquet file, does not answer.
    """
    with _InlineImages(rows, bases, image_columns) as inline:
        yield from _fetched(rows.to_pylist(), bases, inline, max_bytes, source_seconds)


def _fetched(
    rows: list[Row], bases: Sequence[str], inline: "_InlineImages", max_bytes: int, source_seconds: float
) -> Iterator[Fetched]:
    if not any(is_remote(base) for base in bases) and not any("://" in (row["path"] or row["source"]) for row in rows):
        for row in rows:
            yield row, _read(row, bases, inline, max_bytes)
        return
    pool = ThreadPoolExecutor(_READS_AHEAD, thread_name_prefix="fetch")
    ahead: deque[tuple[Row, Future[bytes | BadImage]]] = deque()
    try:
        for row in rows:
            ahead.append((row, pool.submit(_read, row, bases, inline, max_bytes)))
            if len(ahead) == _READS_AHEAD:
                yield _arrived(*ahead.popleft(), bases, source_seconds)
        while ahead:
            yield _arrived(*ahead.popleft(), bases, source_seconds)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _arrived(row: Row, reading: "Future[bytes | BadImage]", bases: Sequence[str], seconds: float) -> Fetched:
    try:
        return row, reading.result(seconds)
    except FutureTimeoutError as error:
        message = f"{_url(row, bases)} was not read within {seconds:g} s"
        if scheme_of(_url(row, bases)) in _STORES:
            raise Unreachable(message) from error
        return row, BadImage("timeout", message)


def _url(row: Row, bases: Sequence[str]) -> str:
    return join(bases[row["base"]], row["path"] or row["source"])


def _read(row: Row, bases: Sequence[str], inline: "_InlineImages", max_bytes: int) -> "bytes | BadImage":
    url = _url(row, bases)
    if row["container"] == PARQUET:
        return inline.read(url, row["offset"])
    problem = _problem(row, url, max_bytes)
    if problem:
        return problem
    try:
        if row["container"] == TAR:
            return read_span(url, row["offset"], row["num_bytes"])
        return read_file(url, max_bytes if row["num_bytes"] < 0 else None)
    except (NotFound, CorruptShard, Denied, Unreachable) as error:
        if isinstance(error, Denied | Unreachable) and scheme_of(url) in _STORES:
            raise  # a whole store is gone, not a picture
        return BadImage(_REASONS[type(error)], str(error))


def _problem(row: Row, url: str, max_bytes: int) -> BadImage | None:
    """Return why a row need not be read."""
    if row["container"] == REJECTED:
        return rejection_of(row["extra"])
    if row["num_bytes"] > max_bytes:
        return BadImage("too-large", f"{row['num_bytes']:,} bytes exceed the limit of {max_bytes:,}")
    if row["num_bytes"] == 0 and _is_special(url):
        return BadImage("not-a-file", f"{url} is a pipe, socket or device")
    return None


def _is_special(url: str) -> bool:
    """Return whether a local path is what may never end when it is read; such files have size 0."""
    if is_remote(url):
        return False
    try:
        return not stat.S_ISREG(os.stat(url.removeprefix("file://")).st_mode)
    except OSError:
        return False  # reading it shows what is wrong


class _InlineImages:
    """The inline images of a shard: their row groups are read once each, and the images wait in a file on disk.

    They come in the order of the files and are wanted in the order of the plan, and may be many times what is stored
    of them.
    """

    def __init__(self, rows: pa.Table, bases: Sequence[str], image_columns: Sequence[str | None]) -> None:
        inline = rows.filter(pa.compute.equal(rows["container"], PARQUET)).select(["source", "base", "path", "offset"])
        self._wanted: dict[tuple[str, str], list[int]] = {}
        for row in inline.to_pylist():
            place = _url(row, bases), str(image_columns[row["base"]])
            self._wanted.setdefault(place, []).append(row["offset"])
        self._spans: dict[tuple[str, int], tuple[int, int]] = {}
        self._file = tempfile.TemporaryFile() if self._wanted else None  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> "_InlineImages":
        position = 0
        for (url, column), offsets in self._wanted.items():
            for offset, image in _images_of(url, column, sorted(offsets)):
                self._spans[url, offset] = position, len(image)
                with scratch_errors(Path(tempfile.gettempdir())):
                    os.pwrite(self._descriptor, image, position)
                position += len(image)
        return self

    def __exit__(self, *failure: object) -> None:
        if self._file:
            self._file.close()

    @property
    def _descriptor(self) -> int:
        return self._file.fileno() if self._file else -1

    def read(self, url: str, offset: int) -> bytes:
        """Return the image of a row."""
        position, num_bytes = self._spans[url, offset]
        return os.pread(self._descriptor, num_bytes, position)


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
    """Yield the images, 64 rows at a time; Arrow holds the group's pages meanwhile (sources.table has the limit)."""
    position = first
    for batch in file.iter_batches(64, row_groups=[number], columns=[column], use_threads=False):
        values = batch.column(0)
        for offset in [offset for offset in offsets if position <= offset < position + len(values)]:
            value = values[offset - position].as_py()
            yield offset, (value.get("bytes") if isinstance(value, dict) else value) or b""
        position += len(values)
