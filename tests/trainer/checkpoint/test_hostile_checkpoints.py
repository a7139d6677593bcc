"""Checkpoints that others wrote: no name leads out of its folder, no claim takes memory, and errors name the file."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from pipeline.base.errors import CorruptShard
from pipeline.dataset.schema import sha256_hex
from pipeline.store.url import open_store
from trainer.checkpoint.record import latest, record_key
from trainer.checkpoint.sharded import load, save
from trainer.step.ranks import alone


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save(open_store(str(folder)), alone(), {"a": torch.ones(4, 2)}, step=1, attempt="x", stream={}, about={})
    return folder


def forge(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the list of chunks, and its digest in the record."""
    record_path = folder / record_key(1)
    record = json.loads(record_path.read_text())
    path = folder / record["folder"] / "rank0.json"
    listed = json.loads(path.read_text())
    change(listed["chunks"][0])
    path.write_text(json.dumps(listed))
    for file in record["files"]:
        if file["name"] == "rank0.json":
            file["sha256"] = sha256_hex(path.read_bytes())
    record_path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    "values",
    [
        {"num_bytes": 1 << 50},
        {"shape": [4, 1 << 40], "num_bytes": 4 * (1 << 40) * 4},
        {"offset": -8},
        {"start": 3, "stop": 1},
        {"dtype": "load"},
        {"dtype": "__dict__"},
    ],
)
def test_chunks_that_do_not_fit_together_are_refused_by_name(saved: Path, tmp_path: Path, values: Any) -> None:
    shutil.copytree(saved, tmp_path / "run")
    forge(tmp_path / "run", lambda chunk: chunk.update(values))
    store = open_store(str(tmp_path / "run"))
    with pytest.raises(CorruptShard, match=r"rank0\.(json|chunks)|shape|lacks rows"):
        load(store, alone(), latest(store), {"a": torch.zeros(4, 2)})


def test_an_offset_beyond_the_file_takes_no_memory(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "run")
    forge(tmp_path / "run", lambda chunk: chunk.update(offset=1 << 50))
    store = open_store(str(tmp_path / "run"))
    with pytest.raises(CorruptShard, match=r"rank0\.chunks"):
        load(store, alone(), latest(store), {"a": torch.zeros(4, 2)})


@pytest.mark.parametrize("name", ["../../../secret", "/etc/hostname", "a/b", "a\\b"])
def test_a_record_names_no_file_elsewhere(saved: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(saved, tmp_path / "run")
    path = tmp_path / "run" / record_key(1)
    record = json.loads(path.read_text())
    record["files"][0]["name"] = name
    path.write_text(json.dumps(record))
    with pytest.raises(CorruptShard, match=rf"^{path} is damaged"):
        latest(open_store(str(tmp_path / "run")))


@pytest.mark.parametrize("folder", ["../other", "/etc"])
def test_a_record_names_no_folder_elsewhere(saved: Path, tmp_path: Path, folder: str) -> None:
    shutil.copytree(saved, tmp_path / "run")
    path = tmp_path / "run" / record_key(1)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"folder": folder}))
    store = open_store(str(tmp_path / "run"))
    with pytest.raises(CorruptShard, match="leads out of it"):
        load(store, alone(), latest(store), {"a": torch.zeros(4, 2)})


def test_an_index_of_torch_names_no_file_elsewhere(tmp_path: Path) -> None:
    from trainer.checkpoint.torch_files import read_index  # noqa: PLC0415

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer = FileSystemWriter(tmp_path, single_file_per_rank=True, sync_files=False)
        dcp_save({"a": torch.ones(2)}, storage_writer=writer, no_dist=True)
    body = (tmp_path / ".metadata").read_bytes()
    with (tmp_path / ".metadata").open("rb") as file:
        read_index(file)
    forged = body.replace(b"__0_0.distcp", b"../../secret")
    assert forged != body
    (tmp_path / ".metadata").write_bytes(forged)
    with (tmp_path / ".metadata").open("rb") as file, pytest.raises(CorruptShard, match="no file beside it"):
        read_index(file)
