"""A plan depends on the set of rows alone, and holds each of them once with its label and its shard."""

import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from pipeline.base.errors import ConfigError
from pipeline.packing.make_plan import Planned, make_plan
from pipeline.packing.plan import ShardConfig
from pipeline.packing.probe import Probe
from pipeline.packing.sources.rows import FILE, PARQUET, Source, batch_of


def source_of(names: list[str], url: str = "/x", labels: list[Any] | None = None, batch_rows: int = 7) -> Source:
    """A source whose rows are given."""
    row_labels = [[len(name) % 3] for name in names] if labels is None else labels

    def read(parallel_map: Any) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(names), batch_rows):
            part = names[start : start + batch_rows]
            yield batch_of(
                part,
                labels=row_labels[start : start + batch_rows],
                container=FILE,
                num_bytes=[10 * len(name) for name in part],
            )

    return Source(url, read)


def planned(*sources: Source, **options: Any) -> tuple[Planned, pa.Table]:
    """Return the plan and its rows."""
    config = options.pop("config", ShardConfig(shard_bytes=6_000))
    prefixed = [("" if len(sources) == 1 else f"{number}/", source) for number, source in enumerate(sources)]
    with tempfile.TemporaryDirectory() as scratch:
        result = make_plan(prefixed, config, Path(scratch), probe=lambda rows, sources: Probe(), **options)
        return result, pa.concat_tables([pq.read_table(path) for path in result.parts])


NAMES = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=40, unique=True)


@given(NAMES, st.randoms(), st.integers(1, 50))
def test_the_plan_does_not_depend_on_the_order_of_its_rows(names: list[str], shuffler: Any, batch_rows: int) -> None:
    shuffled = list(names)
    shuffler.shuffle(shuffled)
    first, rows = planned(source_of(names))
    second, other_rows = planned(source_of(shuffled, batch_rows=batch_rows))
    assert first.plan == second.plan
    assert rows.equals(other_rows)
    assert sorted(rows["source"].to_pylist()) == sorted(names)


def test_seed_classes_and_settings_are_part_of_the_identity() -> None:
    configs = (ShardConfig(), ShardConfig(seed=1), ShardConfig(split="val"), ShardConfig(block_bytes=1 << 20))
    ids = {
        planned(source_of(["x", "yy", "zzz"], labels=[[name] for name in names]), config=config)[0].plan.plan_id
        for names in (("a", "b", "c"), ("a", "b", "d"))
        for config in configs
    }
    assert len(ids) == 8


def test_a_source_that_moved_has_the_same_plan() -> None:
    assert planned(source_of(["x"], url="/a"))[0].plan.plan_id == planned(source_of(["x"], url="/b"))[0].plan.plan_id


def test_order_mixes_classes() -> None:
    names = [f"{label}/{number}" for label in "abc" for number in range(100)]
    _, rows = planned(source_of(names))
    first = [name[0] for name in rows["source"].to_pylist()[:60]]
    assert min(first.count(label) for label in "abc") >= 8


def test_rows_of_a_row_group_are_spread_over_few_shards_and_shards_over_many_groups() -> None:
    """Each group is read for one or two shards, and each shard draws on groups from all over the set."""
    groups, each = 512, 20

    def read(parallel_map: Any) -> Iterator[pa.RecordBatch]:
        for group in range(groups):
            yield batch_of(
                [f"f#{group * each + row}" for row in range(each)],
                labels=[[0]] * each,
                container=PARQUET,
                offset=list(range(group * each, group * each + each)),
                num_bytes=[1000] * each,
                run=[f"f#{group}"] * each,
            )

    result, rows = planned(Source("/x", read), config=ShardConfig(shard_bytes=400_000))
    of_group: dict[int, set[int]] = {}
    of_shard: dict[int, list[int]] = {}
    start = 0
    for number, end in enumerate(result.plan.shard_ends):
        for offset in rows["offset"].to_pylist()[start:end]:
            of_group.setdefault(offset // each, set()).add(number)
            of_shard.setdefault(number, []).append(offset // each)
        start = end
    assert np.mean([len(shards) for shards in of_group.values()]) <= 2.5
    spreads = [max(found) - min(found) for found in of_shard.values() if len(found) > 60]
    assert np.mean(spreads) > groups / 2
    neighbours = [a == b for found in of_shard.values() for a, b in itertools.pairwise(found)]
    assert np.mean(neighbours) < 0.4  # rows of one group do not stand together


def test_names_of_several_sources_are_numbered_together() -> None:
    result, rows = planned(source_of(["x"], labels=[["zebra"]]), source_of(["x", "y"], labels=[["ant"], ["zebra"]]))
    assert result.plan.classes == ("ant", "zebra")
    assert dict(zip(rows["source"].to_pylist(), rows["labels"].to_pylist(), strict=True)) == {
        "0/x": [1],
        "1/x": [0],
        "1/y": [1],
    }


def test_names_and_numbers_do_not_mix() -> None:
    with pytest.raises(ConfigError, match="all numbers or all names"):
        planned(source_of(["x"], labels=[["zebra"]]), source_of(["x"], labels=[[3]]))


def test_21843_class_names_are_numbered_by_their_list() -> None:
    classes = tuple(f"n{number:08d}" for number in reversed(range(21_843)))
    base = source_of(["a", "b"], labels=[["n00000000"], ["n00021842"]])
    result, rows = planned(Source(base.url, base.read, classes))
    assert result.plan.num_classes == 21_843
    assert dict(zip(rows["source"].to_pylist(), rows["labels"].to_pylist(), strict=True)) == {"a": [21_842], "b": [0]}


@given(NAMES, st.data())
def test_known_rows_are_left_out_and_counted(names: list[str], data: st.DataObject) -> None:
    known = data.draw(st.lists(st.sampled_from(names), unique=True))
    table = pa.table(
        {
            "source": pa.array(known, pa.string()),
            "num_bytes": pa.array([10 * len(name) for name in known], pa.int64()),
            "run": pa.nulls(len(known), pa.uint64()),
        }
    )
    result, rows = planned(source_of([*names, "one that is new"]), known=[table])
    assert Counter(rows["source"].to_pylist()) == Counter(set(names) - set(known) | {"one that is new"})
    assert result.plan.num_known == len(known)


def test_a_known_name_with_another_size_is_refused() -> None:
    known = pa.table({"source": ["x"], "num_bytes": [11], "run": pa.nulls(1, pa.uint64())})
    with pytest.raises(ConfigError, match="NAME=URL"):
        planned(source_of(["x"]), known=[known])
