"""Damaged checkpoints: a run goes on from the newest sound one, and nothing in a file is executed."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.base.errors import CorruptShard
from pipeline.dataset.dataset import Dataset
from pipeline.store.url import open_store
from tests.trainer.runs import Stopped, assert_equal, config, final_state
from trainer.checkpoint.record import latest, record_key, steps
from trainer.checkpoint.retention import Retention, discard_old
from trainer.checkpoint.sharded import load, save
from trainer.jobs.config import EvaluateConfig
from trainer.jobs.evaluate import evaluate
from trainer.jobs.pretrain import pretrain
from trainer.step.ranks import alone


def flip_a_byte(out: Path) -> None:
    record = latest(open_store(str(out)))
    path = out / record.folder / record.files[0].name
    body = bytearray(path.read_bytes())
    body[len(body) // 4] ^= 1  # of the model, whose names come before those of the momentum
    path.write_bytes(body)


def cut_a_file(out: Path) -> None:
    record = latest(open_store(str(out)))
    path = out / record.folder / record.files[0].name
    path.write_bytes(path.read_bytes()[:-100])


def lose_a_file(out: Path) -> None:
    record = latest(open_store(str(out)))
    (out / record.folder / record.files[-1].name).unlink()


def cut_the_record(out: Path) -> None:
    path = out / record_key(steps(open_store(str(out)))[-1])
    path.write_bytes(path.read_bytes()[:50])


def stop_at(step: int) -> Callable[[dict[str, Any]], None]:
    def report(row: dict[str, Any]) -> None:
        if row["step"] == step:
            raise Stopped

    return report


@pytest.fixture(scope="module")
def whole(small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    pretrain(config(small_dataset, out), alone(), lambda row: None)
    return out


@pytest.mark.parametrize("damage", [flip_a_byte, cut_a_file, lose_a_file, cut_the_record])
def test_a_run_goes_on_past_a_damaged_checkpoint_to_the_same_weights(
    small_dataset: Dataset,
    whole: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
) -> None:
    with pytest.raises(Stopped):
        pretrain(config(small_dataset, tmp_path), alone(), stop_at(8))
    assert steps(open_store(str(tmp_path))) == [3, 6]
    damage(tmp_path)
    with caplog.at_level(logging.WARNING, "trainer"):
        pretrain(config(small_dataset, tmp_path), alone(), lambda row: None)
    assert "the checkpoint of step 6 is damaged" in caplog.text
    assert "going on from the checkpoint of step 3" in caplog.text
    assert_equal(final_state(whole), final_state(tmp_path))
    (aside,) = (tmp_path / "damaged").iterdir()
    assert "problem" in json.loads(aside.read_text())


def test_the_files_of_a_damaged_checkpoint_are_kept_to_be_looked_at(small_dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        pretrain(config(small_dataset, tmp_path), alone(), stop_at(8))
    folder = latest(open_store(str(tmp_path))).folder
    flip_a_byte(tmp_path)
    pretrain(config(small_dataset, tmp_path, keep_checkpoints=1), alone(), lambda row: None)
    assert (tmp_path / folder).is_dir()
    assert steps(open_store(str(tmp_path))) == [8]


def test_a_run_without_a_sound_checkpoint_says_so_and_leaves_the_model_alone(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    pretrain(config(small_dataset, tmp_path, keep_checkpoints=1), alone(), lambda row: None)
    flip_a_byte(tmp_path)
    with pytest.raises(CorruptShard, match=r"none of the 1 checkpoints of .* is sound.*restore the files"):
        pretrain(config(small_dataset, tmp_path, keep_checkpoints=1), alone(), lambda row: None)
    store = open_store(str(tmp_path / "other"))
    save(store, alone(), {"model/a": torch.ones(3)}, step=1, attempt="a", stream={}, about={})
    flip_a_byte(tmp_path / "other")
    state = {"model/a": torch.zeros(3)}
    with pytest.raises(CorruptShard):
        load(store, alone(), latest(store), state)
    assert state["model/a"].tolist() == [0, 0, 0]


def test_evaluation_takes_the_newest_sound_checkpoint_and_says_which(
    small_dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    pretrain(config(small_dataset, run), alone(), lambda row: None)
    flip_a_byte(run)
    settings = EvaluateConfig(run=str(run), data=small_dataset.store.url, data_version=1, out=str(tmp_path / "out"))
    rows: list[dict[str, Any]] = []
    evaluate(settings, alone(), rows.append)
    assert rows[0]["step"] == 6
    assert "going on from the checkpoint of step 6" in caplog.text
    assert not (run / "damaged").exists()  # it is somebody else's run


def test_tidying_leaves_what_another_start_is_about_to_commit(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for step in (1, 2, 3):
        save(store, alone(), {"model/a": torch.ones(3)}, step=step, attempt="a", stream={}, about={})
    store.create("checkpoints/000000002-dead/__0_0.distcp", b"of a start that died")
    store.create("checkpoints/000000004-other/__0_0.distcp", b"of a start that is about to commit")
    discard_old(store, Retention(newest=1))
    folders = {path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir() and any(path.iterdir())}
    assert folders == {"000000003-a", "000000004-other"}
