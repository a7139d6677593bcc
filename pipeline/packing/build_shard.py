"""From the fetched pictures of one shard to its tar: a function of its rows and of what they point to.

The tar is built block by block. While this thread prepares the pictures of a block, another digests and writes the one
before it; so a worker holds three blocks, whatever the shard's size.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

import blake3
import numpy as np
import pyarrow as pa
from crc32c import crc32c

from pipeline.base.errors import BadImage
from pipeline.base.ignored import IgnoredFiles
from pipeline.dataset.schema import REJECT_SCHEMA, SAMPLE_SCHEMA, Blocks, image_digest, table_of
from pipeline.dataset.tar_format import END, TAR_BLOCK_BYTES, padded, sample_parts
from pipeline.image.policy import ImagePolicy, Prepared
from pipeline.packing.fetch import Fetched, Row
from pipeline.packing.plan import ShardConfig, cut
from pipeline.packing.sources.rows import NO_EXTRA
from pipeline.store.base import ObjectWriter

_quoted = json.encoder.encode_basestring_ascii
_BLOCKS_AHEAD = 2  # one being written, one waiting
Prepare = Callable[[bytes, ImagePolicy], Prepared]


@dataclass(frozen=True)
class PackedShard:
    """What is known of a shard whose tar went to its writer.

    Attributes:
        samples: Table of schema.SAMPLE_SCHEMA, in tar order.
        rejects: Table of schema.REJECT_SCHEMA.
        blocks: Runs of whole samples that cover the tar up to its end mark.
        num_bytes: Of the tar.
        blake3: Of the tar.
        ignored: Members of a tar of others that are in no sample.
    """

    samples: pa.Table
    rejects: pa.Table
    blocks: Blocks
    num_bytes: int
    blake3: str
    ignored: tuple[IgnoredFiles, ...] = ()


class TarSink:
    """Builds a tar block by block, and digests and writes whole blocks in a thread of its own, in order.

    Pictures are copied into memory that is used again: fresh pages cost more than the copy. Close it, or leave its
    `with` block.
    """

    def __init__(self, writer: ObjectWriter, block_bytes: int) -> None:
        """Open a sink.

        Args:
            writer: Receives the tar.
            block_bytes: A block is ended before the sample that would take it over this.
        """
        self._writer = writer
        self._block_bytes = block_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sink")
        self._running: deque[Future[tuple[memoryview, int]]] = deque()
        self._digest = blake3.blake3()
        self._buffer = _memory(block_bytes)  # of the open block
        self._used = self._num_samples = 0  # of the open block
        self._counts: list[int] = []
        self._offsets: list[int] = []
        self._sizes: list[int] = []
        self._checksums: list[int] = []
        self.num_bytes = 0

    def __enter__(self) -> "TarSink":
        return self

    def __exit__(self, *failure: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def add(self, before: bytes, image: bytes, after: bytes) -> int:
        """Add a sample: its picture, and what stands before and after it; return where it begins in the tar.

        Raises what writing an earlier block raised.
        """
        num_bytes = len(before) + len(image) + len(after)
        if self._used + num_bytes > self._block_bytes and self._used:
            self._end_block()
        start, position = self.num_bytes, self._used
        if position + num_bytes > len(self._buffer):
            self._buffer = _memory(num_bytes)  # a sample above the block size is a block
        for part in (before, image, after):
            self._buffer[position : position + len(part)] = part
            position += len(part)
        self._used = position
        self.num_bytes += num_bytes
        self._num_samples += 1
        return start

    def end(self) -> tuple[Blocks, str]:
        """Write the end mark; return the blocks and the BLAKE3 of the tar once all is written."""
        if self._used:
            self._end_block()
        while self._running:
            self._written()
        self._digest.update(END)
        self._writer.write(END)
        self.num_bytes += len(END)
        blocks = Blocks(
            num_samples=tuple(self._counts),
            offset=tuple(self._offsets),
            num_bytes=tuple(self._sizes),
            crc32c=tuple(self._checksums),
        )
        return blocks, self._digest.hexdigest()

    def _end_block(self) -> None:
        """Have the open block written; wait while two are being written, and take the memory of one of them."""
        self._counts.append(self._num_samples)
        self._offsets.append(self.num_bytes - self._used)
        self._sizes.append(self._used)
        self._running.append(self._thread.submit(self._write, self._buffer, self._used))
        free = self._written() if len(self._running) > _BLOCKS_AHEAD else None
        self._buffer = free if free is not None and len(free) == self._block_bytes else _memory(self._block_bytes)
        self._used = self._num_samples = 0

    def _written(self) -> memoryview:
        buffer, checksum = self._running.popleft().result()
        self._checksums.append(checksum)
        return buffer

    def _write(self, buffer: memoryview, num_bytes: int) -> tuple[memoryview, int]:
        block = buffer[:num_bytes]
        self._digest.update(block)
        self._writer.write(block)
        return buffer, crc32c(block)


def _memory(num_bytes: int) -> memoryview:
    return memoryview(bytearray(num_bytes))  # copying into a bytearray itself would copy twice


def sidecar_table(samples: list[tuple[Any, ...]]) -> pa.Table:
    """Return rows, each in the order of schema.SAMPLE_SCHEMA, as a table."""
    columns = zip(*samples, strict=True) if samples else ([] for _ in SAMPLE_SCHEMA)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, SAMPLE_SCHEMA, strict=True)],
        schema=SAMPLE_SCHEMA,
    )


def pack_shard(
    fetched: Iterable[Fetched],
    number: int,
    config: ShardConfig,
    writer: ObjectWriter,
    prepare: Prepare,
    plan_id: str = "",
    on_image: Callable[[int], None] = lambda num_bytes: None,
) -> PackedShard:
    """Prepare and pack the pictures of one shard.

    Args:
        fetched: The shard's rows in plan order, each with its bytes or the reason why there are none.
        number: The shard's number in the dataset; part of every key.
        config: See ShardConfig.
        writer: Receives the tar.
        prepare: See policy.prepare.
        plan_id: Is recorded with each reject.
        on_image: Called with the bytes read after each picture, for progress.

    Returns:
        The shard. Every row is in exactly one of samples and rejects.
    """
    samples: list[tuple[Any, ...]] = []
    rejects: list[Row] = []
    with TarSink(writer, config.block_bytes) as sink:
        for row, data in fetched:
            try:
                if isinstance(data, BadImage):
                    raise data
                prepared = prepare(data, config.image)
            except BadImage as error:
                rejects.append(row | {"plan_id": plan_id, "reason": error.reason, "detail": error.detail})
                on_image(0)
                continue
            key = f"{number:06d}-{len(samples):06d}"
            image = prepared.data
            cls, about = label_and_json(row, prepared)
            before, after = sample_parts(key.encode(), len(image), cls, about)
            start = sink.add(before, image, after)
            samples.append(
                (
                    key,
                    start + TAR_BLOCK_BYTES,
                    len(image),
                    sink.num_bytes - padded(len(about)),
                    len(about),
                    row["labels"],
                    prepared.width,
                    prepared.height,
                    image_digest(image),
                    prepared.code,
                    prepared.quality,
                )
            )
            on_image(len(data))
        blocks, tar_digest = sink.end()
    return PackedShard(sidecar_table(samples), table_of(rejects, REJECT_SCHEMA), blocks, sink.num_bytes, tar_digest)


def blocks_of(file: BinaryIO, starts: Sequence[int], block_bytes: int) -> Blocks:
    """Cut a tar that is there into blocks.

    Args:
        file: The open tar; seekable.
        starts: Where each usable sample begins, and where the last one ends.
        block_bytes: A block is ended before the sample that would take it over this.
    """
    ends = cut(np.asarray(np.diff(starts), np.int64), block_bytes, len(starts))
    firsts = [0, *ends][: len(ends)]
    checksums = []
    for first, end in zip(firsts, ends, strict=True):
        file.seek(starts[first])
        checksums.append(int(crc32c(file.read(starts[end] - starts[first]))))
    return Blocks(
        num_samples=tuple(end - first for first, end in zip(firsts, ends, strict=True)),
        offset=tuple(starts[first] for first in firsts),
        num_bytes=tuple(starts[end] - starts[first] for first, end in zip(firsts, ends, strict=True)),
        crc32c=tuple(checksums),
    )


def label_and_json(row: Row, prepared: Prepared) -> tuple[bytes, bytes]:
    """Return the contents of a sample's `.cls` and `.json`."""
    labels = row["labels"]
    cls = str(labels[0] if labels else -1).encode()
    if row["extra"] == NO_EXTRA:
        # What json.dumps returns, in 1 us instead of 4.
        listed = ",".join(map(str, labels))
        source = _quoted(row["source"])
        about = f'{{"height":{prepared.height},"labels":[{listed}],"source":{source},"width":{prepared.width}}}'
        return cls, about.encode()
    facts = {"height": prepared.height, "labels": labels, "source": row["source"], "width": prepared.width}
    about = json.dumps(json.loads(row["extra"]) | facts, sort_keys=True, separators=(",", ":"))
    return cls, about.encode()
