"""Every sample exactly once, in dataset order: for evaluation, where nothing may be replaced."""

import json
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat
from typing import NamedTuple

import numpy as np

from pipeline.base.errors import CorruptShard
from pipeline.dataset.dataset import Dataset
from pipeline.image.transforms import Transform
from pipeline.store.hedged_reads import RangeReader
from pipeline.streaming.loader.blocks import BlockReader, Damaged, Loaded
from pipeline.streaming.order import Piece, even_pieces
from pipeline.streaming.rendered import Picture, rendered
from pipeline.streaming.selection import Selection, Span
from pipeline.streaming.stream import Batch

# While one block is worked on the next are being read, for 80 MB at most; with four, readers waited for sidecars.
_READERS = 2
_BLOCKS_AHEAD = 8


class Encoded(NamedTuple):
    """One sample as it is stored.

    Attributes:
        shard: Number of its shard.
        row: In the shard.
        labels: May be empty.
        image: The encoded picture; a part of its block, which stays in memory as long as this does.
        source: Name that it had in its source, or its key where it has none; empty where names are not asked for.
    """

    shard: int
    row: int
    labels: tuple[int, ...]
    image: memoryview
    source: str = ""


def one_pass(
    selection: Selection,
    transform: Transform,
    side_px: int,
    batch_size: int,
    *,
    rank: int = 0,
    num_ranks: int = 1,
    named: bool = False,
    num_threads: int = 1,
) -> Generator[Batch]:
    """Yield a rank's share of every sample exactly once, in dataset order; the last batch is short.

    Args:
        selection: What is read.
        transform: From pictures to views; gets the same randomness for each.
        side_px: Of the views.
        batch_size: Most samples of a batch.
        rank: This rank.
        num_ranks: All ranks; their shares differ by at most one sample.
        named: Whether the names that samples had in their sources are read, too.
        num_threads: That decode, some batches ahead.

    Raises:
        CorruptShard: A sample is damaged: a test set is whole or its accuracy means nothing.
    """
    samples = encoded_samples(selection, rank=rank, num_ranks=num_ranks, named=named)
    for batch in rendered(pictures_of(selection, samples), transform, side_px, batch_size, num_threads):
        for place, error in batch.errors.items():
            sample = batch.abouts[place]
            raise CorruptShard(
                f"{selection.dataset.store.url}, shard {sample.shard}, sample {sample.row} does not decode ({error}); "
                f"run `pipeline verify --level decode` on the dataset"
            ) from error
        yield Batch(
            images=batch.images,
            labels=tuple(sample.labels for sample in batch.abouts),
            places=np.array([(0, 0, sample.shard, sample.row) for sample in batch.abouts], np.int64),
            sources=tuple(sample.source for sample in batch.abouts) if named else (),
        )


def pictures_of(selection: Selection, samples: Iterable[Encoded]) -> Generator[Picture[Encoded]]:
    """Yield samples of a selection as what is to be rendered."""
    for sample in samples:
        yield Picture(sample, sample.image, selection.dataset.is_trusted(sample.shard))


def encoded_samples(
    selection: Selection,
    pieces: Iterable[Piece] | None = None,
    *,
    rank: int = 0,
    num_ranks: int = 1,
    mapped: bool = False,
    named: bool = False,
) -> Generator[Encoded]:
    """Yield a rank's share of every sample exactly once, checked but not decoded, in dataset order.

    Args:
        selection: What is read.
        pieces: Of its blocks, that are read instead of the rank's share.
        rank: This rank.
        num_ranks: All ranks; their shares differ by at most one sample.
        mapped: Whether tars of a local disk are mapped into memory instead of copied: three times as fast on photos. A
            tar that is cut short or a disk that fails while its pictures are used then kills the process (SIGBUS).
        named: Whether the names that samples had in their sources are read, too.

    Raises:
        CorruptShard: A sample is damaged.
    """
    if pieces is None:
        pieces = even_pieces(selection.block_counts, rank, num_ranks)
    for span, loaded in _read_ahead(selection, pieces, mapped=mapped):
        for sample in loaded.samples:
            if isinstance(sample, Damaged):
                raise CorruptShard(
                    f"{selection.dataset.store.url}, {span.path}, sample {sample.row}: {sample.reason} "
                    f"({sample.detail}); run `pipeline verify` on the dataset"
                )
        # By columns: twice as fast as sample by sample.
        rows, starts, stops, labels = zip(*loaded.samples, strict=True)
        images = map(memoryview(loaded.body).__getitem__, map(slice, starts, stops))
        names = _source_names(selection.dataset, span, loaded) if named else repeat("")
        yield from map(Encoded, repeat(span.shard), rows, labels, images, names)


def _source_names(dataset: Dataset, span: Span, loaded: Loaded) -> list[str]:
    """Return what the wanted samples of a span were called in their sources: their JSON says so, else their key."""
    sidecar = dataset.samples(span.shard).select(["key", "json_offset", "json_bytes"]).take(span.wanted)
    whole = memoryview(loaded.body) if span.is_read_whole and len(loaded.body) == span.num_bytes else None
    keys, *places = (column.to_pylist() for column in sidecar.columns)
    names: list[str] = []
    for key, offset, num_bytes in zip(keys, *places, strict=True):
        start = offset - span.offset
        if not num_bytes:
            about = b"{}"
        elif whole is not None and start >= 0 and start + num_bytes <= span.num_bytes:
            about = bytes(whole[start : start + num_bytes])
        else:
            about = dataset.read_span(span.shard, offset, num_bytes)
        found = json.loads(about)
        source = found.get("source") if isinstance(found, dict) else None
        names.append(source if isinstance(source, str) else key)
    return names


def _read_ahead(selection: Selection, pieces: Iterable[Piece], *, mapped: bool) -> Iterator[tuple[Span, Loaded]]:
    ranged = RangeReader()
    reader = BlockReader(selection.dataset, ranged, None, in_order=True, mapped=mapped)
    pending: deque[tuple[Span, Future[Loaded]]] = deque()
    with ThreadPoolExecutor(_READERS, thread_name_prefix="one-pass") as pool:
        try:
            for piece in pieces:
                span = selection.span(piece)
                pending.append((span, pool.submit(reader.read, span)))
                if len(pending) > _BLOCKS_AHEAD:
                    yield _arrived(pending)
            while pending:
                yield _arrived(pending)
        finally:
            ranged.close()
            pool.shutdown(cancel_futures=True)


def _arrived(pending: deque[tuple[Span, Future[Loaded]]]) -> tuple[Span, Loaded]:
    span, future = pending.popleft()
    return span, future.result()
