"""One pass over a selection: every sample once, in order, from memory maps or reads, and damage named."""

import threading
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import CorruptShard
from pipeline.dataset.dataset import Address, Dataset, open_dataset
from pipeline.image.transforms import EvaluationView
from pipeline.streaming.one_pass import encoded_samples, one_pass
from pipeline.streaming.selection import Selection
from tests.conftest import pack


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
    for passing in (encoded_samples(selection), one_pass(selection, EvaluationView(8), 8, 7)):
        next(passing)
        passing.close()
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("one-pass", "render"))]


@pytest.mark.parametrize("rows", [None, [0, 7]])  # of whole blocks, and picture by picture
def test_a_pass_names_the_files_that_its_pictures_were(
    small_dataset: Dataset, small_folder: Path, rows: list[int] | None
) -> None:
    selection = Selection(small_dataset, None if rows is None else {0: rows})
    found = list(encoded_samples(selection, named=True))
    assert len(found) == (len(rows) if rows else 90)
    for sample in found:
        assert (small_folder / sample.source).read_bytes() == sample.image
    batches = list(one_pass(selection, EvaluationView(8), 8, 7, named=True, num_threads=3))
    assert [name for batch in batches for name in batch.sources] == [sample.source for sample in found]


def test_threads_draw_the_same_pixels_in_the_same_order(small_dataset: Dataset) -> None:
    selection = Selection(small_dataset)
    one, four = (
        np.concatenate([batch.images for batch in one_pass(selection, EvaluationView(8), 8, 7, num_threads=threads)])
        for threads in (1, 4)
    )
    assert np.array_equal(one, four)


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
