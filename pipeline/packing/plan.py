"""Which picture goes into which shard: pure functions of the rows and the configuration.

Rows are ordered by a keyed hash of their names, so that every shard, and every block in it, is close to a random
sample of the whole set; then cut by bytes and by count. Rows that are read in runs (row groups of a Parquet file) are
ordered by a hash of the run first, coarsely: each stretch of about a shard's size takes whole runs from all over the
set and mixes their rows. So every run is read for one or two shards, where a plain hash order would read each row
group once for every picture in it.
"""

import hashlib
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from pydantic import NonNegativeInt, PositiveInt

from pipeline.base.ignored import IgnoredFiles
from pipeline.base.records import FORMAT, Record
from pipeline.base.seeds import key128
from pipeline.dataset.tar_format import TAR_BLOCK_BYTES
from pipeline.image.policy import ImagePolicy

# Headers and padded small members of one sample: two are about 100 bytes, so three headers and two content blocks.
OVERHEAD_BYTES = 5 * TAR_BLOCK_BYTES
UNKNOWN_IMAGE_BYTES = (
    110_000  # mean ImageNet JPEG (docs/format.md); where a source reports no sizes and nothing can be read
)
SHARDS_PER_PART = 256  # row groups of a plan's Parquet file: at 2,300 rows each a part is about 35 MB
Hashes = npt.NDArray[np.uint64]


class ShardConfig(Record):
    """What decides the bytes of a dataset, besides its rows.

    Attributes:
        seed: Key of the order.
        split: First part of the shard names; readers such as Hugging Face datasets take the split from it.
        shard_bytes: Target size of a tar. 256 MB: the unit lost on preemption, and 131 k shards for 300 M images.
        max_samples_per_shard: Upper limit of samples in a tar.
        block_bytes: Target size of a block, the unit of shuffling and reading. 8 MiB is the typical range size of S3.
        image: What is stored of a picture.
        skip_duplicates: Whether of rows with equal image bytes only the first in plan order is packed.
        first_shard: Number of the first shard: those before it belong to the dataset that is appended to.
    """

    seed: int = 0
    split: str = "train"
    shard_bytes: PositiveInt = 256_000_000
    max_samples_per_shard: PositiveInt = 100_000
    block_bytes: PositiveInt = 8 << 20
    image: ImagePolicy = ImagePolicy()
    skip_duplicates: bool = False
    first_shard: NonNegativeInt = 0


# Settings that every plan's id counts. One that a later release adds counts only where it is not its default, so that
# the ids of plans that do without it stay.
_ALWAYS_COUNTED = frozenset(
    [
        "seed", "split", "shard_bytes", "max_samples_per_shard", "block_bytes", "skip_duplicates", "first_shard",
        "image.check", "image.shorter_side_px", "image.reencode", "image.jpeg_quality", "image.max_bytes",
    ]
)  # fmt: skip


def counted(config: ShardConfig) -> str:
    """Return the part of a configuration that decides the ids of its plans, as text."""

    def pruned(values: dict[str, Any], defaults: dict[str, Any], prefix: str) -> dict[str, Any]:
        kept = {}
        for name, value in values.items():
            if isinstance(value, dict):
                kept[name] = pruned(value, defaults.get(name) or {}, f"{prefix}{name}.")
            elif f"{prefix}{name}" in _ALWAYS_COUNTED or value != defaults.get(name):
                kept[name] = value
        return kept

    defaults = type(config)().model_dump(mode="json")
    return json.dumps(pruned(config.model_dump(mode="json"), defaults, ""), separators=(",", ":"), ensure_ascii=False)


class Plan(Record):
    """A plan without its rows.

    Attributes:
        plan_id: Digest of everything that decides the bytes of the shards, 16 hexadecimal digits.
        config: See ShardConfig.
        bases: What relative paths of the rows are relative to; may change without changing the plan.
        image_columns: Column of image bytes of each base's Parquet files.
        request: Digest of the sources' files and of all settings: an equal request has this plan, and its sources
            need not be listed again. None where only listing shows whether a source changed.
        slimmed_from: Id of the plan of all rows, from which this one leaves out duplicates; None for others.
        classes: Class names by label; may be empty.
        num_samples: Rows to pack.
        num_duplicates: Rows left out for equal image bytes.
        num_unread: Rows whose bytes could not be read when duplicates were looked for; None where that is not known.
        num_known: Rows left out because the dataset has them.
        num_ignored: Files and members of the sources that are no images.
        ignored: The same by kind, with some names.
        num_unlabelled: Rows without a label.
        unlabelled: Names of some of them.
        unused_classes: Names of classes that no row has.
        num_bytes: Expected, of all tars.
        parts: Keys of the Parquet files of its rows.
        shard_ends: End row of each shard in plan order.
    """

    plan_id: str
    config: ShardConfig
    bases: tuple[str, ...]
    image_columns: tuple[str | None, ...]
    request: str | None
    slimmed_from: str | None = None
    classes: tuple[str, ...]
    num_classes: int
    num_samples: int
    num_duplicates: int = 0
    num_unread: int | None = None
    num_known: int = 0
    num_ignored: int = 0
    ignored: tuple[IgnoredFiles, ...] = ()
    num_unlabelled: int | None = None
    unlabelled: tuple[str, ...] = ()
    unused_classes: tuple[str, ...] = ()
    num_bytes: int
    parts: tuple[str, ...] = ()
    shard_ends: tuple[int, ...]

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return len(self.shard_ends)

    def num_rows(self, number: int) -> int:
        """Return the number of rows of a shard; `number` counts from 0 in this plan."""
        return self.shard_ends[number] - (self.shard_ends[number - 1] if number else 0)


def part_key(plan_id: str, part: int, sha256: str) -> str:
    """Return the key of one of a plan's Parquet files: rows of SHARDS_PER_PART shards, a row group each.

    It holds the digest of the file, since the plan is the same wherever its sources lie, and the file is not.
    """
    return f"plans/{plan_id}/rows-{part:05d}-{sha256[:8]}.parquet"


def plan_key(plan_id: str) -> str:
    """Return the key of a plan's record, which is written after its rows."""
    return f"plans/{plan_id}/plan.json"


def duplicates_key(plan_id: str) -> str:
    """Return the key of the list of rows that a plan left out for equal image bytes."""
    return f"plans/{plan_id}/duplicates.parquet"


def hash_names(names: list[str], seed: int) -> Hashes:
    """Return the keyed 64-bit hash (XXH3) of each name, shape (names,)."""
    key = key128(seed, "plan") & (2**64 - 1)
    hashed = xxhash.xxh3_64_intdigest
    return np.fromiter((hashed(name.encode(), key) for name in names), np.uint64, len(names))


def num_windows(num_bytes: int, shard_bytes: int) -> int:
    """Return the number of stretches in which runs are mixed: the power of two that makes them 1 to 2 shards long."""
    return 1 << max(0, int(num_bytes // shard_bytes).bit_length() - 1)


def window_of(run_hashes: Hashes, windows: int) -> Hashes:
    """Return the stretch, 0..windows-1, of rows by the hash of their run; `windows` is a power of two."""
    bits = windows.bit_length() - 1
    return run_hashes >> np.uint64(64 - bits) if bits else np.zeros_like(run_hashes)


def sample_bytes(
    image_bytes: npt.NDArray[np.int64], unknown_bytes: int, stored_fraction: float
) -> npt.NDArray[np.int64]:
    """Return the expected bytes of each row's sample in a tar, shape (rows,).

    Args:
        image_bytes: Of the source; -1 where unknown.
        unknown_bytes: To be taken there.
        stored_fraction: Bytes stored per byte read.
    """
    content = np.ceil(np.where(image_bytes < 0, unknown_bytes, image_bytes) * stored_fraction).astype(np.int64)
    return np.asarray(-(-content // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES + OVERHEAD_BYTES, np.int64)


def cut(sizes: npt.NDArray[np.int64], target_bytes: int, max_count: int) -> list[int]:
    """Return the end index of each group of consecutive items.

    A group is closed before the item that would take it over `target_bytes`, or at `max_count` items; every group
    has at least one item.
    """
    ends: list[int] = []
    total = np.concatenate([[0], np.cumsum(sizes)])
    start = 0
    while start < len(sizes):
        fitting = int(np.searchsorted(total, total[start] + target_bytes, side="right")) - 1
        start = max(start + 1, min(fitting, start + max_count))
        ends.append(start)
    return ends


def plan_digest(plan: Plan, shard_digests: list[bytes]) -> str:
    """Return the id of a plan: a digest of configuration, classes and rows, not of where the sources lie."""
    digest = hashlib.sha256(f"{FORMAT}\n{counted(plan.config)}\n{plan.shard_ends}\n".encode())
    digest.update("\n".join(plan.classes).encode())
    for shard_digest in shard_digests:
        digest.update(shard_digest)
    return digest.hexdigest()[:16]
