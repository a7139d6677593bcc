"""Mixing keeps the guarantees: exact positions, the same batch for any world size, nothing lost or repeated."""

from collections import Counter
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pipeline.base.errors import ConfigError
from pipeline.streaming.mixture import SLOTS, Draw, Mixture
from pipeline.streaming.order import lanes_of_rank

WEIGHTS = st.lists(st.floats(0.05, 20), min_size=1, max_size=6).map(tuple)
FAR = st.integers(0, 10**12)
PER_LANE = st.integers(1, 64)


def samples(draws: tuple[Draw, ...]) -> list[tuple[int, int]]:
    """Return (source, position) of each sample."""
    return [(draw.source, draw.position + i) for draw in draws for i in range(draw.count)]


@settings(max_examples=60)
@given(WEIGHTS, PER_LANE, st.integers(0, 300), st.integers(1, 3 * SLOTS))
def test_a_lane_draws_each_source_from_0_without_gap_or_repetition(
    weights: tuple[float, ...], per_lane: int, lane: int, count: int
) -> None:
    following = [0] * len(weights)
    for draw in Mixture(weights, per_lane).draws(lane, 0, count):
        assert draw.position == following[draw.source]
        following[draw.source] += draw.count
    assert sum(following) == count


@settings(max_examples=60)
@given(WEIGHTS, PER_LANE, st.integers(0, 300), FAR, st.lists(st.integers(0, 100), max_size=5))
def test_draws_of_a_range_are_those_of_its_parts(
    weights: tuple[float, ...], per_lane: int, lane: int, position: int, parts: list[int]
) -> None:
    mixture = Mixture(weights, per_lane)
    whole = mixture.draws(lane, position, sum(parts))
    in_parts: list[tuple[int, int]] = []
    for part in parts:
        in_parts += samples(mixture.draws(lane, position, part))
        position += part
    assert samples(whole) == in_parts
    assert all(draw.count > 0 for draw in whole)
    assert all(one.source != following.source for one, following in pairwise(whole))


@settings(max_examples=60)
@given(WEIGHTS, PER_LANE, st.integers(0, 300), FAR, st.integers(1, 10**12))
def test_over_any_span_a_source_is_drawn_by_its_share(
    weights: tuple[float, ...], per_lane: int, lane: int, position: int, span: int
) -> None:
    mixture = Mixture(weights, per_lane)
    drawn = np.array(mixture.starts(lane, position + span)) - mixture.starts(lane, position)
    assert drawn.sum() == span
    for source, weight in enumerate(weights):
        share = Fraction(mixture.shares[source])
        assert abs(share - Fraction(weight) / sum(map(Fraction, weights))) < Fraction(1, SLOTS)
        assert abs(int(drawn[source]) - share * span) < 2


@settings(max_examples=60)
@given(WEIGHTS, PER_LANE, st.integers(0, 300), FAR, st.integers(1, 500))
def test_starts_are_where_draws_begin_and_end(
    weights: tuple[float, ...], per_lane: int, lane: int, position: int, count: int
) -> None:
    mixture = Mixture(weights, per_lane)
    following = mixture.starts(lane, position)
    for draw in mixture.draws(lane, position, count):
        assert draw.position == following[draw.source]
        following[draw.source] += draw.count
    assert mixture.starts(lane, position + count) == following


@settings(max_examples=60)
@given(WEIGHTS, st.sampled_from([1, 2, 16, 37]), st.integers(1, 48), st.integers(0, 10**9), st.data())
def test_every_batch_and_every_ranks_part_of_it_is_less_than_two_samples_from_exact(
    weights: tuple[float, ...], per_lane: int, num_lanes: int, step: int, data: st.DataObject
) -> None:
    mixture = Mixture(weights, per_lane)
    num_ranks = data.draw(st.integers(1, num_lanes))
    for ranks in (1, num_ranks):
        for rank in range(ranks):
            lanes = lanes_of_rank(num_lanes, rank, ranks)
            drawn: Counter[int] = Counter()
            for lane in lanes:
                for draw in mixture.draws(lane, step * per_lane, per_lane):
                    drawn[draw.source] += draw.count
            for source, share in enumerate(mixture.shares):
                assert abs(drawn[source] - share * per_lane * len(lanes)) < 2


@settings(max_examples=60)
@given(WEIGHTS, PER_LANE, st.integers(2, 48), FAR)
def test_lanes_of_a_source_stay_within_three_samples(
    weights: tuple[float, ...], per_lane: int, num_lanes: int, position: int
) -> None:
    mixture = Mixture(weights, per_lane)
    reached = np.array([mixture.starts(lane, position) for lane in range(num_lanes)])
    assert np.ptp(reached, axis=0).max() <= 3


@given(FAR, st.integers(0, 255), st.integers(1, 10**12), st.floats(1e-300, 1e300))
def test_one_source_is_one_draw(position: int, lane: int, count: int, weight: float) -> None:
    assert Mixture((weight,), 16).draws(lane, position, count) == (Draw(0, position, count),)


@settings(max_examples=40)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.integers(-30, 30))
def test_only_ratios_of_weights_matter(weights: list[int], scale: int) -> None:
    plain = Mixture(tuple(map(float, weights)), 4)
    scaled = Mixture(tuple(weight * 2.0**scale for weight in weights), 4)
    assert scaled.shares == plain.shares
    assert scaled.draws(3, 1000, 200) == plain.draws(3, 1000, 200)


def test_many_small_sources_do_not_crowd_together() -> None:
    weights = (50.0, *[1.0] * 50)
    mixture = Mixture(weights, 16)
    reached = np.array([mixture.starts(0, position) for position in range(0, 2000, 7)])
    exact = np.arange(0, 2000, 7)[:, None] * np.array(mixture.shares)
    assert np.abs(reached - exact).max() < 1


def test_weights_that_fit_the_cycle_are_exact_in_every_batch() -> None:
    mixture = Mixture((2.0, 1.0, 1.0), 16)
    assert mixture.shares == (0.5, 0.25, 0.25)
    for step in range(200):
        draws = [draw for lane in range(32) for draw in mixture.draws(lane, step * 16, 16)]
        counts = [sum(draw.count for draw in draws if draw.source == source) for source in range(3)]
        assert counts == [256, 128, 128]


def test_a_far_position_is_reached_without_going_there() -> None:
    mixture = Mixture((5.0, 3.0, 0.2), 16)
    for lane in range(256):  # work for each sample before it, or for each cycle, would never end
        assert sum(draw.count for draw in mixture.draws(lane, 10**15, 16)) == 16


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_not_a_positive_number_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match="of source 1 is not a positive number"):
        Mixture((1.0, weight), 4)


def test_a_weight_too_small_to_be_drawn_is_refused() -> None:
    with pytest.raises(ConfigError, match=f"1e-06 of source 1 is below 1/{SLOTS} of all weights"):
        Mixture((1.0, 1e-6), 4)
    with pytest.raises(ConfigError, match="too small to be drawn"):
        Mixture((1e300, 1e-300), 4)


def test_no_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one weight"):
        Mixture((), 4)
