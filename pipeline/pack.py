"""From the fetched pictures of one shard to its tar: a function of its rows and of what they point to.

The tar is built block by block. While this thread prepares the pictures of a block, another digests and writes the one
before it; so a worker holds a few blocks, whatever the shard's size.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import blake3
import pyarrow as pa
from crc32c import crc32c

from pipeline.errors import BadImage
from pipeline.fetch import Fetched, Row
from pipeline.manifest import REJECT_SCHEMA, SAMPLE_SCHEMA, Blocks, image_digest, table_of
from pipeline.plan import ShardConfig
from pipeline.prepare import ImagePolicy, Prepared
from pipeline.sources.rows import NO_EXTRA
from pipeline.store.base import ObjectWriter
from pipeline.tar import BLOCK_BYTES, END, member_parts, padded

_to_json = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
_BLOCKS_AHEAD = 2  # one being written, one waiting
Prepare = Callable[[bytes, ImagePolicy], Prepared]


@dataclass(frozen=True)
class PackedShard:
    """What is known of a shard whose tar went to its writer.

    Attributes:
        samples: Table of manifest.SAMPLE_SCHEMA, in tar order.
        rejects: Table of manifest.REJECT_SCHEMA.
        blocks: Runs of whole samples that cover the tar up to its end mark.
        num_bytes: Of the tar.
        blake3: Of the tar.
    """

    samples: pa.Table
    rejects: pa.Table
    blocks: Blocks
    num_bytes: int
    blake3: str


class TarSink:
    """Digests and writes blocks in a thread of its own, in order. Close it, or leave its `with` block."""

    def __init__(self, writer: ObjectWriter) -> None:
        self._writer = writer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sink")
        self._running: deque[Future[int]] = deque()
        self._digest = blake3.blake3()
        self._blocks: list[tuple[int, int, int]] = []
        self._crc32c: list[int] = []
        self.num_bytes = 0

    def __enter__(self) -> "TarSink":
        return self

    def __exit__(self, *failure: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def add(self, parts: list[bytes], num_samples: int) -> None:
        """Takes a block of whole samples; waits while two are under way. Raises what writing an earlier one raised."""
        block = b"".join(parts)
        self._blocks.append((num_samples, self.num_bytes, len(block)))
        self._submit(block)

    def end(self) -> tuple[Blocks, str]:
        """Writes the end mark; gives the blocks and the BLAKE3 of the tar once all is written."""
        self._submit(END)
        while self._running:
            self._crc32c.append(self._running.popleft().result())
        counts, offsets, sizes = (
            (tuple(column) for column in zip(*self._blocks, strict=True)) if self._blocks else ((), (), ())
        )
        blocks = Blocks(
            num_samples=counts, offset=offsets, num_bytes=sizes, crc32c=tuple(self._crc32c[: len(self._blocks)])
        )
        return blocks, self._digest.hexdigest()

    def _submit(self, block: bytes) -> None:
        while len(self._running) >= _BLOCKS_AHEAD:
            self._crc32c.append(self._running.popleft().result())
        self._running.append(self._thread.submit(self._write, block))
        self.num_bytes += len(block)

    def _write(self, block: bytes) -> int:
        self._digest.update(block)
        self._writer.write(block)
        return int(crc32c(block))


@dataclass
class SidecarColumns:
    """A sidecar's columns while they grow: three times faster than a list of rows."""

    values: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in SAMPLE_SCHEMA.names})

    def add(self, **sample: Any) -> None:
        """Adds a row of manifest.SAMPLE_SCHEMA."""
        for name, value in sample.items():
            self.values[name].append(value)

    def table(self) -> pa.Table:
        """Gives the table."""
        return pa.table(self.values, schema=SAMPLE_SCHEMA)


def pack_shard(
    fetched: Iterable[Fetched],
    number: int,
    config: ShardConfig,
    writer: ObjectWriter,
    prepare: Prepare,
    plan_id: str = "",
    on_image: Callable[[int], None] = lambda num_bytes: None,
) -> PackedShard:
    """Prepares and packs the pictures of one shard.

    Args:
        fetched: The shard's rows in plan order, each with its bytes or the reason why there are none.
        number: The shard's number in the dataset; part of every key.
        config: See ShardConfig.
        writer: Receives the tar.
        prepare: See prepare.prepare.
        plan_id: Is noted with each reject.
        on_image: Called with the bytes read after each picture, for progress.

    Returns:
        The shard. Every row is in exactly one of samples and rejects.
    """
    columns = SidecarColumns()
    rejects: list[Row] = []
    block: list[bytes] = []
    block_bytes = num_in_block = 0
    with TarSink(writer) as sink:
        for row, data in fetched:
            try:
                if isinstance(data, BadImage):
                    raise data
                prepared = prepare(data, config.image)
            except BadImage as error:
                rejects.append(row | {"plan_id": plan_id, "reason": error.reason, "detail": error.detail})
                on_image(0)
                continue
            key = f"{number:06d}-{len(columns.values['key']):06d}"
            cls, about = described(row, prepared)
            size = 3 * BLOCK_BYTES + padded(len(prepared.data)) + padded(len(cls)) + padded(len(about))
            if num_in_block and block_bytes + size > config.block_bytes:
                sink.add(block, num_in_block)
                block, block_bytes, num_in_block = [], 0, 0
            start = sink.num_bytes + block_bytes
            block += member_parts(f"{key}.jpg", prepared.data)
            block += member_parts(f"{key}.cls", cls)
            block += member_parts(f"{key}.json", about)
            block_bytes += size
            num_in_block += 1
            columns.add(
                key=key,
                image_offset=start + BLOCK_BYTES,
                image_bytes=len(prepared.data),
                json_offset=start + size - padded(len(about)),
                json_bytes=len(about),
                labels=row["labels"],
                width=prepared.width,
                height=prepared.height,
                digest=image_digest(prepared.data),
                code=prepared.code,
                quality=prepared.quality,
            )
            on_image(len(data))
        if num_in_block:
            sink.add(block, num_in_block)
        blocks, digest = sink.end()
    return PackedShard(columns.table(), table_of(rejects, REJECT_SCHEMA), blocks, sink.num_bytes, digest)


def described(row: Row, prepared: Prepared) -> tuple[bytes, bytes]:
    """Gives the contents of a sample's `.cls` and `.json`."""
    labels = row["labels"]
    cls = str(labels[0] if labels else -1).encode()
    about = {"height": prepared.height, "labels": labels, "source": row["source"], "width": prepared.width}
    if row["extra"] != NO_EXTRA:
        about = json.loads(row["extra"]) | about
    return cls, _to_json(about).encode()
