"""Guarantees 1, 2 and 3: same order for any world size, exact positions, even lanes, nothing lost or repeated."""

import hashlib
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

from pipeline.base.errors import ConfigError
from pipeline.streaming.order import Order, OrderConfig, even_pieces, lanes_of_rank, samples_of
from tests.waiting import wait_until

COUNTS = (
    st.lists(st.integers(0, 40), min_size=1, max_size=25).filter(any).map(lambda counts: np.array(counts, np.int64))
)
MANY_BLOCKS = np.full(64, 20, np.int64)  # 64! orders: two alike by chance are out of the question


def take(order: Order, lane: int, start: int, count: int) -> list[tuple[int, int, int]]:
    """Return (epoch, block, sample) at lane positions [start, start + count)."""
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


@pytest.mark.parametrize(
    ("seed", "digest"),
    [(0, "e98f53c5ac605535"), (7, "7ee89d01c9aa556e")],
)
def test_the_order_of_a_seed_is_that_of_all_releases(seed: int, digest: str) -> None:
    counts = np.array([20, 1, 0, 33, 7, 20, 20, 12], np.int64)
    order = Order(counts, OrderConfig(seed=seed, batch_size=8, num_lanes=4, window_blocks=3))
    drawn = np.array(lanes_over(order, 4, 3 * int(counts.sum()) // 4), np.int64)
    assert hashlib.sha256(drawn.astype("<i8").tobytes()).hexdigest()[:16] == digest  # a run would change its data


@settings(max_examples=60)
@given(COUNTS, st.sampled_from([1, 3, 8]), st.integers(0, 400), st.integers(1, 30))
def test_a_position_does_not_depend_on_how_it_was_reached(
    counts: np.ndarray, num_lanes: int, start: int, count: int
) -> None:
    order = Order(counts, OrderConfig(batch_size=num_lanes, num_lanes=num_lanes))
    whole = take(order, num_lanes - 1, 0, start + count)
    assert take(order, num_lanes - 1, start, count) == whole[start:]


@given(st.integers(1, 300), st.data())
def test_ranks_cover_the_lanes_once_and_evenly(num_lanes: int, data: st.DataObject) -> None:
    num_ranks = data.draw(st.integers(1, num_lanes))
    shares = [lanes_of_rank(num_lanes, rank, num_ranks) for rank in range(num_ranks)]
    assert [lane for share in shares for lane in share] == list(range(num_lanes))
    sizes = [len(share) for share in shares]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=25)
@given(COUNTS, st.integers(1, 9), st.integers(1, 3), st.integers(0, 50))
def test_the_global_batch_is_the_same_for_every_number_of_ranks(
    counts: np.ndarray, num_lanes: int, per_lane: int, step: int
) -> None:
    config = OrderConfig(batch_size=per_lane * num_lanes, num_lanes=num_lanes)
    alone = [item for lane in range(num_lanes) for item in take(Order(counts, config), lane, step * per_lane, per_lane)]
    for num_ranks in range(1, num_lanes + 1):
        orders = [Order(counts, config) for _ in range(num_ranks)]
        batch = [
            item
            for rank, order in enumerate(orders)
            for lane in lanes_of_rank(num_lanes, rank, num_ranks)
            for item in take(order, lane, step * per_lane, per_lane)
        ]
        assert batch == alone


@settings(max_examples=40)
@given(COUNTS, st.sampled_from([2, 7, 16]))
def test_lanes_never_drift_apart(counts: np.ndarray, num_lanes: int) -> None:
    order = Order(counts, OrderConfig(batch_size=num_lanes, num_lanes=num_lanes))
    assume(counts.sum() >= num_lanes)
    position = 5 * int(counts.sum()) // num_lanes
    epochs = {order.window(lane, position).epoch for lane in range(num_lanes)}
    assert max(epochs) - min(epochs) <= 1


@given(COUNTS, st.integers(1, 16), st.integers(0, 10**6))
def test_at_any_position_lanes_have_drawn_the_same_from_each_epoch_but_for_one_sample(
    counts: np.ndarray, num_lanes: int, epoch: int
) -> None:
    order = Order(counts, OrderConfig(batch_size=num_lanes, num_lanes=num_lanes))
    around = epoch * order.num_samples // num_lanes
    # an epoch begins in every lane at the same position, or one later
    for lane in range(num_lanes):
        assert order.window(lane, around + 1).epoch >= epoch
        if around:
            assert order.window(lane, around - 1).epoch < epoch


@settings(max_examples=60)
@given(COUNTS, st.sampled_from([1, 2, 5, 16]), st.integers(1, 5))
def test_windows_follow_each_other_without_gap_and_hold_no_empty_piece(
    counts: np.ndarray, num_lanes: int, window_blocks: int
) -> None:
    order = Order(counts, OrderConfig(batch_size=num_lanes, num_lanes=num_lanes, window_blocks=window_blocks))
    for lane in range(num_lanes):
        position = 0
        while position < 3 * order.num_samples // num_lanes:
            window = order.window(lane, position)
            assert window.start == position
            assert order.window(lane, window.end - 1).pieces == window.pieces
            assert all(
                piece.count > 0 and piece.first >= 0 and piece.first + piece.count <= counts[piece.block]
                for piece in window.pieces
            )
            assert sorted(window.permutation) == list(range(sum(piece.count for piece in window.pieces)))
            position = window.end


def test_blocks_without_samples_do_not_thin_out_the_windows() -> None:
    counts = np.zeros(1000, np.int64)
    counts[::10] = 20
    order = Order(counts, OrderConfig(batch_size=1, num_lanes=1, window_blocks=4))
    assert [len(order.window(0, 20 + 80 * number).pieces) for number in range(24)] == [4] * 24


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 3))
def test_the_first_windows_of_an_epoch_are_staggered(num_lanes: int, window_blocks: int, epoch: int) -> None:
    counts = np.full(num_lanes * 20, 10, np.int64)
    order = Order(counts, OrderConfig(batch_size=num_lanes, num_lanes=num_lanes, window_blocks=window_blocks))
    for lane in range(num_lanes):
        window = order.window(lane, 200 * epoch)
        assert (window.epoch, window.start) == (epoch, 200 * epoch)
        assert len(window.pieces) == 1 + lane % window_blocks
        assert len(order.window(lane, window.end).pieces) == window_blocks


def test_lanes_do_not_read_all_at_once() -> None:
    num_lanes, counts = 32, np.random.default_rng(0).integers(60, 87, 4000)
    order = Order(counts, OrderConfig(batch_size=num_lanes, num_lanes=num_lanes, window_blocks=4))
    reads = np.zeros(4000, np.int64)  # of each step, in pieces
    for lane in range(num_lanes):
        position = order.window(lane, 0).end
        while position < len(reads):
            window = order.window(lane, position)
            reads[position] += len(window.pieces)
            position = window.end
    # a window lasts 293 steps; unstaggered, the busiest of these spans would read 128 pieces and the quietest none
    spans = reads[100:].reshape(39, 100).sum(axis=1)
    assert spans.max() < 2 * spans.mean()
    assert spans.min() > 0


def blocks_of(seed: int, epoch: int) -> tuple[int, ...]:
    """Return the order of the blocks of one epoch."""
    order = Order(MANY_BLOCKS, OrderConfig(seed=seed, batch_size=1, num_lanes=1, window_blocks=1))
    start = epoch * order.num_samples
    return tuple(order.window(0, start + place * 20).pieces[0].block for place in range(len(MANY_BLOCKS)))


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 10**6)), min_size=2, max_size=5, unique=True))
def test_no_two_seeds_and_epochs_give_the_same_order(keys: list[tuple[int, int]]) -> None:
    assert len({blocks_of(seed, epoch) for seed, epoch in keys}) == len(keys)


@settings(max_examples=30)
@given(st.integers(0, 2**40), st.integers(0, 10**6), st.integers(1, 100))
def test_a_seed_does_not_continue_where_another_one_was_an_epoch_ago(seed: int, epoch: int, apart: int) -> None:
    assert blocks_of(seed, epoch + apart) != blocks_of(seed + apart, epoch)


def test_a_window_mixes_its_blocks() -> None:
    order = Order(np.full(64, 30, np.int64), OrderConfig(batch_size=1, num_lanes=1, window_blocks=8))
    blocks = [item[1] for item in take(order, 0, 30, 240)]  # the first window has one block
    assert len(set(blocks[:30])) >= 6


@given(COUNTS, st.integers(1, 9))
def test_one_pass_is_split_evenly_and_completely(counts: np.ndarray, num_ranks: int) -> None:
    shares = [list(even_pieces(counts, rank, num_ranks)) for rank in range(num_ranks)]
    sizes = [sum(piece.count for piece in share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert all(piece.count > 0 for share in shares for piece in share)
    seen = [(p.block, p.first + i) for share in shares for p in share for i in range(p.count)]
    assert seen == [(block, sample) for block, count in enumerate(counts) for sample in range(count)]


@pytest.mark.parametrize(("batch_size", "num_lanes"), [(10, 16), (15, 4)])
def test_a_batch_that_lanes_do_not_divide_is_refused(batch_size: int, num_lanes: int) -> None:
    with pytest.raises(ConfigError, match="not a multiple"):
        OrderConfig(batch_size=batch_size, num_lanes=num_lanes).samples_per_lane()


def test_more_workers_than_lanes_are_refused_with_a_way_out() -> None:
    with pytest.raises(ConfigError, match=r"17 workers cannot share 16 lanes.*at most 16 workers.*num_lanes of 17"):
        lanes_of_rank(16, 0, 17)


def test_a_dataset_without_samples_is_refused() -> None:
    with pytest.raises(ConfigError, match="no sample"):
        Order(np.zeros(3, np.int64), OrderConfig(batch_size=1, num_lanes=1))


def test_threads_wait_for_one_layout_of_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out: list[int] = []
    arrived: list[int] = []
    lay_out = Order._lay_out

    def slow(order: Order, epoch: int) -> object:
        laid_out.append(epoch)
        wait_until(lambda: len(arrived) == 8, "all threads to ask for a window")
        return lay_out(order, epoch)

    def ask(lane: int) -> None:
        arrived.append(lane)
        order.window(lane, 0)

    monkeypatch.setattr(Order, "_lay_out", slow)
    order = Order(MANY_BLOCKS, OrderConfig(batch_size=8, num_lanes=8))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(ask, range(8)))
    assert laid_out == [0]


def test_a_jump_into_the_largest_dataset_does_no_work_per_block() -> None:
    counts = np.random.default_rng(0).integers(60, 87, 4_100_000)
    order = Order(counts, OrderConfig(batch_size=4096, num_lanes=256))

    def cpu_seconds(lanes: Iterable[int]) -> float:
        started = time.process_time()
        for lane in lanes:
            order.window(lane, 600_000)
        return time.process_time() - started

    # The first window lays out the epoch, which is work per block: 40 times that of a jump into every lane.
    assert cpu_seconds(range(1)) > cpu_seconds(range(256))
