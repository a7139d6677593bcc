"""Guarantees 1, 2 and 3: same order for any world size, exact positions, even lanes, nothing lost or repeated."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.order import Order, OrderConfig, even_pieces, lanes_of_rank, samples_of

COUNTS = st.lists(st.integers(1, 40), min_size=1, max_size=25).map(lambda counts: np.array(counts, np.int64))


def take(order: Order, lane: int, start: int, count: int) -> list[tuple[int, int, int]]:
    """Gives (epoch, block, sample) at lane positions [start, start + count)."""
    found: list[tuple[int, int, int]] = []
    while len(found) < count:
        window = order.window(lane, start + len(found))
        length = min(count - len(found), window.end - start - len(found))
        for index, sample in samples_of(window, start + len(found), length).tolist():
            found.append((window.epoch, window.pieces[index].block, sample))
    return found


def lanes_over(order: Order, num_lanes: int, each: int) -> list[list[tuple[int, int, int]]]:
    return [take(order, lane, 0, each) for lane in range(num_lanes)]


@settings(max_examples=60)
@given(COUNTS, st.sampled_from([1, 2, 3, 8, 16]), st.integers(1, 5), st.integers(0, 3))
def test_every_epoch_holds_every_sample_once(counts: np.ndarray, num_lanes: int, window: int, seed: int) -> None:
    order = Order(counts, OrderConfig(seed=seed, batch_size=num_lanes, num_lanes=num_lanes, window_blocks=window))
    total = int(counts.sum())
    everything = {(block, sample) for block, count in enumerate(counts) for sample in range(count)}
    drawn = [item for lane in lanes_over(order, num_lanes, 3 * total // num_lanes + 2) for item in lane]
    for epoch in range(2):
        of_epoch = [item[1:] for item in drawn if item[0] == epoch]
        assert len(of_epoch) == total
        assert set(of_epoch) == everything


@settings(max_examples=60)
@given(COUNTS, st.sampled_from([1, 3, 8]), st.integers(0, 400), st.integers(1, 30))
def test_a_position_does_not_depend_on_how_it_was_reached(
    counts: np.ndarray, num_lanes: int, start: int, count: int
) -> None:
    order = Order(counts, OrderConfig(batch_size=num_lanes, num_lanes=num_lanes))
    whole = take(order, num_lanes - 1, 0, start + count)
    assert take(order, num_lanes - 1, start, count) == whole[start:]


@given(st.integers(1, 6).map(lambda power: 2**power), st.data())
def test_ranks_cover_the_lanes_once(num_lanes: int, data: st.DataObject) -> None:
    num_ranks = data.draw(st.sampled_from([r for r in range(1, num_lanes + 1) if num_lanes % r == 0]))
    lanes = [lane for rank in range(num_ranks) for lane in lanes_of_rank(num_lanes, rank, num_ranks)]
    assert lanes == list(range(num_lanes))


@settings(max_examples=40)
@given(COUNTS, st.sampled_from([2, 7, 16]))
def test_lanes_never_drift_apart(counts: np.ndarray, num_lanes: int) -> None:
    order = Order(counts, OrderConfig(batch_size=num_lanes, num_lanes=num_lanes))
    assume(counts.sum() >= num_lanes)
    position = 5 * int(counts.sum()) // num_lanes
    epochs = {order.window(lane, position).epoch for lane in range(num_lanes)}
    assert max(epochs) - min(epochs) <= 1


def test_epochs_and_seeds_differ_and_do_not_collide() -> None:
    counts = np.full(50, 20, np.int64)

    def first(seed: int, epoch: int) -> tuple[tuple[int, int], ...]:
        order = Order(counts, OrderConfig(seed=seed, batch_size=1, num_lanes=1))
        return tuple(item[1:] for item in take(order, 0, 1000 * epoch, 50))

    drawn = {first(seed, epoch) for seed in range(4) for epoch in range(4)}
    assert len(drawn) == 16


def test_a_window_mixes_its_blocks() -> None:
    order = Order(np.full(64, 30, np.int64), OrderConfig(batch_size=1, num_lanes=1, window_blocks=8))
    blocks = [item[1] for item in take(order, 0, 0, 240)]
    assert len(set(blocks[:30])) >= 6


@given(COUNTS, st.integers(1, 9))
def test_one_pass_is_split_evenly_and_completely(counts: np.ndarray, num_ranks: int) -> None:
    shares = [even_pieces(counts, rank, num_ranks) for rank in range(num_ranks)]
    sizes = [sum(piece.count for piece in share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    seen = [(p.block, p.first + i) for share in shares for p in share for i in range(p.count)]
    assert seen == [(block, sample) for block, count in enumerate(counts) for sample in range(count)]


@pytest.mark.parametrize(("batch_size", "num_lanes"), [(10, 16), (15, 4)])
def test_a_batch_that_lanes_do_not_divide_is_refused(batch_size: int, num_lanes: int) -> None:
    with pytest.raises(ConfigError, match="not a multiple"):
        OrderConfig(batch_size=batch_size, num_lanes=num_lanes).samples_per_lane()


def test_workers_that_do_not_divide_the_lanes_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 workers do not divide 16 lanes"):
        lanes_of_rank(16, 0, 3)
