"""A small dataset that the tests of loaders share."""

from pathlib import Path

import pytest

from pipeline.dataset.dataset import Dataset, open_dataset
from tests.conftest import pack


@pytest.fixture(scope="session")
def folder(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 pictures in blocks of about 7, which lanes share at their borders."""
    target = tmp_path_factory.mktemp("loader") / "set"
    pack(small_folder, str(target), max_samples_per_shard=25, block_bytes=40_000)
    return target


@pytest.fixture(scope="session")
def dataset(folder: Path) -> Dataset:
    return open_dataset(str(folder))
