"""Files of earlier versions stay usable: plans keep their ids, datasets are read, runs go on (tests/golden)."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline import open_dataset, open_store
from tests.conftest import run_cli
from trainer import PretrainConfig, read_metrics
from trainer.checkpoint.record import committed
from trainer.run.history import current_config, settle

GOLDEN = Path(__file__).parent / "golden"
PLAN_ID = "a4ddc820763b0223"


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "set", tmp_path / "set"))


def test_a_dataset_is_read_and_sound(packed: Path) -> None:
    dataset = open_dataset(str(packed))
    assert dataset.classes == ("class0", "class1")
    assert dataset.version.num_samples == 6
    done = run_cli("pipeline", "verify", str(packed), "--level", "decode")
    assert done.returncode == 0, done.stderr + done.stdout


def test_the_same_pictures_have_the_same_plan_and_the_same_tar(packed: Path, tmp_path: Path) -> None:
    done = run_cli("pipeline", "shard", str(GOLDEN / "photos"), str(tmp_path / "new"))
    assert done.returncode == 0, done.stderr
    new, old = open_dataset(str(tmp_path / "new")), open_dataset(str(packed))
    assert new.version.plan_ids == old.version.plan_ids == (PLAN_ID,)
    path = old.shard_path(0)
    assert (tmp_path / "new" / path).read_bytes() == (packed / path).read_bytes()
    assert new.samples(0).equals(old.samples(0))
    assert new.version.shards_sha256 == old.version.shards_sha256


def test_packing_again_and_appending_go_on_with_the_stored_plan(packed: Path, tmp_path: Path) -> None:
    done = run_cli("pipeline", "shard", str(GOLDEN / "photos"), str(packed))
    assert done.returncode == 0, done.stderr
    assert open_dataset(str(packed)).version.version == 1
    more = tmp_path / "more" / "class0"
    more.mkdir(parents=True)
    shutil.copy(GOLDEN / "photos" / "class1" / "2.png", more / "new.png")
    done = run_cli("pipeline", "append", str(more.parent), str(packed))
    assert done.returncode == 0, done.stderr
    assert open_dataset(str(packed)).version.num_samples == 7


def test_a_run_goes_on_with_todays_defaults_filled_in(tmp_path: Path) -> None:
    run = Path(shutil.copytree(GOLDEN / "run", tmp_path / "run"))
    store = open_store(str(run))
    config = current_config(store, PretrainConfig)
    assert config is not None
    assert config.recipe.batch_size == 4
    stored = json.loads((run / "run.json").read_text())
    given = PretrainConfig.model_validate({**stored, "out": str(run)})
    assert settle(store, given) == given
    assert [record.step for record in committed(store)] == [3, 6]
    assert committed(store)[-1].about["model"] == "R14x0.5"
    assert [row["step"] for row in read_metrics(store)] == [6]
