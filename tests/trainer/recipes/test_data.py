"""What a pretraining run reads."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.base.errors import ConfigError
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.schema import table_of, to_parquet
from pipeline.store.url import open_store
from tests.conftest import class_folders, pack
from tests.trainer.runs import config
from trainer.jobs.pretrain import pretrain
from trainer.recipes.data import MixedData, training_sources
from trainer.run.metrics import read_metrics
from trainer.step.ranks import alone


def test_a_run_mixes_datasets_and_leaves_out_what_a_list_names(
    small_dataset: Dataset, small_folder: Path, tmp_path: Path
) -> None:
    other = pack(small_folder, str(tmp_path / "other"))
    rows = [{"shard": 0, "row": row} for row in range(5)]
    (tmp_path / "leave-out.parquet").write_bytes(
        to_parquet(table_of(rows, pa.schema([("shard", pa.int32()), ("row", pa.int32())])))
    )
    mixed = MixedData(data=other.store.url, data_version=1, weight=0.5)
    settings = config(small_dataset, tmp_path / "run", mix=(mixed,), exclude=str(tmp_path / "leave-out.parquet"))
    sources = training_sources(settings)
    assert [(source.selection.num_samples, source.weight) for source in sources] == [(85, 1.0), (90, 0.5)]
    pretrain(settings, alone(), lambda row: None)
    assert read_metrics(open_store(str(tmp_path / "run")))[-1]["num_steps"] == round(2 * 175 / 24)


def test_datasets_with_other_classes_are_not_mixed(small_dataset: Dataset, tmp_path: Path) -> None:
    other = pack(class_folders(tmp_path / "four", classes=4, each=4), str(tmp_path / "other"))
    mixed = MixedData(data=other.store.url, data_version=1, weight=0.5)
    with pytest.raises(ConfigError, match="has other classes than"):
        training_sources(config(small_dataset, tmp_path / "run", mix=(mixed,)))
