"""Images with the same bytes and different labels: found by their digests, counted, and shown by some names."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipeline.base.errors import NotFound
from pipeline.base.parsing import parse_json, parse_record
from pipeline.base.records import Record
from pipeline.dataset.schema import DIGEST_BYTES
from pipeline.dataset.tables import read_table
from pipeline.packing.external_sort import scratch_errors
from pipeline.store.base import Store, put

_NUM_PASSES = 16  # over the digests, by their first byte, so that a sixteenth of them is in memory
_READ_THREADS = 16
_MOST_EXAMPLES = 3
_FILTER_BITS = 26  # of a digest: 64 MB, and of 1 M new images one earlier image in 67 is looked at in vain
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
        body = store.read(conflicts_key(plan_id))
    except NotFound:
        return None
    return parse_record(Conflicts, body, f"{store.url}/{conflicts_key(plan_id)}")


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


def find_conflicts(digests: Digests, hashes: Hashes, num_known: int = 0, unread: bytes = b"") -> Found:
    """Return the images whose bytes come with different labels, if one of those with these bytes is new.

    Args:
        digests: Shape (images, 16).
        hashes: Of their labels, shape (images,).
        num_known: The first of them, which were compared before.
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
        groups = np.intersect1d(inverse[differs], inverse[positions >= num_known])
        is_found = np.isin(inverse, groups)
        count += int(is_found.sum())
        for row in np.flatnonzero(differs & is_found)[:_MOST_EXAMPLES].tolist():
            pairs.append((int(positions[firsts[inverse[row]]]), int(positions[row])))
    return Found(count, sorted(pairs)[:_MOST_EXAMPLES])


def conflicts_of_shards(
    store: Store,
    shards: Iterable[dict[str, Any]],
    plan_id: str,
    scratch: Path,
    earlier: Iterable[dict[str, Any]] = (),
) -> None:
    """Look for conflicts of packed shards, among them and with earlier ones, by their sidecars; keep what is found.

    Args:
        store: Holds the shards.
        shards: Rows of schema.SHARD_SCHEMA.
        plan_id: Of the plan that was packed.
        scratch: Existing folder for 24 bytes an image.
        earlier: Rows of the shards that the dataset had before; all their sidecars are read.
    """
    rows = list(shards)
    starts = np.cumsum([0, *(row["num_samples"] for row in rows)])
    if starts[-1] == 0:
        return
    paths = scratch / "conflict-digests.bin", scratch / "conflict-labels.bin"
    with (
        scratch_errors(scratch),
        paths[0].open("wb") as digest_file,
        paths[1].open("wb") as label_file,
        ThreadPoolExecutor(_READ_THREADS) as threads,
    ):
        for these, theirs in threads.map(partial(_read_sidecar, store), rows):
            these.tofile(digest_file)
            theirs.tofile(label_file)
    digests: Digests = np.memmap(paths[0], np.uint8, "r", shape=(int(starts[-1]), DIGEST_BYTES))
    labels: Hashes = np.memmap(paths[1], np.uint64, "r")
    known = _Known(store, list(earlier), digests)
    if len(known.places):
        digests = np.concatenate([known.digests, digests])
        labels = np.concatenate([known.labels, labels])

    def about(position: int) -> tuple[str, list[int]]:
        if position < len(known.places):
            row, offset = known.places[position]
            return _about(store, row, offset)
        position -= len(known.places)
        shard = int(np.searchsorted(starts, position, "right")) - 1
        return _about(store, rows[shard], position - int(starts[shard]))

    store_conflicts(store, plan_id, find_conflicts(digests, labels, len(known.places)), about)
    for path in paths:
        path.unlink()


class _Known:
    """Images of earlier shards whose bytes new ones may have."""

    def __init__(self, store: Store, rows: Sequence[dict[str, Any]], new: Digests) -> None:
        self.places: list[tuple[dict[str, Any], int]] = []
        digests, labels = [np.empty((0, DIGEST_BYTES), np.uint8)], [np.empty(0, np.uint64)]
        is_wanted = np.zeros(1 << _FILTER_BITS, bool)
        is_wanted[_begins(new)] = True
        with ThreadPoolExecutor(_READ_THREADS) as threads:
            for row, (these, theirs) in zip(rows, threads.map(partial(_read_sidecar, store), rows), strict=True):
                found = np.flatnonzero(is_wanted[_begins(these)])
                digests.append(these[found])
                labels.append(theirs[found])
                self.places += [(row, int(offset)) for offset in found]
        self.digests, self.labels = np.concatenate(digests), np.concatenate(labels)


def _begins(digests: Digests) -> Hashes:
    """Return the first bits of digests as numbers, for a set of them that is small whatever their number."""
    firsts = np.ascontiguousarray(digests[:, :8]).view("<u8")[:, 0]
    return firsts >> np.uint64(64 - _FILTER_BITS)


def _read_sidecar(store: Store, row: dict[str, Any]) -> tuple[Digests, Hashes]:
    table = read_table(store, row["sidecar"])
    digests = np.frombuffer(b"".join(table["digest"].to_pylist()), np.uint8).reshape(-1, DIGEST_BYTES)
    return digests, hash_labels(table["labels"].combine_chunks())


def _about(store: Store, row: dict[str, Any], offset: int) -> tuple[str, list[int]]:
    """Return name and labels of a sample of a shard."""
    sample = read_table(store, row["sidecar"]).slice(offset, 1).to_pylist()[0]
    text = store.read_range(row["path"], sample["json_offset"], sample["json_bytes"])
    return str(parse_json(text, f"{store.url}/{row['path']}", dict)["source"]), sample["labels"]
