"""Images with the same bytes and different labels: found by their digests, counted, and shown by some names."""

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipeline.base.errors import NotFound
from pipeline.base.records import Record
from pipeline.dataset.schema import DIGEST_BYTES, from_parquet
from pipeline.packing.external_sort import scratch_errors
from pipeline.store.base import Store, put

_NUM_PASSES = 16  # over the digests, by their first byte, so that a sixteenth of them is in memory
_READ_THREADS = 16
_MOST_EXAMPLES = 3
_NO_LABEL = 2**64 - 1
Hashes = npt.NDArray[np.uint64]
Digests = np.ndarray[Any, np.dtype[np.uint8]]


class Conflicts(Record):
    """Images that come with other labels a second time.

    Attributes:
        num_images: How many of them have bytes that come with several labels.
        examples: Pairs of names with their labels.
    """

    num_images: int
    examples: tuple[tuple[str, tuple[int, ...], str, tuple[int, ...]], ...]

    def line(self, class_name: Callable[[int], str]) -> str:
        """Return in words what was found."""
        one, labels, other, others = self.examples[0]
        shown = [f"{name} ({', '.join(map(class_name, ids))})" for name, ids in ((one, labels), (other, others))]
        return f"{self.num_images:,} images have bytes that come with different labels, such as {' and '.join(shown)}"


@dataclass(frozen=True)
class Found:
    """How many images conflict, and pairs of their positions."""

    num_images: int
    pairs: list[tuple[int, int]]


def conflicts_key(plan_id: str) -> str:
    """Return the key of what was found among the images of a plan; absent where nothing was."""
    return f"plans/{plan_id}/label-conflicts.json"


def read_conflicts(store: Store, plan_id: str) -> Conflicts | None:
    """Return what was found when a plan was packed; none where there was nothing."""
    try:
        return Conflicts.model_validate_json(store.read(conflicts_key(plan_id)))
    except NotFound:
        return None


def store_conflicts(
    store: Store, plan_id: str, found: Found, about: Callable[[int], tuple[str, Sequence[int]]]
) -> None:
    """Keep what was found, if there is anything.

    Args:
        store: The destination.
        plan_id: Of the plan whose images they are.
        found: The conflicts.
        about: Returns name and labels of the image at a position.
    """
    if found.num_images:
        examples = [(*about(one), *about(other)) for one, other in found.pairs]
        record = Conflicts.model_validate({"num_images": found.num_images, "examples": examples})
        put(store, conflicts_key(plan_id), record.to_json())


def hash_labels(labels: pa.Array) -> Hashes:
    """Return a number for each list of labels, the same for the same labels in any order."""
    counts = pc.list_value_length(labels).to_numpy()
    firsts = np.full(len(labels), _NO_LABEL, np.uint64)
    offsets = labels.offsets.to_numpy()[:-1]
    values = labels.values.to_numpy()
    single = counts == 1
    firsts[single] = values[offsets[single]]
    for row in np.flatnonzero(counts > 1).tolist():
        distinct = sorted(set(labels[row].as_py()))
        firsts[row] = distinct[0] if len(distinct) == 1 else xxhash.xxh3_64_intdigest(repr(distinct).encode())
    return firsts


def find_conflicts(digests: Digests, hashes: Hashes, unread: bytes = b"") -> Found:
    """Return the images whose bytes come with different labels.

    Args:
        digests: Shape (images, 16).
        hashes: Of their labels, shape (images,).
        unread: Digest of images that could not be read.
    """
    count, pairs = 0, []
    for number in range(_NUM_PASSES):
        positions = np.flatnonzero((digests[:, 0] % _NUM_PASSES == number) & (hashes != np.uint64(_NO_LABEL)))
        mine = np.ascontiguousarray(digests[positions]).view(f"S{DIGEST_BYTES}")[:, 0]
        if unread:
            is_read = mine != unread
            positions, mine = positions[is_read], mine[is_read]
        _, firsts, inverse = np.unique(mine, return_index=True, return_inverse=True)
        differs = hashes[positions] != hashes[positions[firsts]][inverse]
        groups = np.unique(inverse[differs])
        count += int(np.isin(inverse, groups).sum())
        for row in np.flatnonzero(differs)[:_MOST_EXAMPLES].tolist():
            pairs.append((int(positions[firsts[inverse[row]]]), int(positions[row])))
    return Found(count, sorted(pairs)[:_MOST_EXAMPLES])


def conflicts_of_shards(store: Store, shards: Iterable[dict[str, Any]], plan_id: str, scratch: Path) -> None:
    """Look for conflicts among packed shards by their sidecars, and keep what is found.

    Args:
        store: Holds the shards.
        shards: Rows of schema.SHARD_SCHEMA.
        plan_id: Of the plan that was packed.
        scratch: Existing folder for 24 bytes an image.
    """
    rows = list(shards)
    starts = np.cumsum([0, *(row["num_samples"] for row in rows)])
    if starts[-1] == 0:
        return
    paths = scratch / "conflict-digests.bin", scratch / "conflict-labels.bin"

    def read(row: dict[str, Any]) -> tuple[bytes, bytes]:
        table = from_parquet(store.read(row["sidecar"]))
        return b"".join(table["digest"].to_pylist()), hash_labels(table["labels"].combine_chunks()).tobytes()

    with (
        scratch_errors(scratch),
        paths[0].open("wb") as digests,
        paths[1].open("wb") as labels,
        ThreadPoolExecutor(_READ_THREADS) as threads,
    ):
        for digest_bytes, label_bytes in threads.map(read, rows):
            digests.write(digest_bytes)
            labels.write(label_bytes)

    def about(position: int) -> tuple[str, list[int]]:
        shard = int(np.searchsorted(starts, position, "right")) - 1
        table = from_parquet(store.read(rows[shard]["sidecar"]))
        sample = table.slice(position - int(starts[shard]), 1).to_pylist()[0]
        text = store.read_range(rows[shard]["path"], sample["json_offset"], sample["json_bytes"])
        return json.loads(text)["source"], sample["labels"]

    found = find_conflicts(
        np.memmap(paths[0], np.uint8, "r", shape=(int(starts[-1]), DIGEST_BYTES)),
        np.memmap(paths[1], np.uint64, "r"),
    )
    store_conflicts(store, plan_id, found, about)
    for path in paths:
        path.unlink()
