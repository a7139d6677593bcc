"""A run with class names, one without, and a file of weights."""

from pathlib import Path

import pytest

from pipeline.store.url import open_store
from tests.trainer.jobs.exchanged import CLASSES, save_run
from trainer.jobs.exchange import export_weights
from trainer.run.classes import write_classes


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of R14x0.5 with 10 classes by name."""
    url = str(tmp_path_factory.mktemp("run") / "r")
    save_run(url, CLASSES)
    write_classes(open_store(url), CLASSES)
    return url


@pytest.fixture(scope="session")
def nameless(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same without names."""
    url = str(tmp_path_factory.mktemp("run") / "nameless")
    save_run(url, ())
    return url


@pytest.fixture
def official(run: str, tmp_path: Path) -> Path:
    export_weights(run, str(tmp_path / "official.npz"), "official")
    return tmp_path / "official.npz"
