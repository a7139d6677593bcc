"""Every sample exactly once, in dataset order: for evaluation, where nothing may be replaced."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat
from random import Random
from typing import NamedTuple

import numpy as np

from pipeline.base.errors import BadImage, CorruptShard
from pipeline.image.render import render
from pipeline.image.transforms import Transform
from pipeline.store.hedged_reads import RangeReader
from pipeline.streaming.loader.blocks import BlockReader, Damaged, Loaded
from pipeline.streaming.order import even_pieces
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
    """

    shard: int
    row: int
    labels: tuple[int, ...]
    image: memoryview


def one_pass(
    selection: Selection, transform: Transform, side_px: int, batch_size: int, *, rank: int = 0, num_ranks: int = 1
) -> Iterator[Batch]:
    """Yield a rank's share of every sample exactly once, in dataset order; the last batch is short.

    Args:
        selection: What is read.
        transform: From pictures to views; gets the same randomness for each.
        side_px: Of the views.
        batch_size: Most samples of a batch.
        rank: This rank.
        num_ranks: All ranks; their shares differ by at most one sample.

    Raises:
        CorruptShard: A sample is damaged: a test set is whole or its accuracy means nothing.
    """
    waiting: list[Encoded] = []
    for sample in encoded_samples(selection, rank=rank, num_ranks=num_ranks):
        waiting.append(sample)
        if len(waiting) == batch_size:
            yield _batch(selection, transform, side_px, waiting)
            waiting = []
    if waiting:
        yield _batch(selection, transform, side_px, waiting)


def encoded_samples(
    selection: Selection, *, rank: int = 0, num_ranks: int = 1, mapped: bool = False
) -> Iterator[Encoded]:
    """Yield a rank's share of every sample exactly once, checked but not decoded, in dataset order.

    Args:
        selection: What is read.
        rank: This rank.
        num_ranks: All ranks; their shares differ by at most one sample.
        mapped: Whether tars of a local disk are mapped into memory instead of copied: three times as fast on photos. A
            tar that is cut short or a disk that fails while its pictures are used then kills the process (SIGBUS).

    Raises:
        CorruptShard: A sample is damaged.
    """
    for span, loaded in _read_ahead(selection, rank, num_ranks, mapped=mapped):
        for sample in loaded.samples:
            if isinstance(sample, Damaged):
                raise CorruptShard(
                    f"{selection.dataset.store.url}, {span.path}, sample {sample.row}: {sample.reason} "
                    f"({sample.detail}); run `pipeline verify` on the dataset"
                )
        # By columns: twice as fast as sample by sample.
        rows, starts, stops, labels = zip(*loaded.samples, strict=True)
        images = map(memoryview(loaded.body).__getitem__, map(slice, starts, stops))
        yield from map(Encoded, repeat(span.shard), rows, labels, images)


def _read_ahead(selection: Selection, rank: int, num_ranks: int, *, mapped: bool) -> Iterator[tuple[Span, Loaded]]:
    ranged = RangeReader()
    reader = BlockReader(selection.dataset, ranged, None, in_order=True, mapped=mapped)
    pending: deque[tuple[Span, Future[Loaded]]] = deque()
    with ThreadPoolExecutor(_READERS, thread_name_prefix="one-pass") as pool:
        try:
            for piece in even_pieces(selection.block_counts, rank, num_ranks):
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


def _batch(selection: Selection, transform: Transform, side_px: int, samples: list[Encoded]) -> Batch:
    images = np.empty((len(samples), side_px, side_px, 3), np.uint8)
    for sample, out in zip(samples, images, strict=True):
        try:
            is_trusted = selection.dataset.is_trusted(sample.shard)
            render(bytes(sample.image), transform, Random(0), out, is_trusted=is_trusted)
        except BadImage as error:
            raise CorruptShard(
                f"{selection.dataset.store.url}, shard {sample.shard}, sample {sample.row} does not decode ({error}); "
                f"run `pipeline verify --level decode` on the dataset"
            ) from error
    return Batch(
        images=images,
        labels=tuple(sample.labels for sample in samples),
        places=np.array([(0, 0, sample.shard, sample.row) for sample in samples], np.int64),
    )
