"""Checkpoints: what makes them exist, what is kept, damage."""

from pathlib import Path

import pytest

from pipeline.base.errors import CorruptShard, NotFound
from pipeline.dataset.dataset import Dataset
from pipeline.store.url import open_store
from tests.trainer.runs import config, final_state
from trainer.checkpoint.record import latest, require_latest
from trainer.jobs.pretrain import pretrain
from trainer.step.ranks import alone


def test_only_the_newest_checkpoints_stay_and_leave_no_files(small_dataset: Dataset, tmp_path: Path) -> None:
    pretrain(config(small_dataset, tmp_path, keep_checkpoints=1), alone(), lambda row: None)
    record = latest(open_store(str(tmp_path)))
    assert record.step == 8
    names = {str(p.relative_to(tmp_path)) for p in (tmp_path / "checkpoints").rglob("*") if p.is_file()}
    assert names == {"checkpoints/000000008.json", *(f"{record.folder}/{file.name}" for file in record.files)}


def test_files_without_a_commit_record_are_no_checkpoint(small_dataset: Dataset, tmp_path: Path) -> None:
    pretrain(config(small_dataset, tmp_path), alone(), lambda row: None)
    (tmp_path / "checkpoints" / "000000008.json").unlink()
    assert latest(open_store(str(tmp_path))).step == 6


def test_a_damaged_checkpoint_is_refused(small_dataset: Dataset, tmp_path: Path) -> None:
    pretrain(config(small_dataset, tmp_path), alone(), lambda row: None)
    record = latest(open_store(str(tmp_path)))
    path = tmp_path / record.folder / record.files[-1].name
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)
    with pytest.raises(CorruptShard, match="differs from its commit record"):
        final_state(tmp_path)


def test_missing_checkpoint_is_not_found(tmp_path: Path) -> None:
    assert latest(open_store(str(tmp_path))) is None
    with pytest.raises(NotFound, match="holds no checkpoint"):
        require_latest(open_store(str(tmp_path)))
