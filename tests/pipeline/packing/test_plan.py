"""Items are cut into groups within limits, and hashes fall into windows of one to two shards."""

import numpy as np
from hypothesis import given, strategies as st

from pipeline.image.policy import ImagePolicy
from pipeline.packing.plan import ShardConfig, counted, cut, hash_names, num_windows, window_of


@given(st.lists(st.integers(1, 100), max_size=60), st.integers(1, 300), st.integers(1, 10))
def test_cut_covers_all_items_within_both_limits(sizes: list[int], target: int, most: int) -> None:
    ends = cut(np.array(sizes, np.int64), target, most)
    starts = [0, *ends][: len(ends)]
    assert [i for start, end in zip(starts, ends, strict=True) for i in range(start, end)] == list(range(len(sizes)))
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        assert 1 <= end - start <= most
        assert sum(sizes[start:end]) <= target or end - start == 1
        if number < len(ends) - 1:  # no group is closed early
            assert end - start == most or sum(sizes[start : end + 1]) > target


@given(st.integers(0, 10**9), st.integers(1, 10**6))
def test_windows_are_one_to_two_shards_long(num_bytes: int, shard_bytes: int) -> None:
    windows = num_windows(num_bytes, shard_bytes)
    assert windows & (windows - 1) == 0
    assert windows == 1 or shard_bytes <= num_bytes / windows < 2 * shard_bytes
    hashes = np.sort(hash_names([str(number) for number in range(50)], 3))
    assert (np.diff(window_of(hashes, windows).astype(np.int64)) >= 0).all()


def test_a_setting_that_a_later_release_adds_counts_only_where_it_is_set() -> None:
    class LaterPolicy(ImagePolicy):
        sharpened: bool = False

    class LaterConfig(ShardConfig):
        image: LaterPolicy = LaterPolicy()
        mirrored: bool = False

    today = ShardConfig(seed=3, image=ImagePolicy(reencode=True))
    later = LaterConfig(seed=3, image=LaterPolicy(reencode=True))
    assert counted(later) == counted(today) == today.model_dump_json()
    assert counted(later.model_copy(update={"mirrored": True})) != counted(today)
    assert counted(LaterConfig(seed=3, image=LaterPolicy(reencode=True, sharpened=True))) != counted(today)
