"""Checks a published dataset against its manifest, to the depth the user asks for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.dataset import Dataset
from pipeline.errors import BadImage, CorruptShard, NotFound
from pipeline.image import decode
from pipeline.manifest import sha256_hex
from pipeline.tar import BLOCK_BYTES, END, header, padded

LEVELS = ("exists", "size", "checksum", "tar", "decode")


@dataclass(frozen=True)
class Fault:
    """One thing that is not as the manifest says."""

    path: str
    problem: str


def verify(dataset: Dataset, level: str, on_shard: Callable[[int], None] = lambda count: None) -> Iterator[Fault]:
    """Gives every fault, shard by shard.

    Args:
        dataset: What to check.
        level: One of LEVELS; each includes those before it.
        on_shard: Called with 1 after each shard.
    """
    depth = LEVELS.index(level)
    yield from _manifest_faults(dataset)
    for row in dataset.shards:
        yield from _shard_faults(dataset, row, depth)
        on_shard(1)


def _manifest_faults(dataset: Dataset) -> Iterator[Fault]:
    """Tables and class names are small: their checksums are checked at every level."""
    for key, read in (
        (dataset.version.blocks, lambda: dataset.blocks),
        (dataset.version.classes, lambda: dataset.classes),
    ):
        try:
            read()
        except (NotFound, CorruptShard) as error:
            yield Fault(str(key), str(error))


def _shard_faults(dataset: Dataset, row: dict[str, Any], depth: int) -> Iterator[Fault]:
    try:
        for key, expected_bytes in ((row["path"], row["num_bytes"]), (row["sidecar"], row["sidecar_bytes"])):
            found_bytes = dataset.store.num_bytes(key)
            if depth >= 1 and found_bytes != expected_bytes:
                yield Fault(key, f"has {found_bytes} bytes instead of {expected_bytes}")
                return
        if depth < 2:
            return
        samples = dataset.samples(row["shard"])  # checks the sidecar's checksum
        tar = dataset.store.read(row["path"])
    except NotFound:
        yield Fault(row["path"], "the tar or its sidecar is missing")
        return
    except CorruptShard as error:
        yield Fault(row["sidecar"], str(error))
        return
    if sha256_hex(tar) != row["sha256"]:
        yield Fault(row["path"], "checksum differs")
        return
    if depth >= 3:
        yield from _layout_faults(row, tar, samples.to_pylist())
    if depth >= 4:
        yield from _image_faults(row, tar, samples.to_pylist())


def _layout_faults(row: dict[str, Any], tar: bytes, samples: list[dict[str, Any]]) -> Iterator[Fault]:
    position = 0
    for sample in samples:
        if sample["image_offset"] != position + BLOCK_BYTES:
            yield Fault(row["path"], f"sample {sample['key']} is not where its sidecar says")
            return
        for extension, num_bytes in (
            ("jpg", sample["image_bytes"]),
            ("cls", sample["cls_bytes"]),
            ("json", sample["json_bytes"]),
        ):
            name = f"{sample['key']}.{extension}"
            if tar[position : position + BLOCK_BYTES] != header(name, num_bytes):
                yield Fault(row["path"], f"member {name} has another header")
                return
            position += BLOCK_BYTES + padded(num_bytes)
    if tar[position:] != END:
        yield Fault(row["path"], f"does not end after its last sample, at byte {position}")


def _image_faults(row: dict[str, Any], tar: bytes, samples: list[dict[str, Any]]) -> Iterator[Fault]:
    for sample in samples:
        try:
            decode(tar[sample["image_offset"] : sample["image_offset"] + sample["image_bytes"]])
        except BadImage as error:
            yield Fault(row["path"], f"sample {sample['key']} does not decode: {error}")
