"""Rows come in one order, whether they were sorted in memory or through files."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

import pipeline.packing.external_sort
from pipeline.base.errors import StorageFull
from pipeline.packing.external_sort import ExternalSort
from pipeline.packing.plan import hash_names


@pytest.mark.parametrize("windows", [1, 4, 256, 1024])
def test_rows_sorted_through_files_come_in_the_order_of_rows_in_memory(
    windows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"picture {number}" for number in range(3000)]
    runs = hash_names([f"run {number // 50}" for number in range(3000)], 0)
    rows = pa.table({"source": names, "value": list(range(3000))})

    def in_order() -> pa.Table:
        external_sort = ExternalSort(tmp_path)
        for start in range(0, 3000, 100):
            part = slice(start, start + 100)
            external_sort.add(rows.slice(start, 100), hash_names(names[part], 0), runs[part])
        return pa.concat_tables(external_sort.sorted_tables(windows)).combine_chunks()

    in_memory = in_order()
    monkeypatch.setattr(pipeline.packing.external_sort, "_MOST_ROWS", 500)
    through_files = in_order()
    assert through_files.equals(in_memory)
    assert sorted(through_files["value"].to_pylist()) == list(range(3000))
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=20)
@given(st.integers(0, 3), st.integers(1, 400))
def test_equal_hashes_are_ordered_by_name(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"n{value}" for value in rng.permutation(count)]
    with tempfile.TemporaryDirectory() as scratch:
        external_sort = ExternalSort(Path(scratch))
        same = np.zeros(count, np.uint64)
        external_sort.add(pa.table({"source": names}), same, same)
        assert pa.concat_tables(external_sort.sorted_tables(1))["source"].to_pylist() == sorted(names)


def test_a_full_scratch_folder_is_named(tiny_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.packing.external_sort, "_MOST_ROWS", 500)
    external_sort = ExternalSort(tiny_disk)
    names = [f"{number:04d}" for number in range(4000)]
    noise = np.random.default_rng(0).bytes(200 * len(names))
    rows = pa.table({"source": names, "noise": [noise[i * 200 : i * 200 + 200] for i in range(len(names))]})
    with pytest.raises(StorageFull, match="scratch"):
        external_sort.add(rows, hash_names(names, 0), hash_names(names, 0))
