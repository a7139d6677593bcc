"""Checks a published dataset against its manifest, to the depth the user asks for."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.base.errors import BadImage, CorruptShard, NotFound
from pipeline.base.seeds import rng
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.schema import image_digest, is_adopted
from pipeline.dataset.tables import read_table
from pipeline.dataset.tar_reader import scan_tar
from pipeline.image.decode import decode
from pipeline.store.base import Store, blake3_of
from pipeline.work.pools import Pool
from pipeline.work.schedule import Attempt, run_calls

LEVELS = ("exists", "size", "checksum", "tar", "decode")


@dataclass(frozen=True)
class Fault:
    """One thing that is not as the manifest says.

    Attributes:
        path: Key of the object.
        problem: What is wrong.
        shard: Number of the shard in the manifest; -1 for the manifest's own tables.
    """

    path: str
    problem: str
    shard: int = -1


def sampled_shards(num_shards: int, fraction: float, seed: int) -> list[int]:
    """Return the shards of a spot check: the share, rounded up, chosen by the seed, ascending."""
    count = int(np.ceil(num_shards * fraction))
    return sorted(rng(seed, "verify").permutation(num_shards)[:count].tolist())


def verify(
    dataset: Dataset,
    level: str,
    pool: Pool,
    shards: list[int] | None = None,
    on_shard: Callable[[int], None] = lambda num_bytes: None,
) -> Iterator[Fault]:
    """Yield every fault, shard by shard, in any order of shards.

    Args:
        dataset: What to check.
        level: One of LEVELS; each includes those before it.
        pool: Where shards are checked.
        shards: Numbers of the shards to check; all by default.
        on_shard: Called with its bytes after each shard.
    """
    depth = LEVELS.index(level)
    yield from _manifest_faults(dataset)
    rows = iter(dataset.shards) if shards is None else (dataset.shards[number] for number in shards)
    # A worker is sent the row of its shard; opening the dataset would read those of all.
    calls = (tuple(row.items()) for row in rows)
    for call, faults in run_calls(pool, _ShardCheck(dataset.store, depth), calls):
        on_shard(dict(call)["num_bytes"])
        yield from faults


def _manifest_faults(dataset: Dataset) -> Iterator[Fault]:
    """Yield damaged tables and class names; these are small, so their checksums are checked at every level."""
    for key, read in (
        (dataset.version.blocks, lambda: dataset.blocks),
        (dataset.version.classes, lambda: dataset.classes),
        (dataset.version.rejects, lambda: dataset.rejects),
    ):
        try:
            read()
        except (NotFound, CorruptShard) as error:
            yield Fault(str(key), str(error))


@dataclass(frozen=True)
class _ShardCheck:
    """Checks one shard; runs on a worker."""

    store: Store
    depth: int

    def __call__(self, attempt: Attempt[tuple[tuple[str, Any], ...]]) -> list[Fault]:
        row = dict(attempt.call)
        return [Fault(path, problem, row["shard"]) for path, problem in self._problems(row)]

    def _problems(self, row: dict[str, Any]) -> Iterator[tuple[str, str]]:
        store = self.store
        for key, expected_bytes in ((row["path"], row["num_bytes"]), (row["sidecar"], row["sidecar_bytes"])):
            try:
                found_bytes = store.num_bytes(key)
            except NotFound:
                yield key, "is missing"
                return
            if self.depth >= LEVELS.index("size") and found_bytes != expected_bytes:
                yield key, f"has {found_bytes} bytes instead of {expected_bytes}"
                return
        if self.depth < LEVELS.index("checksum"):
            return
        try:
            samples = read_table(store, row["sidecar"], row["sidecar_sha256"])
        except CorruptShard:
            yield row["sidecar"], "checksum differs"
            return
        if blake3_of(store, row["path"]) != row["blake3"]:
            yield row["path"], "checksum differs"
            return
        if self.depth >= LEVELS.index("tar"):
            # Pictures of an adopted tar that cannot be used are still in it.
            most_unlisted = row["num_rejects"] if is_adopted(row["sidecar"]) else 0
            yield from self._content_problems(row["path"], store.read(row["path"]), samples.to_pylist(), most_unlisted)

    def _content_problems(
        self, path: str, tar: bytes, samples: list[dict[str, Any]], most_unlisted: int
    ) -> Iterator[tuple[str, str]]:
        """Compare the tar as Python's own reader sees it, sample by sample beside the sidecar."""
        try:
            found = {sample.key: sample for sample in scan_tar(io.BytesIO(tar), path)[0] if sample.image}
        except CorruptShard as error:
            yield path, str(error)
            return
        for sample in samples:
            image = found.pop(sample["key"], None)
            if image is None or image.image != (sample["image_offset"], sample["image_bytes"]):
                yield path, f"sample {sample['key']} is not where its sidecar has it"
                continue
            data = tar[sample["image_offset"] : sample["image_offset"] + sample["image_bytes"]]
            if image_digest(data) != sample["digest"]:
                yield path, f"image of sample {sample['key']} has another digest than in its sidecar"
            elif self.depth >= LEVELS.index("decode"):
                try:
                    decode(data)
                except BadImage as error:
                    yield path, f"sample {sample['key']} does not decode: {error}"
        for key in list(found)[most_unlisted:]:
            yield path, f"sample {key} is not in the sidecar"
