"""What is held out: exactly so many, the same ones always, and never trained on."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from pipeline.base.errors import ConfigError
from pipeline.dataset.dataset import Dataset
from pipeline.streaming.one_pass import encoded_samples
from pipeline.streaming.selection import Selection
from tests.trainer.runs import config
from trainer.recipes.data import held_out_selection, training_sources
from trainer.recipes.held_out import HeldOut, held_out_rows


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) > 1),
    st.floats(0, 1),
    st.integers(0, 5),
)
def test_exactly_so_many_rows_are_held_out_and_no_other_ones_on_another_call(
    sizes: list[int], share: float, seed: int
) -> None:
    count = max(1, min(sum(sizes) - 1, round(share * sum(sizes))))
    rows = held_out_rows(sizes, count, seed)
    assert sum(len(found) for found in rows.values()) == count
    for shard, found in rows.items():
        assert len(np.unique(found)) == len(found)
        assert 0 <= found.min() <= found.max() < sizes[shard]
    again = held_out_rows(sizes, count, seed)
    assert {shard: found.tolist() for shard, found in rows.items()} == {
        shard: found.tolist() for shard, found in again.items()
    }


def test_held_out_rows_are_spread_over_all_shards_as_the_pictures_are() -> None:
    sizes = [1000, 4000, 0, 5000]
    rows = held_out_rows(sizes, 1000, 0)
    shares = [len(rows.get(shard, ())) / 1000 for shard in range(4)]
    assert shares == pytest.approx([0.1, 0.4, 0.0, 0.5], abs=0.05)


def addresses(selection: Selection) -> set[tuple[int, int]]:
    return {(sample.shard, sample.row) for sample in encoded_samples(selection)}


def test_training_and_held_out_pictures_are_the_whole_set_without_what_is_excluded(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    everything = addresses(Selection(small_dataset))
    listed = sorted(everything)[::9]
    table = pa.table({"shard": [shard for shard, _ in listed], "row": [row for _, row in listed]})
    pq.write_table(table, tmp_path / "exclude.parquet")
    chosen = config(
        small_dataset,
        tmp_path / "out",
        held_out=HeldOut(num_samples=30, data_version=1),
        exclude=str(tmp_path / "exclude.parquet"),
    )
    held_out = held_out_selection(chosen)
    assert held_out is not None
    trained, measured = addresses(training_sources(chosen)[0].selection), addresses(held_out)
    assert trained & measured == set()
    assert trained | measured == everything - set(listed)
    assert 0 < len(measured) <= 30


def test_as_many_as_there_are_leave_nothing_to_train_on() -> None:
    with pytest.raises(ConfigError, match=r"10 held-out pictures leave nothing to train on: the training set has 10"):
        held_out_rows([4, 6], 10, 0)


@pytest.mark.parametrize("fields", [{}, {"num_samples": 3, "data": "x"}])
def test_either_a_number_of_pictures_or_a_dataset_is_held_out(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="give num_samples of the training set, or data of its own"):
        HeldOut(data_version=1, **fields)
