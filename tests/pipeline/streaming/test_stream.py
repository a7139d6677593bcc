"""Batches: equal for every world size down to the pixels, resumable anywhere, and never silently damaged."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import ConfigError, CorruptShard, ResumeMismatch
from pipeline.base.seeds import rng
from pipeline.dataset.dataset import Address, Dataset, open_dataset
from pipeline.image.transforms import EvaluationView, PretrainView, inception_box
from pipeline.store.memory_map import MappedFile
from pipeline.streaming.one_pass import encoded_samples, one_pass
from pipeline.streaming.order import OrderConfig
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import Batch, LoaderConfig, Stream
from tests.conftest import pack

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


def test_a_chosen_part_streams_only_its_samples(small_dataset: Dataset) -> None:
    selection = Selection(small_dataset, {0: [3, 1, 20], 2: [0]})
    drawn = {address for parts in batches(selection, 2, 0, 3) for part in parts for address in part.addresses}
    assert {(a.shard, a.row) for a in drawn} == {(0, 1), (0, 3), (0, 20), (2, 0)}


@pytest.mark.parametrize("num_ranks", [1, 2, 5])
def test_one_pass_gives_every_sample_once_in_order(small_dataset: Dataset, num_ranks: int) -> None:
    selection = Selection(small_dataset)
    found = [
        (address.shard, address.row)
        for rank in range(num_ranks)
        for batch in one_pass(selection, EvaluationView(8), 8, 7, rank=rank, num_ranks=num_ranks)
        for address in batch.addresses
    ]
    assert found == sorted(found)
    assert len(set(found)) == len(found) == 90


@pytest.mark.parametrize("mapped", [False, True])
def test_one_pass_gives_the_stored_bytes_and_a_pass_that_is_left_ends_its_threads(
    small_dataset: Dataset, mapped: bool
) -> None:
    selection = Selection(small_dataset)
    labels = small_dataset.all_samples(["labels"])["labels"].to_pylist()
    for sample, expected in zip(encoded_samples(selection, mapped=mapped), labels, strict=True):
        assert sample.image == small_dataset.read_image(Address(sample.shard, sample.row))
        assert list(sample.labels) == expected
    passing = encoded_samples(selection)
    next(passing)
    passing.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("one-pass")]


def test_a_mapped_pass_reads_no_tar(small_dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    monkeypatch.setattr(small_dataset, "read_span", lambda shard, offset, num_bytes: reads.append(shard))
    assert sum(1 for _ in encoded_samples(Selection(small_dataset), mapped=True)) == 90
    assert not reads


@pytest.mark.parametrize("mapped", [False, True])
def test_one_pass_over_a_part_gives_that_part(small_dataset: Dataset, mapped: bool) -> None:
    selection = Selection(small_dataset, {0: [0, 1, 2, 3, 5, 20], 2: range(3)})
    found = [(sample.shard, sample.row) for sample in encoded_samples(selection, mapped=mapped)]
    assert found == [(0, row) for row in (0, 1, 2, 3, 5, 20)] + [(2, row) for row in range(3)]


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_tar_ends_a_pass_with_an_error_that_names_it(
    small_folder: Path, tmp_path: Path, damage: str, mapped: bool
) -> None:
    pack(small_folder, str(tmp_path / "set"), max_samples_per_shard=25, block_bytes=40_000)
    dataset = open_dataset(str(tmp_path / "set"))
    tar = Path(dataset.shard_url(1))
    body = bytearray(tar.read_bytes())
    tar.unlink()
    body[len(body) // 2] ^= 1
    if damage != "gone":
        tar.write_bytes(body if damage == "flipped" else body[: len(body) // 3])
    with pytest.raises(CorruptShard, match=tar.name):
        list(encoded_samples(Selection(dataset), mapped=mapped))


@pytest.mark.parametrize("mapped", [False, True])
def test_a_damaged_sidecar_does_not_keep_a_pass_from_sound_tars(
    small_folder: Path, tmp_path: Path, mapped: bool
) -> None:
    pack(small_folder, str(tmp_path / "set"), max_samples_per_shard=25, block_bytes=40_000)
    whole = [bytes(sample.image) for sample in encoded_samples(Selection(open_dataset(str(tmp_path / "set"))))]
    dataset = open_dataset(str(tmp_path / "set"))
    sidecar = tmp_path / "set" / dataset.shards[1]["sidecar"]
    sidecar.write_bytes(bytes(len(sidecar.read_bytes())))
    assert [bytes(sample.image) for sample in encoded_samples(Selection(dataset), mapped=mapped)] == whole


def test_a_file_that_is_shorter_than_the_part_is_an_error_and_not_a_signal(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 64)
    mapped = MappedFile(str(path))
    assert mapped.part(5000, 300) == (bytes(range(256)) * 64)[5000:5300]
    with pytest.raises(OSError, match="16384"):
        mapped.part(16_000, 400)
    os.truncate(path, 4096)
    with pytest.raises(OSError, match="address"):
        mapped.part(8192, 100)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="empty"):
        MappedFile(str(path))


def test_inception_boxes_keep_area_and_aspect() -> None:
    generator = rng(0, "boxes")
    for _ in range(500):
        left, top, right, bottom = inception_box(300, 400, generator)
        assert 0 <= left < right <= 400
        assert 0 <= top < bottom <= 300
        assert (right - left) * (bottom - top) >= 0.045 * 300 * 400
        assert 0.7 <= (right - left) / (bottom - top) <= 1.4


def test_a_picture_no_box_fits_is_used_whole() -> None:
    assert inception_box(1, 500, rng(0, "narrow")) == (0, 0, 500, 1)


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


def test_equal_choices_are_equal_and_wrong_ones_are_refused(small_dataset: Dataset) -> None:
    same = [
        Selection(small_dataset, choice).identity
        for choice in ({0: [2, 1]}, {0: np.array([1, 2, 2])}, {0: [1, 2], 1: []})
    ]
    assert len(set(same)) == 1
    for wrong in ({0: [-1]}, {0: [10_000]}, {999: [0]}):
        with pytest.raises(ConfigError, match="are not all in"):
            Selection(small_dataset, wrong)
