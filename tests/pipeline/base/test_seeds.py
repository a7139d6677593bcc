"""Random numbers are functions of their key: equal for equal keys, unrelated for others."""

import numpy as np
from hypothesis import given, strategies as st

from pipeline.base.seeds import Uniform, key128, rng, sample_uniform

PARTS = st.lists(
    st.integers(-(2**70), 2**70) | st.text(st.characters(codec="utf-8", min_codepoint=32), max_size=4), max_size=3
)
KEYS = st.tuples(st.integers(0, 2**70), PARTS)


@given(KEYS, KEYS)
def test_only_equal_arguments_have_equal_keys(
    one: tuple[int, list[int | str]], other: tuple[int, list[int | str]]
) -> None:
    assert (key128(one[0], *one[1]) == key128(other[0], *other[1])) == (one == other)
    assert 0 <= key128(one[0], *one[1]) < 2**128


def test_a_number_and_its_text_are_different_parts() -> None:
    keys = [key128(1, *parts) for parts in ([2, 3], ["2", 3], [2, "3"], [23], ["23"], ["2", "3"], [])]
    assert len({*keys, key128(12, 3), key128(2, 1, 3)}) == len(keys) + 2


def test_keys_and_numbers_stay_what_they_were_in_earlier_releases() -> None:
    """Shards, orders and views of datasets in use depend on them."""
    assert key128(7, "shuffle", 1) == 0x42223F0FD860FB676020E87B0D9DD3E3
    assert rng(7, "shuffle", 1).integers(0, 1000, 4).tolist() == [482, 116, 164, 795]
    assert sample_uniform(7, "view", 0, 1, 2, 3).random() == 0.8797352914185755


@given(st.integers(0, 2**63), st.integers(0, 3), st.integers(0, 9), st.integers(0, 2**31), st.integers(0, 2**31))
def test_a_sample_draws_its_own_numbers(seed: int, source: int, epoch: int, shard: int, row: int) -> None:
    def drawn(*key: int) -> list[float]:
        uniform = sample_uniform(seed, "view", *key)
        return [uniform.random() for _ in range(4)]

    own = drawn(source, epoch, shard, row)
    assert own == drawn(source, epoch, shard, row)
    assert all(0.0 <= number < 1.0 for number in own)
    assert len(set(own)) == 4
    for other in ((source + 1, epoch, shard, row), (source, epoch + 1, shard, row), (source, epoch, row + 1, shard)):
        assert not set(own) & set(drawn(*other))


def test_numbers_are_spread_evenly() -> None:
    uniform = Uniform(b"key")
    counts = np.histogram([uniform.random() for _ in range(20_000)], bins=20, range=(0, 1))[0]
    assert abs(counts - 1000).max() < 160  # five standard deviations
