"""A plan depends on the set of rows alone, and cuts them without loss."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.manifest import table_of
from pipeline.plan import ShardConfig, cut, plan_shards
from pipeline.sources.rows import ROW_SCHEMA


def rows_of(names: list[str]) -> pa.Table:
    return table_of(
        [
            {"source": n, "uri": f"/x/{n}", "num_bytes": 10 * len(n), "labels": [len(n) % 3], "extra": "{}"}
            for n in names
        ],
        ROW_SCHEMA,
    )


@given(st.lists(st.integers(1, 100), max_size=60), st.integers(1, 300), st.integers(1, 10))
def test_cut_covers_all_items_within_both_limits(sizes: list[int], target: int, most: int) -> None:
    ends = cut(np.array(sizes, np.int64), target, most)
    starts = [0, *ends][: len(ends)]
    assert [i for start, end in zip(starts, ends, strict=True) for i in range(start, end)] == list(range(len(sizes)))
    for start, end in zip(starts, ends, strict=True):
        assert 1 <= end - start <= most
        assert sum(sizes[start:end]) <= target or end - start == 1


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=20, unique=True), st.randoms())
def test_the_plan_does_not_depend_on_the_order_of_its_rows(names: list[str], shuffler: object) -> None:
    shuffled = list(names)
    shuffler.shuffle(shuffled)
    config = ShardConfig(shard_bytes=6_000)
    plan, ordered = plan_shards(rows_of(names), ("a", "b", "c"), config)
    other, other_ordered = plan_shards(rows_of(shuffled), ("a", "b", "c"), config)
    assert plan == other
    assert ordered.equals(other_ordered)


def test_seed_classes_and_settings_are_part_of_the_identity() -> None:
    rows = rows_of(["x", "yy", "zzz"])
    ids = {
        plan_shards(rows, classes, config)[0].plan_id
        for classes in (("a", "b", "c"), ("a", "b", "d"))
        for config in (ShardConfig(), ShardConfig(seed=1), ShardConfig(split="val"), ShardConfig(block_bytes=1 << 20))
    }
    assert len(ids) == 8


def test_order_mixes_classes() -> None:
    names = [f"{label}/{number}" for label in "abc" for number in range(100)]
    _, ordered = plan_shards(rows_of(names), (), ShardConfig())
    first = [name[0] for name in ordered["source"].to_pylist()[:60]]
    assert min(first.count(label) for label in "abc") >= 8
