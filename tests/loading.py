"""Streams of a small dataset, and what tests ask of their loaders."""

import os
from typing import Any

import numpy as np

from pipeline.dataset.dataset import SIDECAR_CACHE_BYTES, Dataset
from pipeline.image.transforms import PretrainView
from pipeline.streaming.order import OrderConfig
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import Batch, LoaderConfig, Stream, WeightedSelection
from tests.processes import running_children

ORDER = OrderConfig(seed=11, batch_size=18, num_lanes=6, window_blocks=2)  # five steps an epoch of 90


def stream_of(
    source: Dataset | Selection | list[WeightedSelection], *, order: OrderConfig = ORDER, **loader: Any
) -> Stream:
    selection = Selection(source) if isinstance(source, Dataset) else source
    return Stream(selection, order, PretrainView(16), loader=LoaderConfig(**loader))


def taken(stream: Stream, count: int) -> list[Batch]:
    try:
        return [next(stream) for _ in range(count)]
    finally:
        stream.close()


def assert_same(batches: list[Batch], others: list[Batch]) -> None:
    for one, other in zip(batches, others, strict=True):
        assert np.array_equal(one.places, other.places)
        assert np.array_equal(one.images, other.images)
        assert one.labels == other.labels


def keys_of(batches: list[Batch], epoch: int) -> list[tuple[int, int]]:
    rows = [row for batch in batches for row in batch.places.tolist()]
    return sorted((shard, row) for _, of_epoch, shard, row in rows if of_epoch == epoch)


def least_bytes(selection: Selection, order: OrderConfig = ORDER) -> int:
    """Return the smallest budget that is accepted."""
    batches = 4 * order.batch_size * 16 * 16 * 3
    windows = order.num_lanes * order.window_blocks * selection.max_block_bytes
    sidecars = SIDECAR_CACHE_BYTES if selection.reads_sidecars else 0
    return min(windows, selection.num_bytes) + batches + sidecars


def worker_pids(of: int | None = None) -> list[int]:
    """Return the loader processes that a process, by default this one, has started and that run."""
    return running_children(of or os.getpid(), "pipeline.streaming.loader.worker")
