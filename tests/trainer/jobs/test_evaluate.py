"""Evaluation of a run."""

import json
from pathlib import Path

import pytest

from pipeline.base.errors import ConfigError
from pipeline.dataset.dataset import Dataset
from tests.conftest import class_folders, pack
from trainer.jobs.config import EvaluateConfig
from trainer.jobs.evaluate import evaluate
from trainer.step.ranks import alone


def test_evaluation_of_a_run_counts_every_picture(small_dataset: Dataset, pretrained: Path, tmp_path: Path) -> None:
    settings = EvaluateConfig(run=str(pretrained), data=small_dataset.store.url, data_version=1, out=str(tmp_path))
    evaluate(settings, alone(), lambda row: None)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["num_test"] == 90
    assert 0 <= result["low"] <= result["accuracy"] <= result["high"] <= 1


def test_a_test_set_with_more_classes_than_the_model_is_refused(pretrained: Path, tmp_path: Path) -> None:
    other = pack(class_folders(tmp_path / "in", classes=5, each=2), str(tmp_path / "set"))
    settings = EvaluateConfig(run=str(pretrained), data=other.store.url, data_version=1, out=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"2 of 5 classes that .* does not know: .class3., .class4."):
        evaluate(settings, alone(), lambda row: None)
