"""Batches: equal for every world size down to the pixels, resumable anywhere, and never silently damaged."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import CorruptShard, ResumeMismatch
from pipeline.dataset.dataset import Dataset, open_dataset
from pipeline.image.transforms import PretrainView
from pipeline.streaming.order import OrderConfig
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import Batch, LoaderConfig, Stream, WeightedSelection
from tests.conftest import pack
from tests.loading import stream_of

CONFIG = OrderConfig(seed=5, batch_size=24, num_lanes=12, window_blocks=2)


def batches(selection: Selection, num_ranks: int, start: int, count: int, num_workers: int = 0) -> list[list[Batch]]:
    streams = [
        Stream(
            selection,
            CONFIG,
            PretrainView(16),
            rank=rank,
            num_ranks=num_ranks,
            loader=LoaderConfig(num_workers=num_workers),
        )
        for rank in range(num_ranks)
    ]
    for stream in streams:
        stream.load_state_dict(stream.state_dict() | {"step": start})
    drawn = [[next(stream) for stream in streams] for _ in range(count)]
    for stream in streams:
        stream.close()
    return drawn


def joined(parts: list[Batch]) -> tuple[tuple[object, ...], np.ndarray]:
    return sum((part.addresses for part in parts), ()), np.concatenate([part.images for part in parts])


@pytest.mark.parametrize("num_ranks", [2, 3, 5, 12])
def test_the_global_batch_does_not_depend_on_the_number_of_ranks(small_dataset: Dataset, num_ranks: int) -> None:
    selection = Selection(small_dataset)
    for alone, together in zip(batches(selection, 1, 0, 10), batches(selection, num_ranks, 0, 10), strict=True):
        (addresses, images), (other_addresses, other_images) = joined(alone), joined(together)
        assert addresses == other_addresses
        assert np.array_equal(images, other_images)
        sizes = {len(part.addresses) for part in together}
        assert max(sizes) - min(sizes) <= CONFIG.samples_per_lane()


@pytest.mark.parametrize(("num_ranks", "num_workers"), [(1, 3), (2, 2)])
def test_the_global_batch_does_not_depend_on_the_number_of_loader_workers(
    small_dataset: Dataset, num_ranks: int, num_workers: int
) -> None:
    selection = Selection(small_dataset)
    for alone, together in zip(
        batches(selection, 1, 3, 10), batches(selection, num_ranks, 3, 10, num_workers), strict=True
    ):
        assert joined(alone)[0] == joined(together)[0]
        assert np.array_equal(joined(alone)[1], joined(together)[1])


def test_resume_at_any_step_on_any_number_of_ranks_gives_the_same_batches(small_dataset: Dataset) -> None:
    selection = Selection(small_dataset)
    whole = batches(selection, 1, 0, 14)
    for start, num_ranks in ((1, 2), (3, 4), (4, 12), (11, 3)):
        for expected, found in zip(whole[start:], batches(selection, num_ranks, start, 14 - start), strict=True):
            assert joined(expected)[0] == joined(found)[0]
            assert np.array_equal(joined(expected)[1], joined(found)[1])


def test_three_epochs_lose_and_repeat_nothing(small_dataset: Dataset) -> None:
    drawn = batches(Selection(small_dataset), 2, 0, 15)
    seen: dict[int, list[object]] = {}
    for parts in drawn:
        for part in parts:
            for epoch, address in zip(part.epochs, part.addresses, strict=True):
                seen.setdefault(epoch, []).append(address)
    for epoch in range(3):
        assert len(seen[epoch]) == len(set(seen[epoch])) == 90


def test_state_is_small_json_equal_on_all_ranks_and_counts_only_what_was_handed_out(small_dataset: Dataset) -> None:
    streams = [Stream(Selection(small_dataset), CONFIG, PretrainView(16), rank=rank, num_ranks=2) for rank in range(2)]
    for stream in streams:
        for _ in range(4):
            next(stream)
    states = [stream.state_dict() for stream in streams]
    assert states[0] == states[1]
    assert states[0]["step"] == 4
    assert len(json.dumps(states[0])) < 1000
    for stream in streams:
        stream.close()


def test_state_of_other_data_or_settings_is_refused(small_dataset: Dataset) -> None:
    stream = Stream(Selection(small_dataset), CONFIG, PretrainView(16))
    for name, value in (("seed", 6), ("batch_size", 48), ("num_lanes", 6), ("data", "another")):
        with pytest.raises(ResumeMismatch, match=name):
            stream.load_state_dict(stream.state_dict() | {name: value})
    stream.close()


def test_after_an_error_the_same_step_is_made_again(small_folder: Path, tmp_path: Path) -> None:
    pack(small_folder, str(tmp_path / "set"), shard_bytes=150_000, block_bytes=40_000)
    expected = [joined(parts)[0] for parts in batches(Selection(open_dataset(str(tmp_path / "set"))), 1, 0, 4)]
    stream = Stream(Selection(open_dataset(str(tmp_path / "set"))), CONFIG, PretrainView(16))
    next(stream)
    away = (tmp_path / "set" / "shards").rename(tmp_path / "away")
    stream.close()
    with pytest.raises(CorruptShard, match="pipeline verify"):
        next(stream)
    away.rename(tmp_path / "set" / "shards")
    assert stream.state_dict()["step"] == 1
    assert [next(stream).addresses for _ in range(3)] == expected[1:]
    stream.close()


def test_state_with_twenty_sources_stays_below_a_kilobyte(dataset: Dataset) -> None:
    sources = [WeightedSelection(Selection(dataset), weight=1.0 + number / 7) for number in range(20)]
    stream = stream_of(sources, order=OrderConfig(seed=2**63, batch_size=4096 * 16, num_lanes=4096))
    stream.load_state_dict(stream.state_dict() | {"step": 10**12})
    assert len(json.dumps(stream.state_dict())) < 1000
