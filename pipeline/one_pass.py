"""Every sample exactly once, in dataset order: for evaluation, where nothing may be replaced."""

from collections.abc import Iterator
from random import Random

import numpy as np

from pipeline.augment import Transform
from pipeline.errors import BadImage, CorruptShard
from pipeline.loader.blocks import BlockReader, Entry
from pipeline.order import even_pieces
from pipeline.ranged import RangeReader
from pipeline.render import render
from pipeline.stream import Batch
from pipeline.view import View

_Sample = tuple[int, Entry, bytes]  # shard, entry, encoded picture


def one_pass(
    view: View, transform: Transform, side_px: int, batch_size: int, *, rank: int = 0, num_ranks: int = 1
) -> Iterator[Batch]:
    """Gives a rank's share of every sample exactly once, in dataset order; the last batch is short.

    Args:
        view: What is read.
        transform: From pictures to views; gets the same randomness for each.
        side_px: Of the views.
        batch_size: Most samples of a batch.
        rank: This rank.
        num_ranks: All ranks; their shares differ by at most one sample.

    Raises:
        CorruptShard: A sample is damaged: a test set is whole or its accuracy means nothing.
    """
    waiting: list[_Sample] = []
    for sample in _samples(view, rank, num_ranks):
        waiting.append(sample)
        if len(waiting) == batch_size:
            yield _batch(view, transform, side_px, waiting)
            waiting = []
    if waiting:
        yield _batch(view, transform, side_px, waiting)


def _samples(view: View, rank: int, num_ranks: int) -> Iterator[_Sample]:
    ranged = RangeReader()
    reader = BlockReader(view.dataset, ranged, None)
    try:
        for piece in even_pieces(view.block_counts, rank, num_ranks):
            span = view.span(piece)
            loaded = reader.read(span)
            for sample in loaded.samples:
                if not isinstance(sample, Entry):
                    raise CorruptShard(
                        f"{view.dataset.store.url}, {span.path}, sample {sample.row}: {sample.reason} "
                        f"({sample.detail}); run `pipeline verify` on the dataset"
                    )
                yield span.shard, sample, loaded.body[sample.start : sample.stop]
    finally:
        ranged.close()


def _batch(view: View, transform: Transform, side_px: int, samples: list[_Sample]) -> Batch:
    images = np.empty((len(samples), side_px, side_px, 3), np.uint8)
    for (shard, entry, data), out in zip(samples, images, strict=True):
        try:
            render(data, transform, Random(0), out)
        except BadImage as error:
            raise CorruptShard(
                f"{view.dataset.store.url}, shard {shard}, sample {entry.row} does not decode ({error}); "
                f"run `pipeline verify --level decode` on the dataset"
            ) from error
    return Batch(
        images=images,
        labels=tuple(entry.labels for _, entry, _ in samples),
        places=np.array([(0, 0, shard, entry.row) for shard, entry, _ in samples], np.int64),
    )
