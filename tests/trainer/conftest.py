"""A pretraining run that the tests of transfer share."""

from pathlib import Path

import pytest

from pipeline.dataset.dataset import Dataset
from tests.trainer.runs import config
from trainer.jobs.pretrain import pretrain
from trainer.step.ranks import alone


@pytest.fixture(scope="session")
def pretrained(small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretrained")
    pretrain(config(small_dataset, out), alone(), lambda row: None)
    return out
