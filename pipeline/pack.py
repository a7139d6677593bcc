"""From the fetched pictures of one shard to its tar: a function of its rows and of what they point to.

The tar is built block by block. While this thread prepares the pictures of a block, another writes the one before it;
so a worker holds a few blocks, whatever the shard's size.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
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

_quoted = json.encoder.encode_basestring_ascii
_SMALL_SAMPLE_BYTES = 32_768  # below it a copy costs less than two more calls of each digest
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
    """Digests a tar as it comes, while it is warm, and writes whole blocks in a thread of its own, in order.

    Close it, or leave its `with` block.
    """

    def __init__(self, writer: ObjectWriter) -> None:
        self._writer = writer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sink")
        self._running: deque[Future[None]] = deque()
        self._digest = blake3.blake3()
        self._parts: list[bytes] = []  # of the open block
        self._num_samples = self._crc32c = 0  # of the open block
        self._ended: list[tuple[int, int, int, int]] = []
        self._block_start = 0
        self.num_bytes = 0

    def __enter__(self) -> "TarSink":
        return self

    def __exit__(self, *failure: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    @property
    def block_bytes(self) -> int:
        """Bytes of the open block."""
        return self.num_bytes - self._block_start

    def add(self, parts: tuple[bytes, ...]) -> None:
        """Takes a sample in pieces."""
        if sum(map(len, parts)) <= _SMALL_SAMPLE_BYTES:
            parts = (b"".join(parts),)
        for part in parts:
            self._digest.update(part)
            self._crc32c = crc32c(part, self._crc32c)
            self.num_bytes += len(part)
        self._parts += parts
        self._num_samples += 1

    def end_block(self) -> None:
        """Has the open block written; waits while two are under way. Raises what writing an earlier one raised."""
        if self._parts:
            self._ended.append((self._num_samples, self._block_start, self.block_bytes, self._crc32c))
            self._write(b"".join(self._parts))
        self._parts, self._num_samples, self._crc32c, self._block_start = [], 0, 0, self.num_bytes

    def end(self) -> tuple[Blocks, str]:
        """Writes the end mark; gives the blocks and the BLAKE3 of the tar once all is written."""
        self.end_block()
        self._digest.update(END)
        self.num_bytes += len(END)
        self._write(END)
        while self._running:
            self._running.popleft().result()
        counts, offsets, sizes, checksums = zip(*self._ended, strict=True) if self._ended else ((), (), (), ())
        blocks = Blocks(num_samples=counts, offset=offsets, num_bytes=sizes, crc32c=checksums)
        return blocks, self._digest.hexdigest()

    def _write(self, chunk: bytes) -> None:
        while len(self._running) >= _BLOCKS_AHEAD:
            self._running.popleft().result()
        self._running.append(self._thread.submit(self._writer.write, chunk))


def sidecar_table(samples: list[tuple[Any, ...]]) -> pa.Table:
    """Gives rows, each in the order of manifest.SAMPLE_SCHEMA, as a table."""
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
    samples: list[tuple[Any, ...]] = []
    rejects: list[Row] = []
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
            key = f"{number:06d}-{len(samples):06d}"
            cls, about = described(row, prepared)
            size = 3 * BLOCK_BYTES + padded(len(prepared.data)) + padded(len(cls)) + padded(len(about))
            if sink.block_bytes + size > config.block_bytes:
                sink.end_block()
            start = sink.num_bytes
            head, image, padding = member_parts(f"{key}.jpg", prepared.data)
            labels = b"".join((padding, *member_parts(f"{key}.cls", cls), *member_parts(f"{key}.json", about)))
            digest = image_digest(image)
            sink.add((head, image, labels))
            samples.append(
                (
                    key,
                    start + BLOCK_BYTES,
                    len(image),
                    start + size - padded(len(about)),
                    len(about),
                    row["labels"],
                    prepared.width,
                    prepared.height,
                    digest,
                    prepared.code,
                    prepared.quality,
                )
            )
            on_image(len(data))
        blocks, tar_digest = sink.end()
    return PackedShard(sidecar_table(samples), table_of(rejects, REJECT_SCHEMA), blocks, sink.num_bytes, tar_digest)


def described(row: Row, prepared: Prepared) -> tuple[bytes, bytes]:
    """Gives the contents of a sample's `.cls` and `.json`."""
    labels = row["labels"]
    cls = str(labels[0] if labels else -1).encode()
    if row["extra"] == NO_EXTRA:
        # What json.dumps gives, in 1 us instead of 4.
        listed = ",".join(map(str, labels))
        source = _quoted(row["source"])
        about = f'{{"height":{prepared.height},"labels":[{listed}],"source":{source},"width":{prepared.width}}}'
        return cls, about.encode()
    facts = {"height": prepared.height, "labels": labels, "source": row["source"], "width": prepared.width}
    about = json.dumps(json.loads(row["extra"]) | facts, sort_keys=True, separators=(",", ":"))
    return cls, about.encode()
