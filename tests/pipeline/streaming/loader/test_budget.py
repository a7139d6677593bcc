"""What a loader holds is bounded, and what is read anew or cached changes no batch."""

import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.stack.services import Stack
from pipeline.base.errors import ConfigError
from pipeline.dataset.dataset import Dataset, open_dataset
from pipeline.streaming.loader.read_ahead import Prefetcher
from pipeline.streaming.order import OrderConfig
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import Batch, Stream
from tests.faults import FaultProxy
from tests.loading import (
    assert_same,
    keys_of,
    least_bytes,
    stream_of,
    taken,
)
from tests.soak.damage import upload


def started(stream: Stream) -> tuple[Batch, Prefetcher]:
    """Return the first batch, and the prefetcher of a stream that reads in threads of this process."""
    batch = next(stream)
    [found] = [one for one in gc.get_objects() if type(one) is Prefetcher and not one._closed]
    return batch, found


@pytest.mark.parametrize(
    ("num_lanes", "window_blocks", "spare"), [(2, 1, 0), (2, 2, 20_000), (3, 1, 0), (1, 3, 60_000)]
)
def test_a_slow_consumer_never_makes_the_loader_hold_more_than_its_budget(
    dataset: Dataset, num_lanes: int, window_blocks: int, spare: int
) -> None:
    order = OrderConfig(seed=2, batch_size=6, num_lanes=num_lanes, window_blocks=window_blocks)
    budget = least_bytes(Selection(dataset), order) + spare
    stream = stream_of(dataset, order=order, budget_bytes=budget)
    first, prefetcher = started(stream)
    highest = [0]
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.0005):
            highest[0] = max(highest[0], prefetcher.held_bytes)

    watcher = threading.Thread(target=watch)
    watcher.start()
    batches = [first]
    try:
        for step in range(44):
            batches.append(next(stream))
            if step % 10 == 3:
                time.sleep(0.1)  # the point: a consumer that holds what it has while the loader may go on
    finally:
        is_over.set()
        watcher.join()
        stream.close()
    for_batches = 4 * order.batch_size * 16 * 16 * 3
    assert 0 < highest[0] <= budget - for_batches
    assert len(set(keys_of(batches, 0))) == len(set(keys_of(batches, 1))) == 90
    assert stream.counts.bytes_read > 2.5 * Selection(dataset).num_bytes  # it read anew, so it did not keep all


def test_a_budget_too_small_is_refused_with_the_figures_and_the_smallest_one_works(dataset: Dataset) -> None:
    least = least_bytes(Selection(dataset))
    with pytest.raises(ConfigError) as raised:
        stream_of(dataset, budget_bytes=least - 1)
    message = str(raised.value)
    assert f"needs {least / 1e6:.1f} MB" in message
    assert f"its budget is {least / 1e6:.1f} MB" in message
    for way_out in ("raise budget_bytes", "window_blocks (2)", "6 lanes"):
        assert way_out in message
    assert_same(taken(stream_of(dataset, budget_bytes=least), 12), taken(stream_of(dataset), 12))


def test_the_disk_cache_changes_no_batch_and_later_epochs_ask_storage_nothing(
    s3: Stack, s3_url: Callable[[str], str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(folder, s3_url("set"))
    gets: list[str] = []
    port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
    proxy = FaultProxy(port, lambda method, path: gets.append(path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    try:
        dataset = open_dataset(s3_url("set"))
        order = OrderConfig(seed=2, batch_size=6, num_lanes=2, window_blocks=2)
        tight: dict[str, Any] = {
            "order": order,
            "budget_bytes": least_bytes(Selection(dataset), order),
            "read_threads": 1,
        }
        plain = taken(stream_of(dataset, **tight), 30)
        assert len(gets) > 25  # no cache: every epoch asks anew
        gets.clear()
        stream = stream_of(dataset, **tight, cache_folder=str(tmp_path / "cache"))
        batches = [next(stream) for _ in range(15)]  # an epoch
        assert gets
        gets.clear()
        batches += taken(stream, 15)
        assert gets == []
        assert stream.counts.cache_hits > 0
        assert_same(batches, plain)
        again = taken(stream_of(dataset, **tight, cache_folder=str(tmp_path / "cache")), 30)  # another process's cache
        assert not [path for path in gets if ".tar" in path]
        assert_same(again, plain)
    finally:
        proxy.close()
