"""Datasets with all exports: our own, and adopted tars of another tool."""

import shutil

import pytest

from pipeline.dataset.dataset import Dataset, open_dataset
from tests.pipeline.exports.exporting import export_all, foreign_samples, indexed
from tests.tars import write_tar


@pytest.fixture(scope="session")
def exported(small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A copy of the small dataset with all exports."""
    copy = tmp_path_factory.mktemp("exported") / "train"
    shutil.copytree(small_dataset.store.url, copy)
    dataset = open_dataset(str(copy))
    export_all(dataset)
    return dataset


@pytest.fixture(scope="session")
def adopted(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Another tool's tars: blanks, capitals, labels in JSON, a folder of metadata, and pictures that do not decode."""
    root = tmp_path_factory.mktemp("adopted")
    broken = [("some folder/9000.JPG", b"no picture"), ("some folder/9000.json", b"{}")]
    write_tar(root / "a.tar", [("__meta__/about.json", b"{}"), *foreign_samples(0, 4), *broken, *foreign_samples(4, 3)])
    write_tar(root / "more" / "b.tar", [("README", b"nothing"), *foreign_samples(10, 5)])
    dataset = indexed(root)
    assert dataset.version.num_samples == 12
    export_all(dataset)
    return dataset
