"""Tables that others wrote have a limit, and errors name their file."""

import io
import resource
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from pipeline.base.errors import CorruptShard
from pipeline.dataset import tables
from pipeline.dataset.schema import REJECT_SCHEMA, SAMPLE_SCHEMA, SHARD_SCHEMA, to_parquet
from pipeline.dataset.tables import from_parquet, read_table
from pipeline.store.local import LocalStore

ROWS = st.lists(
    st.fixed_dictionaries({"key": st.text(max_size=5), "labels": st.lists(st.integers(0, 9)), "quality": st.none()})
)


def parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@given(ROWS)
def test_a_table_comes_back_as_it_was(rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)
    assert from_parquet(to_parquet(table), "s.parquet").equals(table)


@pytest.mark.parametrize("schema", [SAMPLE_SCHEMA, REJECT_SCHEMA, SHARD_SCHEMA])
def test_an_empty_table_keeps_its_columns(schema: pa.Schema) -> None:
    assert from_parquet(to_parquet(schema.empty_table()), "s.parquet").schema.equals(schema)


def test_a_text_that_a_million_rows_repeat_is_refused_before_it_takes_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_MOST_UNPACKED_BYTES", 50_000_000)
    long = pa.array(["x" * 100_000])
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000_000, pa.int32()), long)
    body = parquet(pa.table({"source": repeated}), compression="zstd")
    assert len(body) < 100_000
    before = peak_bytes()
    with pytest.raises(CorruptShard, match=r"^s\.parquet: [\d,]+ bytes that unpack to more than 50,000,000"):
        from_parquet(body, "s.parquet")
    assert peak_bytes() - before < 300_000_000


def test_numbers_that_unpack_to_gigabytes_are_refused_before_they_take_memory() -> None:
    zeros = pa.table({"a": pa.array([0] * 300_000, pa.int64())})
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, zeros.schema) as writer:
        for _ in range(500):
            writer.write_table(zeros)
    before = peak_bytes()
    with pytest.raises(CorruptShard, match="unpack to more than"):
        from_parquet(sink.getvalue(), "s.parquet")
    assert peak_bytes() - before < 200_000_000


@given(st.integers(0, 2000), st.integers(0, 255))
def test_of_a_damaged_table_the_error_names_the_file(place: int, value: int) -> None:
    body = bytearray(to_parquet(pa.table({"key": ["a", "b"] * 50, "n": list(range(100))})))
    body[place % len(body)] = value
    try:
        from_parquet(bytes(body), "s3://b/s.parquet")
    except CorruptShard as error:
        assert "s3://b/s.parquet" in str(error)  # noqa: PT017 - most damages go unseen


def test_a_stored_table_is_named_by_its_url(tmp_path: Any) -> None:
    store = LocalStore(tmp_path)
    store.create("a.parquet", b"nothing")
    with pytest.raises(CorruptShard, match=rf"^{tmp_path}/a\.parquet is no whole Parquet file"):
        read_table(store, "a.parquet")
    with pytest.raises(CorruptShard, match="checksum differs"):
        read_table(store, "a.parquet", "0" * 64)
