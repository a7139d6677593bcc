"""A folder of several datasets is not read as one, whoever is asked to read it."""

import shutil
from pathlib import Path

import pytest

from pipeline.base.errors import ConfigError
from pipeline.dataset.dataset import Dataset, open_dataset
from pipeline.packing.foreign_tars.open_any import open_any
from pipeline.packing.sources.open import open_source
from pipeline.packing.sources.table import Columns
from tests.conftest import cli


@pytest.fixture(scope="session")
def several(small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets in one folder, as `pipeline shard ... data/train` and `... data/test` leave them."""
    folder = tmp_path_factory.mktemp("several") / "data"
    for name in ("train", "test"):
        shutil.copytree(small_dataset.store.url, folder / name)
    return folder


def refusal(folder: Path) -> str:
    return f"{folder} holds 2 datasets, which are not read as one: {folder}/test, {folder}/train; name the one you mean"


@pytest.mark.parametrize("command", ["inspect", "verify", "export", "index"])
def test_commands_name_the_datasets_below_a_folder(several: Path, command: str) -> None:
    printed = cli(command, several, code=2)
    assert refusal(several) in printed
    assert not list(several.glob("*.json"))


def test_reading_and_packing_refuse_it_too(several: Path) -> None:
    for read in (open_any, open_dataset, lambda url: open_source(url, Columns())):
        with pytest.raises(ConfigError) as caught:
            read(str(several))
        assert refusal(several) in str(caught.value)


def test_a_folder_above_one_dataset_is_refused_as_well(small_dataset: Dataset, tmp_path: Path) -> None:
    shutil.copytree(small_dataset.store.url, tmp_path / "deep" / "set")
    with pytest.raises(ConfigError, match=r"holds a dataset below it: .*/deep/set; name the one you mean"):
        open_any(str(tmp_path))


def test_a_manifest_of_others_is_no_dataset(several: Path, tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "MANIFEST.json").write_text('{"name": "a web page"}')
    shutil.copy(next((several / "train").rglob("*.tar")), tmp_path / "a.tar")
    assert open_any(str(tmp_path)).version.num_samples > 0
