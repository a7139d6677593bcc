"""Checkpoints of version 0.1, in torch.distributed.checkpoint's files: they load, and nothing in them is executed."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from pipeline.base.errors import CorruptShard
from pipeline.dataset.schema import sha256_hex
from pipeline.store.base import Store
from pipeline.store.url import open_store
from trainer.checkpoint.record import CheckpointFile, CheckpointRecord, latest
from trainer.checkpoint.sharded import load
from trainer.step.ranks import alone


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A run folder as version 0.1 left it."""
    store, folder = open_store(str(tmp_path)), "checkpoints/000000001-a"
    staging = tmp_path / "staging"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer = FileSystemWriter(staging, single_file_per_rank=True, sync_files=False)
        dcp_save({"model/a": torch.arange(6.0).reshape(2, 3)}, storage_writer=writer, no_dist=True)
    files = []
    for path in sorted(staging.iterdir()):
        body = path.read_bytes()
        store.create(f"{folder}/{path.name}", body)
        files.append(CheckpointFile(name=path.name, num_bytes=len(body), sha256=sha256_hex(body)))
    record = CheckpointRecord(step=1, folder=folder, files=tuple(files), stream={}, about={})
    body = record.model_dump_json(exclude={"layout", "unreported"})  # which that version did not have
    store.create("checkpoints/000000001.json", body.encode())
    return store


def test_they_load(store: Store) -> None:
    state = {"model/a": torch.zeros(2, 3)}
    load(store, alone(), latest(store), state)
    assert state["model/a"].tolist() == [[0, 1, 2], [3, 4, 5]]


class Hostile:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self._path, "executed")


def test_a_hostile_index_is_refused_and_executes_nothing(store: Store, tmp_path: Path) -> None:
    record = latest(store)
    index = next(file for file in record.files if file.name == ".metadata")
    for body in (pickle.dumps(Hostile(tmp_path / "executed")), pickle.dumps({"a": 1}), b"no pickle", b""):
        (tmp_path / record.folder / ".metadata").write_bytes(body)
        forged = index.model_copy(update={"sha256": sha256_hex(body), "num_bytes": len(body)})
        files = tuple(forged if file.name == ".metadata" else file for file in record.files)
        with pytest.raises(CorruptShard, match="index of a checkpoint"):
            load(store, alone(), record.model_copy(update={"files": files}), {"model/a": torch.zeros(2, 3)})
    assert not (tmp_path / "executed").exists()
