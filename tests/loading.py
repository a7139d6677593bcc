"""Streams of a small dataset, and what tests ask of their loaders."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import psutil

from pipeline.dataset.dataset import SIDECAR_CACHE_BYTES, Dataset
from pipeline.image.transforms import PretrainView
from pipeline.streaming.order import OrderConfig
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import Batch, LoaderConfig, Stream, WeightedSelection

ORDER = OrderConfig(seed=11, batch_size=18, num_lanes=6, window_blocks=2)  # five steps an epoch of 90
FEW_SECONDS = 60.0  # on a busy machine


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
    """Return the smallest budget that is accepted, as the refusal tells it."""
    batches = 4 * order.batch_size * 16 * 16 * 3
    windows = order.num_lanes * order.window_blocks * selection.max_block_bytes
    sidecars = SIDECAR_CACHE_BYTES if selection.reads_sidecars else 0
    return min(windows, selection.num_bytes) + batches + sidecars


def worker_pids(of: int | None = None) -> list[int]:
    """Return the loader processes that a process has started and that live."""
    found = []
    for child in psutil.Process(of).children():
        with suppress(psutil.Error):
            if "pipeline.streaming.loader.worker" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child.pid)
    return found


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + FEW_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
