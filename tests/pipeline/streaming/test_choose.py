"""Rows are chosen by what sidecars hold, or by a list in a file, and what cannot be chosen is refused."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from pipeline.base.errors import ConfigError, NotFound
from pipeline.dataset.dataset import Dataset
from pipeline.streaming.choose import listed_rows, rows_where

KEYS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1000)))


def test_rows_are_those_for_which_the_sidecar_says_so(dataset: Dataset) -> None:
    columns = ["image_bytes", "quality"]
    chosen = rows_where(dataset, columns, lambda table: table["image_bytes"].to_numpy() % 2 == 0)
    everything = dataset.all_samples(["image_bytes"]).to_pylist()
    expected = {(row["shard"], row["row"]) for row in everything if row["image_bytes"] % 2 == 0}
    assert 0 < len(expected) < 90
    assert {(shard, row) for shard, rows in chosen.items() for row in rows.tolist()} == expected


def test_only_the_columns_that_are_asked_for_are_handed_over(dataset: Dataset) -> None:
    seen: list[list[str]] = []

    def keep(table: pa.Table) -> np.ndarray:
        seen.append(table.column_names)
        return np.zeros(table.num_rows, bool)

    assert rows_where(dataset, ["labels"], keep) == {}  # a shard without a chosen row is left out
    assert seen == [["labels"]] * len(dataset.shards)


def test_a_column_that_sidecars_lack_is_named(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"no column \['colour'\]; they have .*labels"):
        rows_where(dataset, ["colour", "labels"], lambda table: np.ones(table.num_rows, bool))


@given(KEYS)
def test_a_list_is_read_back_by_shard_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, keys: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.mktemp("listed") / "rows.parquet"
    shards, rows = zip(*keys, strict=True) if keys else ((), ())
    names = pa.array([None] * len(keys), pa.string())  # lists for people have more columns
    pq.write_table(
        pa.table({"row": pa.array(rows, pa.int32()), "shard": pa.array(shards, pa.int16()), "source": names}), path
    )
    found = listed_rows(str(path))
    assert sorted((shard, row) for shard, of_shard in found.items() for row in of_shard.tolist()) == sorted(keys)
    assert all(len(of_shard) for of_shard in found.values())


def test_a_list_that_was_made_for_another_dataset_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    own = dataset.all_samples(["digest"])
    digests = [digest.hex() for digest in own["digest"].to_pylist()]
    for listed in ([], [0], range(own.num_rows)):
        pq.write_table(own.set_column(2, "digest", pa.array(digests)).take(pa.array(listed, pa.int64())), path)
        assert sum(map(len, listed_rows(str(path), dataset).values())) == len(listed)
    pq.write_table(own.set_column(2, "digest", pa.array(digests[1:] + digests[:1])), path)
    with pytest.raises(ConfigError, match=r"another dataset than .*: row 0 of shard 0 is another"):
        listed_rows(str(path), dataset)
    for shard, row in ((len(dataset.shards), 0), (0, 1000), (-1, 0)):
        pq.write_table(pa.table({"shard": [shard], "row": [row], "digest": digests[:1]}), path)
        with pytest.raises(ConfigError, match=rf"row {row} of shard {shard} is not there"):
            listed_rows(str(path), dataset)


@pytest.mark.parametrize(
    "columns",
    [
        {"shard": [0]},
        {"shard": [0], "row": ["first"]},
        {"shard": [0], "row": [0.5]},
        {"shard": [0, None], "row": [1, 2]},
    ],
    ids=["no row", "text", "fraction", "missing"],
)
def test_a_file_without_whole_numbers_is_refused(tmp_path: Path, columns: dict[str, list[object]]) -> None:
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    with pytest.raises(ConfigError, match="whole numbers as columns shard and row"):
        listed_rows(str(tmp_path / "rows.parquet"))


def test_a_list_that_is_no_table_or_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_text("shard,row\n0,1\n")
    with pytest.raises(ConfigError, match=r"rows\.parquet is no Parquet file"):
        listed_rows(str(tmp_path / "rows.parquet"))
    with pytest.raises(NotFound):
        listed_rows(str(tmp_path / "nowhere.parquet"))


def test_a_small_list_that_unpacks_to_very_many_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    million = pa.table({name: np.zeros(1_000_000, np.int64) for name in ("shard", "row")})
    with pq.ParquetWriter(path, million.schema) as writer:
        for _ in range(70):
            writer.write_table(million)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(ConfigError, match=r"is no Parquet file .* unpack to more than"):
        listed_rows(str(path))
