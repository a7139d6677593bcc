"""From the rows of one shard to its tar, sidecar and rejects: a function of the rows and of what they point to."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa

from pipeline.errors import BadImage, NotFound
from pipeline.fingerprint import fingerprint
from pipeline.image import decode, encode_jpeg, is_jpeg
from pipeline.manifest import DIGEST_BYTES, REJECT_SCHEMA, SAMPLE_SCHEMA, Block, table_of
from pipeline.plan import ShardConfig, cut
from pipeline.tar import BLOCK_BYTES, END, member


@dataclass
class PackedShard:
    """The content of one shard, complete in memory.

    Attributes:
        tar: The tar's bytes.
        samples: Table of manifest.SAMPLE_SCHEMA, in tar order.
        rejects: Table of manifest.REJECT_SCHEMA.
        blocks: Runs of whole samples that cover the tar up to its end mark.
    """

    tar: bytes
    samples: pa.Table
    rejects: pa.Table
    blocks: tuple[Block, ...]


@dataclass
class _Builder:
    tar: bytearray = field(default_factory=bytearray)
    samples: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)


def pack_shard(
    rows: pa.Table,
    shard: int,
    config: ShardConfig,
    read: Callable[[str], bytes],
    on_image: Callable[[], None] = lambda: None,
) -> PackedShard:
    """Reads, checks and packs the pictures of one shard.

    Args:
        rows: The shard's rows in plan order.
        shard: The shard's number; part of every key.
        config: See ShardConfig.
        read: Gives the bytes at a URI; NotFound becomes a reject, other errors pass through.
        on_image: Called after each picture, for progress.

    Returns:
        The shard. Every row is in exactly one of samples and rejects.
    """
    builder = _Builder()
    for row in rows.to_pylist():
        try:
            _add_sample(builder, row, shard, config, read)
        except BadImage as error:
            builder.rejects.append(
                {name: row[name] for name in ("source", "uri", "labels")}
                | {"reason": error.reason, "detail": error.detail}
            )
        on_image()
    tar = bytes(builder.tar) + END
    return PackedShard(
        tar=tar,
        samples=table_of(builder.samples, SAMPLE_SCHEMA),
        rejects=table_of(builder.rejects, REJECT_SCHEMA),
        blocks=cut_blocks(tar, builder.samples, config.block_bytes),
    )


def _add_sample(
    builder: _Builder, row: dict[str, Any], shard: int, config: ShardConfig, read: Callable[[str], bytes]
) -> None:
    try:
        data = read(row["uri"])
    except NotFound as error:
        raise BadImage("missing", str(error)) from error
    pixels = decode(data)
    image = data if is_jpeg(data) else encode_jpeg(pixels, config.jpeg_quality)
    height, width = pixels.shape[:2]
    code, quality = fingerprint(pixels)
    key = f"{shard:06d}-{len(builder.samples):06d}"
    labels = row["labels"]
    cls = str(labels[0] if labels else -1).encode()
    about = json.loads(row["extra"]) | {
        "source": row["source"],
        "labels": labels,
        "width": width,
        "height": height,
    }
    described = json.dumps(about, sort_keys=True, separators=(",", ":")).encode()
    image_offset = len(builder.tar) + BLOCK_BYTES
    builder.tar += member(f"{key}.jpg", image) + member(f"{key}.cls", cls) + member(f"{key}.json", described)
    builder.samples.append(
        {
            "key": key,
            "image_offset": image_offset,
            "image_bytes": len(image),
            "cls_bytes": len(cls),
            "json_bytes": len(described),
            "labels": labels,
            "width": width,
            "height": height,
            "digest": hashlib.sha256(image).digest()[:DIGEST_BYTES],
            "code": code,
            "quality": quality,
        }
    )


def cut_blocks(tar: bytes, samples: list[dict[str, Any]], block_bytes: int) -> tuple[Block, ...]:
    """Cuts a tar into runs of whole samples of about `block_bytes`."""
    starts = [sample["image_offset"] - BLOCK_BYTES for sample in samples]
    starts.append(len(tar) - len(END))
    sizes = np.asarray(np.diff(starts), np.int64)
    blocks = []
    first = 0
    for end in cut(sizes, block_bytes, len(samples)):
        body = memoryview(tar)[starts[first] : starts[end]]
        blocks.append(
            Block(
                first_row=first,
                num_samples=end - first,
                offset=starts[first],
                num_bytes=len(body),
                crc32c=google_crc32c.value(bytes(body)),
            )
        )
        first = end
    return tuple(blocks)
