"""Several datasets in one stream: by weight, each in epochs of its own, the same on any ranks, workers and resumes."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pipeline.base.errors import ConfigError, ResumeMismatch
from pipeline.dataset.dataset import SIDECAR_CACHE_BYTES, Dataset, open_dataset
from pipeline.image.transforms import PretrainView
from pipeline.streaming.order import OrderConfig
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import Batch, LoaderConfig, Stream, WeightedSelection
from tests.conftest import class_folders, pack

ORDER = OrderConfig(seed=8, batch_size=16, num_lanes=4, window_blocks=2)
WEIGHTS = (5.0, 3.0, 1.0)
SIZES = (90, 30, 12)  # samples; the last one is a choice of the second dataset


@pytest.fixture(scope="module")
def sources(small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[WeightedSelection, ...]:
    folder = tmp_path_factory.mktemp("mixing")
    pack(class_folders(folder / "in", each=10, seed=77), str(folder / "set"), block_bytes=20_000)
    other = open_dataset(str(folder / "set"))
    views = (Selection(small_dataset), Selection(other), Selection(other, {0: list(range(0, 24, 2))}))
    assert tuple(selection.num_samples for selection in views) == SIZES
    return tuple(WeightedSelection(selection, weight) for selection, weight in zip(views, WEIGHTS, strict=True))


def stream_of(
    sources: tuple[WeightedSelection, ...], rank: int = 0, num_ranks: int = 1, num_workers: int = 0
) -> Stream:
    loader = LoaderConfig(num_workers=num_workers)
    return Stream(sources, ORDER, PretrainView(16), rank=rank, num_ranks=num_ranks, loader=loader)


def drawn(
    sources: tuple[WeightedSelection, ...], count: int, start: int = 0, num_ranks: int = 1, num_workers: int = 0
) -> list[Batch]:
    """Return global batches, the ranks' parts laid end to end."""
    streams = [stream_of(sources, rank, num_ranks, num_workers) for rank in range(num_ranks)]
    for stream in streams:
        stream.load_state_dict(stream.state_dict() | {"step": start})
    steps = [[next(stream) for stream in streams] for _ in range(count)]
    for stream in streams:
        stream.close()
    return [
        Batch(
            np.concatenate([part.images for part in parts]),
            tuple(labels for part in parts for labels in part.labels),
            np.concatenate([part.places for part in parts]),
        )
        for parts in steps
    ]


def assert_same(batches: list[Batch], others: list[Batch]) -> None:
    for one, other in zip(batches, others, strict=True):
        assert np.array_equal(one.places, other.places)
        assert np.array_equal(one.images, other.images)
        assert one.labels == other.labels


@pytest.fixture(scope="module")
def whole(sources: tuple[WeightedSelection, ...]) -> list[Batch]:
    return drawn(sources, 60)


@pytest.mark.parametrize(("num_ranks", "num_workers"), [(2, 0), (3, 0), (4, 0), (1, 2), (2, 1)])
def test_the_mixed_global_batch_is_the_same_on_any_ranks_and_workers(
    sources: tuple[WeightedSelection, ...], whole: list[Batch], num_ranks: int, num_workers: int
) -> None:
    assert_same(drawn(sources, 15, num_ranks=num_ranks, num_workers=num_workers), whole[:15])


@settings(max_examples=12)
@given(st.integers(0, 55), st.integers(1, 4))
def test_a_mixture_resumes_exactly_at_any_step_on_any_ranks(
    sources: tuple[WeightedSelection, ...], whole: list[Batch], start: int, num_ranks: int
) -> None:
    assert_same(drawn(sources, 3, start, num_ranks), whole[start : start + 3])


def test_a_mixture_resumes_from_the_state_of_another_number_of_ranks(
    sources: tuple[WeightedSelection, ...], whole: list[Batch]
) -> None:
    first = stream_of(sources, 1, 3)
    for _ in range(9):
        next(first)
    state = json.loads(json.dumps(first.state_dict()))
    first.close()
    second = stream_of(sources)
    second.load_state_dict(state)
    assert_same([next(second), next(second)], whole[9:11])
    second.close()


def test_each_source_goes_through_epochs_of_its_own_and_each_holds_every_sample_once(
    sources: tuple[WeightedSelection, ...], whole: list[Batch]
) -> None:
    rows = np.concatenate([batch.places for batch in whole])
    for source, size in enumerate(SIZES):
        own = rows[rows[:, 0] == source]
        num_epochs = own[:, 1].max()  # the last one is not over
        assert num_epochs >= 5
        keys = sorted(map(tuple, own[own[:, 1] == 0][:, 2:].tolist()))
        assert len(set(keys)) == len(keys) == size
        if source == 2:
            assert keys == [(0, row) for row in range(0, 24, 2)]
        for epoch in range(1, num_epochs):
            assert sorted(map(tuple, own[own[:, 1] == epoch][:, 2:].tolist())) == keys


def test_the_shares_of_every_batch_and_every_run_of_batches_stay_within_two_samples_of_exact(
    sources: tuple[WeightedSelection, ...], whole: list[Batch]
) -> None:
    shares = stream_of(sources)._mixture.shares
    assert np.allclose(shares, np.array(WEIGHTS) / sum(WEIGHTS), atol=1 / 16_384)
    for batch in whole:
        counts = Counter(batch.places[:, 0].tolist())
        assert all(abs(counts[source] - share * 16) < 2 for source, share in enumerate(shares))
    # Over time each lane is within two of its share, at any step.
    for lane in range(ORDER.num_lanes):
        total: Counter[int] = Counter()
        for step, batch in enumerate(whole, 1):
            total.update(batch.places[4 * lane : 4 * lane + 4, 0].tolist())
            assert all(abs(total[source] - share * 4 * step) < 2 for source, share in enumerate(shares))


def test_the_same_picture_in_two_sources_or_epochs_is_augmented_anew(whole: list[Batch]) -> None:
    seen: dict[tuple[int, ...], np.ndarray] = {}
    for batch in whole:
        for place, image in zip(batch.places.tolist(), batch.images, strict=True):
            seen[tuple(place)] = image
    in_both = [(first, (2, *first[1:])) for first in seen if first[0] == 1 and (2, *first[1:]) in seen]
    in_epochs = [(first, (0, 1, *first[2:])) for first in seen if first[:2] == (0, 0)]
    for pairs in (in_both, in_epochs):
        assert len(pairs) >= 12
        assert not any(np.array_equal(seen[one], seen[other]) for one, other in pairs)
    # In epochs that other sources have gone through, too: the epoch is the source's own.
    assert len({seen[0, epoch, 0, 0].tobytes() for epoch in range(5)}) == 5


def test_labels_are_those_of_the_sample_in_its_own_dataset(
    sources: tuple[WeightedSelection, ...], whole: list[Batch]
) -> None:
    for batch in whole[:6]:
        for (source, _, shard, row), labels in zip(batch.places.tolist(), batch.labels, strict=True):
            assert tuple(sources[source].selection.dataset.samples(shard)["labels"][row].as_py()) == labels


def test_a_state_of_other_weights_or_sources_is_refused(sources: tuple[WeightedSelection, ...]) -> None:
    state = stream_of(sources).state_dict()
    heavier = (WeightedSelection(sources[0].selection, 6.0), *sources[1:])
    for others in (heavier, sources[:2], sources[::-1]):
        with pytest.raises(ResumeMismatch, match="data"):
            stream_of(others).load_state_dict(state)


def test_weights_that_are_none_are_refused(sources: tuple[WeightedSelection, ...]) -> None:
    for weight in (0.0, -1.0, float("nan"), 1e-9):
        with pytest.raises(ConfigError, match="weight"):
            stream_of((sources[0], WeightedSelection(sources[1].selection, weight)))


def test_two_sources_in_little_memory_give_what_they_give_in_much(
    sources: tuple[WeightedSelection, ...], whole: list[Batch]
) -> None:
    windows = sum(ORDER.num_lanes * ORDER.window_blocks * source.selection.max_block_bytes for source in sources)
    kept = sum(source.selection.num_bytes * (2 if number == 2 else 1) for number, source in enumerate(sources))
    sidecars = sum(source.selection.reads_sidecars for source in sources) * SIDECAR_CACHE_BYTES
    budget = min(windows, kept) + 4 * 16 * 16 * 16 * 3 + sidecars
    stream = Stream(sources, ORDER, PretrainView(16), loader=LoaderConfig(budget_bytes=budget))
    assert_same([next(stream) for _ in range(30)], whole[:30])
    stream.close()
