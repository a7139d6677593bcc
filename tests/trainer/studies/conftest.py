"""Datasets that the tests of studies share."""

from pathlib import Path

import pytest

from tests.conftest import class_folders, pack


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sets of the tiny scale."""
    folder = tmp_path_factory.mktemp("data")
    for number, name in enumerate(("upstream", "task")):
        for split, each in (("train", 16), ("test", 6)):
            pictures = class_folders(folder / "pictures" / name / split, each=each, seed=7000 * number + 100 * each)
            pack(pictures, str(folder / name / split))
    return folder
