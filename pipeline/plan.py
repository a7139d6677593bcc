"""Which picture goes into which shard: a pure function of the rows and the configuration.

Rows are ordered by a keyed hash of their names, so that every shard, and every block in it, is close to a random
sample of the whole set; then cut by bytes and by count.
"""

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import PositiveInt

from pipeline.manifest import FORMAT, Record
from pipeline.tar import BLOCK_BYTES

# Headers and padded small members of one sample: two are about 100 bytes, so three headers and two content blocks.
OVERHEAD_BYTES = 5 * BLOCK_BYTES
UNKNOWN_IMAGE_BYTES = 110_000  # mean ImageNet JPEG (docs/format.md)


class ShardConfig(Record):
    """What decides the bytes of a dataset, besides its rows.

    Attributes:
        seed: Key of the order.
        split: First part of the shard names; readers such as Hugging Face datasets take the split from it.
        shard_bytes: Target size of a tar. 256 MB: the unit lost on preemption, and 131 k shards for 300 M images.
        max_samples_per_shard: Upper limit of samples in a tar.
        block_bytes: Target size of a block, the unit of shuffling and reading. 8 MiB is the typical range size of S3.
        jpeg_quality: For pictures that are not JPEG; JPEG bytes are kept as they are.
    """

    seed: int = 0
    split: str = "train"
    shard_bytes: PositiveInt = 256_000_000
    max_samples_per_shard: PositiveInt = 100_000
    block_bytes: PositiveInt = 8 << 20
    jpeg_quality: int = 95


class Plan(Record):
    """A plan without its rows.

    Attributes:
        plan_id: Digest of everything that decides the bytes of the shards, 16 hexadecimal digits.
        shard_ends: End row of each shard in plan order.
    """

    plan_id: str
    config: ShardConfig
    num_samples: int
    num_bytes: int
    num_classes: int
    shard_ends: tuple[int, ...]

    def shard_rows(self, shard: int) -> tuple[int, int]:
        """Gives the half-open range of plan rows of a shard."""
        return (self.shard_ends[shard - 1] if shard else 0), self.shard_ends[shard]


def plan_shards(rows: pa.Table, classes: tuple[str, ...], config: ShardConfig) -> tuple[Plan, pa.Table]:
    """Orders the rows and cuts them into shards.

    Args:
        rows: Table of sources.rows.ROW_SCHEMA, in any order: the plan does not depend on it.
        classes: Class names; part of the plan's identity.
        config: See ShardConfig.

    Returns:
        The plan and the rows in plan order.
    """
    names = rows["source"].to_pylist()
    key = config.seed.to_bytes(16, "little", signed=True)
    hashes = [hashlib.blake2b(name.encode(), digest_size=8, key=key).digest() for name in names]
    labels = rows["labels"].to_pylist()  # the same picture may be listed with several labels
    order = sorted(range(len(names)), key=lambda row: (hashes[row], names[row], labels[row]))
    ordered = rows.take(pa.array(order, pa.int64())).combine_chunks()
    sizes = sample_bytes(ordered)
    ends = cut(sizes, config.shard_bytes, config.max_samples_per_shard)
    used = ordered["labels"].combine_chunks().values
    highest = int(np.max(used.to_numpy(), initial=-1)) if len(used) else -1
    plan = Plan(
        plan_id=_plan_id(ordered, classes, config),
        config=config,
        num_samples=len(names),
        num_bytes=int(sizes.sum()),
        num_classes=max(len(classes), highest + 1),
        shard_ends=tuple(int(end) for end in ends),
    )
    return plan, ordered


def sample_bytes(rows: pa.Table) -> npt.NDArray[np.int64]:
    """Gives the expected bytes of each row's sample in a tar, shape (rows,)."""
    known = rows["num_bytes"].to_numpy()
    content = np.where(known < 0, UNKNOWN_IMAGE_BYTES, known)
    return np.asarray(-(-content // BLOCK_BYTES) * BLOCK_BYTES + OVERHEAD_BYTES, np.int64)


def cut(sizes: npt.NDArray[np.int64], target_bytes: int, max_count: int) -> list[int]:
    """Gives the end index of each group of consecutive items.

    A group is closed before the item that would take it over `target_bytes`, or at `max_count` items; every group
    has at least one item.
    """
    ends: list[int] = []
    start, num_bytes = 0, 0
    for index, size in enumerate(sizes.tolist()):
        if index > start and (num_bytes + size > target_bytes or index - start >= max_count):
            ends.append(index)
            start, num_bytes = index, 0
        num_bytes += size
    if len(sizes):
        ends.append(len(sizes))
    return ends


def _plan_id(ordered: pa.Table, classes: tuple[str, ...], config: ShardConfig) -> str:
    digest = hashlib.sha256(f"{FORMAT}\n{config.model_dump_json()}\n".encode())
    digest.update("\n".join(classes).encode())
    # Without the URIs: a source that was moved is still the same source.
    identity = ordered.drop_columns(["uri"]).replace_schema_metadata(None)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, identity.schema) as writer:
        writer.write_table(identity, max_chunksize=65_536)
    digest.update(sink.getvalue())
    return digest.hexdigest()[:16]
