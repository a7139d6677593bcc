"""Checkpoints on object storage: torch.distributed.checkpoint files, and a commit record that makes them exist.

Every rank writes its share to files below `checkpoints/STEP-ATTEMPT/`; when all are stored, rank 0 creates
`checkpoints/STEP.json`, which lists them with their digests. Without that record a checkpoint does not exist, so a
crash at any point leaves the one before it. The attempt in the name keeps a restarted run from mixing its files with
those of the run that died. Files can be loaded on any number of ranks.
"""

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from pipeline.base.errors import CorruptShard
from pipeline.dataset.schema import sha256_hex
from pipeline.store.base import Store
from trainer.checkpoint.record import FOLDER, CheckpointFile, CheckpointRecord
from trainer.step.ranks import World, broadcast, gather


def save(
    store: Store,
    world: World,
    state: dict[str, Tensor],
    *,
    step: int,
    attempt: str,
    stream: Mapping[str, Any],
    about: Mapping[str, Any],
) -> None:
    """Write a checkpoint; every rank must call. On return it is committed.

    Args:
        store: The run's store.
        world: This rank.
        state: Tensors by name, the same names on every rank.
        step: Optimizer steps done.
        attempt: Name of this start of the run, the same on every rank.
        stream: State of the data stream.
        about: Facts for whoever loads the weights.
    """
    folder = f"{FOLDER}/{step:09d}-{attempt}"
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as staging, _without_group_warning():
        writer = FileSystemWriter(staging, single_file_per_rank=True, sync_files=False)
        dcp_save(state, storage_writer=writer, no_dist=world.num_ranks == 1)
        files = [_upload(store, folder, path) for path in sorted(Path(staging).iterdir())]
    everyone = [file for part in gather(world, files) for file in part]
    if world.is_first:
        record = CheckpointRecord(
            step=step, folder=folder, files=tuple(everyone), stream=dict(stream), about=dict(about)
        )
        store.create(f"{FOLDER}/{step:09d}.json", record.to_json())
    broadcast(world, step)  # no rank goes on before the record is there


@contextmanager
def _without_group_warning() -> Iterator[None]:
    """Silence a warning of torch: a single process without a process group is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _upload(store: Store, folder: str, path: Path) -> CheckpointFile:
    body = path.read_bytes()
    store.create(f"{folder}/{path.name}", body)
    return CheckpointFile(name=path.name, num_bytes=len(body), sha256=sha256_hex(body))


def load(store: Store, world: World, record: CheckpointRecord, state: dict[str, Tensor]) -> None:
    """Fill the tensors of `state` in place from a checkpoint; every rank must call.

    Raises:
        CorruptShard: A file's content is not what the record says.
    """
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as staging, _without_group_warning():
        for file in record.files:
            body = store.read(f"{record.folder}/{file.name}")
            if sha256_hex(body) != file.sha256:
                raise CorruptShard(f"{store.url}/{record.folder}/{file.name}: digest differs from its commit record")
            (Path(staging) / file.name).write_bytes(body)
        dcp_load(state, storage_reader=FileSystemReader(staging), no_dist=world.num_ranks == 1)
