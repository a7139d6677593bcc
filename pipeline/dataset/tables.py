"""Tables in Parquet files, read back: whoever wrote them, they have a limit, and errors name the file."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.errors import CorruptShard
from pipeline.store.base import Store, read_checked

# A choice: tables of our own unpack to 2 to 20 times their size; the floor lets small ones of equal rows be.
_MOST_UNPACKED_RATIO, _MOST_UNPACKED_BYTES = 100, 1 << 30
_ROWS_AT_ONCE = 1024  # a choice: with a text of 1 MB each, they are 1 GB; a third of the rows of a sidecar


def read_table(store: Store, key: str, sha256: str | None = None) -> pa.Table:
    """Return the table of a stored Parquet file.

    Args:
        store: Where it is.
        key: Its key.
        sha256: Its digest where that is known; the file is then read again where it differs.

    Raises:
        NotFound: There is no such file.
        CorruptShard: Its digest differs, or as `from_parquet`.
    """
    body = store.read(key) if sha256 is None else read_checked(store, key, sha256)
    return from_parquet(body, f"{store.url}/{key}")


def from_parquet(body: bytes, url: str) -> pa.Table:
    """Return the table of Parquet bytes.

    Args:
        body: The file's bytes.
        url: What it is called in messages.

    Raises:
        CorruptShard: It is no whole Parquet file, or unpacks to more than tables of its size do.
    """
    return read_parquet(pa.BufferReader(body), len(body), url)


def read_parquet(file: Any, num_bytes: int, url: str) -> pa.Table:
    """Do as `from_parquet` with an open file of `num_bytes`.

    Without threads: the tables are small, and a process that ends while Arrow starts its threads is aborted.
    """
    most_bytes = max(_MOST_UNPACKED_BYTES, _MOST_UNPACKED_RATIO * num_bytes)
    try:
        opened = pq.ParquetFile(file, pre_buffer=False)
        schema, parts = opened.schema_arrow, []
        unpacked = _claimed_bytes(opened.metadata, schema)
        if unpacked <= most_bytes:
            unpacked = 0
            # A long text that a million rows repeat is small until each row gets its own: some at a time.
            for part in opened.iter_batches(_ROWS_AT_ONCE, use_threads=False):
                parts.append(part)
                unpacked += part.nbytes
                if unpacked > most_bytes:
                    break
        if unpacked > most_bytes:
            raise CorruptShard(f"{url}: {num_bytes:,} bytes that unpack to more than {most_bytes:,}; restore it")
        return pa.Table.from_batches(parts, schema).combine_chunks()
    except (ValueError, pa.ArrowException, OSError, MemoryError) as error:
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorruptShard(f"{url} is no whole Parquet file ({problem}); restore it") from error


def _claimed_bytes(about: pq.FileMetaData, schema: pa.Schema) -> int:
    """Return the larger of what a file says that its pages unpack to, and of what its rows take at least."""
    pages = sum(max(0, about.row_group(number).total_byte_size) for number in range(about.num_row_groups))
    return int(max(pages, about.num_rows * sum(map(_row_bytes, schema.types))))


def _row_bytes(kind: pa.DataType) -> int:
    """Return the least that a value of a type takes in memory."""
    try:
        return int(max(1, kind.bit_width // 8))
    except ValueError:  # of texts and lists
        return 1
