"""What a loader holds is bounded, and what is read anew, cached or chosen changes no batch."""

import gc
import itertools
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.dataset.dataset
from cluster.stack.services import Stack
from pipeline.base.errors import ConfigError
from pipeline.dataset.dataset import SIDECAR_CACHE_BYTES, Dataset, open_dataset
from pipeline.streaming.loader.read_ahead import Prefetcher
from pipeline.streaming.order import OrderConfig
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import WORKER_BYTES, Batch, Stream, WeightedSelection
from tests.faults import FaultProxy
from tests.loading import (
    ORDER,
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
        while not is_over.is_set():
            highest[0] = max(highest[0], prefetcher.held_bytes)
            time.sleep(0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    batches = [first]
    try:
        for step in range(44):
            batches.append(next(stream))
            if step % 10 == 3:  # holds what it has while the loader may go on
                time.sleep(0.1)
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
    told = str(raised.value)
    assert f"needs {least / 1e6:.1f} MB" in told
    assert f"its budget is {least / 1e6:.1f} MB" in told
    for way_out in ("raise budget_bytes", "window_blocks (2)", "6 lanes"):
        assert way_out in told
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


def reference(dataset: Dataset) -> dict[tuple[int, int], np.ndarray]:
    """Return the pixels of each sample in epoch 0, by shard and row: they are keyed by these and not by the order."""
    batches = taken(stream_of(dataset), 5)
    return {
        (address.shard, address.row): image
        for batch in batches
        for address, image in zip(batch.addresses, batch.images, strict=True)
    }


@pytest.mark.parametrize(
    ("kind", "with_cache", "num_workers"),
    [
        *(("few", False, 0), ("few", True, 0), ("few", False, 2)),
        *(("many", False, 0), ("many", True, 0), ("many", True, 2)),
        *(("excluded", False, 0), ("excluded", True, 0), ("all but one", False, 0)),
    ],
)
def test_a_view_streams_exactly_its_rows_with_the_pixels_they_have_in_the_whole(
    dataset: Dataset, kind: str, with_cache: bool, num_workers: int, tmp_path: Path
) -> None:
    everything = [(shard["shard"], row) for shard in dataset.shards for row in range(shard["num_samples"])]
    left_out = [(0, 0), (0, 1), (0, 12), (1, 24), (3, 3)] if kind == "excluded" else [(2, 5)]
    wanted = {
        "few": [key for key in everything if key[1] % 6 == 1],  # about one of a block
        "many": [key for key in everything if key[1] % 6 != 1],  # most of a block
    }.get(kind, [key for key in everything if key not in left_out])

    def by_shard(keys: list[tuple[int, int]]) -> dict[int, list[int]]:
        return {shard: [row for of, row in keys if of == shard] for shard in {shard for shard, _ in keys}}

    if kind in ("few", "many"):
        selection = Selection(dataset, by_shard(wanted))
    else:
        selection = Selection(dataset, excluded_by_shard=by_shard(left_out))
    assert selection.num_samples == len(wanted)
    pixels = reference(dataset)
    order = OrderConfig(seed=ORDER.seed, batch_size=3, num_lanes=3, window_blocks=1)
    num_batches = -(-2 * len(wanted) // 3)
    cache = {"cache_folder": str(tmp_path / "cache")} if with_cache else {}
    for budget in (
        least_bytes(selection, order) + 100_000 + num_workers * (WORKER_BYTES + SIDECAR_CACHE_BYTES),
        1 << 30,
    ):
        stream = stream_of(selection, order=order, num_workers=num_workers, budget_bytes=budget, **cache)
        batches = taken(stream, num_batches)
        assert keys_of(batches, 0) == keys_of(batches, 1) == sorted(wanted)
        for batch in batches:
            for (_, epoch, shard, row), image in zip(batch.places.tolist(), batch.images, strict=True):
                assert epoch or np.array_equal(image, pixels[shard, row])


def test_state_with_twenty_sources_stays_below_a_kilobyte(dataset: Dataset) -> None:
    sources = [WeightedSelection(Selection(dataset), weight=1.0 + number / 7) for number in range(20)]
    stream = stream_of(sources, order=OrderConfig(seed=2**63, batch_size=4096 * 16, num_lanes=4096))
    stream.load_state_dict(stream.state_dict() | {"step": 10**12})
    assert len(json.dumps(stream.state_dict())) < 1000


def test_sidecars_that_are_kept_stay_within_their_share_and_are_the_ones_used_last(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = [open_dataset(dataset.store.url).samples(shard).nbytes for shard in range(4)]
    monkeypatch.setattr(pipeline.dataset.dataset, "SIDECAR_CACHE_BYTES", sum(each[:3]) + 100)
    opened = open_dataset(dataset.store.url)
    first = [opened.samples(shard) for shard in range(3)]
    assert opened.samples(0) is first[0]
    opened.samples(3)
    assert opened.samples(0) is first[0]
    assert opened.samples(1) is not first[1]
    monkeypatch.setattr(pipeline.dataset.dataset, "SIDECAR_CACHE_BYTES", 10)
    assert opened.samples(2).equals(first[2])  # larger than its share: read anew each time
    assert opened.samples(2) is not opened.samples(2)


def test_only_views_that_read_sidecars_need_memory_for_them(dataset: Dataset) -> None:
    views = [Selection(dataset), Selection(dataset, {0: [1]}), Selection(dataset, excluded_by_shard={0: [1]})]
    assert [selection.reads_sidecars for selection in views] == [False, True, True]
    for selection, num_workers in itertools.product(views, (0, 2)):
        with pytest.raises(ConfigError) as raised:
            stream_of(selection, num_workers=num_workers, budget_bytes=1)
        needed = float(str(raised.value).partition("needs ")[2].partition(" MB")[0]) * 1e6
        for_sidecars = selection.reads_sidecars * max(1, num_workers) * SIDECAR_CACHE_BYTES
        assert 0 < needed - num_workers * WORKER_BYTES - for_sidecars < 2e6  # windows and batches of 90 small pictures
