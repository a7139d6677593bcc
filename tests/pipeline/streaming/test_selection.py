"""Chosen rows of a dataset: streamed exactly, with the pixels they have in the whole."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import ConfigError
from pipeline.dataset.dataset import SIDECAR_CACHE_BYTES, Dataset
from pipeline.streaming.order import OrderConfig
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import WORKER_BYTES
from tests.loading import (
    ORDER,
    keys_of,
    least_bytes,
    stream_of,
    taken,
)


def test_a_chosen_part_streams_only_its_samples(small_dataset: Dataset) -> None:
    selection = Selection(small_dataset, {0: [3, 1, 20], 2: [0]})
    drawn = {address for batch in taken(stream_of(selection), 3) for address in batch.addresses}
    assert {(a.shard, a.row) for a in drawn} == {(0, 1), (0, 3), (0, 20), (2, 0)}


def test_equal_choices_are_equal_and_wrong_ones_are_refused(small_dataset: Dataset) -> None:
    same = [
        Selection(small_dataset, choice).identity
        for choice in ({0: [2, 1]}, {0: np.array([1, 2, 2])}, {0: [1, 2], 1: []})
    ]
    assert len(set(same)) == 1
    for wrong in ({0: [-1]}, {0: [10_000]}, {999: [0]}):
        with pytest.raises(ConfigError, match="are not all in"):
            Selection(small_dataset, wrong)


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
def test_a_selection_streams_exactly_its_rows_with_the_pixels_they_have_in_the_whole(
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


def test_only_selections_that_read_sidecars_need_memory_for_them(dataset: Dataset) -> None:
    selections = [Selection(dataset), Selection(dataset, {0: [1]}), Selection(dataset, excluded_by_shard={0: [1]})]
    assert [selection.reads_sidecars for selection in selections] == [False, True, True]
    for selection, num_workers in itertools.product(selections, (0, 2)):
        with pytest.raises(ConfigError) as raised:
            stream_of(selection, num_workers=num_workers, budget_bytes=1)
        needed = float(str(raised.value).partition("needs ")[2].partition(" MB")[0]) * 1e6
        for_sidecars = selection.reads_sidecars * max(1, num_workers) * SIDECAR_CACHE_BYTES
        assert 0 < needed - num_workers * WORKER_BYTES - for_sidecars < 2e6  # windows and batches of 90 small pictures
