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
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from pipeline.base.errors import BitError, CorruptShard, NotFound, ServiceError, StorageFull
from pipeline.dataset.schema import sha256_hex
from pipeline.store.base import Store
from trainer.checkpoint.metadata import SafeReader, read_index
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
        try:
            dcp_save(state, storage_writer=writer, no_dist=world.num_ranks == 1)
        except CheckpointException as error:
            _, (cause, _) = next(iter(error.failures.items()))
            if isinstance(cause, OSError):
                raise StorageFull(_no_room(Path(staging), cause)) from error
            raise _cause_of(error, f"the checkpoint of step {step} cannot be written") from error
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

    All files are checked on all ranks before the first tensor is touched.

    Raises:
        CorruptShard: A file is missing, or its content is not what the record says.
    """
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as staging, _without_group_warning():
        problems = [problem for problem in gather(world, _staged(store, record, Path(staging))) if problem]
        if problems:
            raise CorruptShard(problems[0])
        try:
            dcp_load(state, storage_reader=SafeReader(staging), no_dist=world.num_ranks == 1)
        except CheckpointException as error:
            raise _cause_of(error, f"{store.url}/{record.folder} cannot be loaded") from error


def _staged(store: Store, record: CheckpointRecord, staging: Path) -> str | None:
    """Bring the files of a checkpoint here, and return what is wrong with them, or None."""
    for file in record.files:
        url = f"{store.url}/{record.folder}/{file.name}"
        try:
            body = store.read(f"{record.folder}/{file.name}")
        except NotFound:
            return f"{url} is missing"
        if sha256_hex(body) != file.sha256:
            return f"{url}: digest differs from its commit record"
        with _disk_errors(staging):
            (staging / file.name).write_bytes(body)
    return _index_problem(staging / ".metadata")


def _index_problem(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            read_index(file)
    except (OSError, CorruptShard) as error:
        return str(error)
    return None


@contextmanager
def _disk_errors(staging: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageFull(_no_room(staging, error)) from error


def _no_room(staging: Path, error: BaseException) -> str:
    return (
        f"a checkpoint cannot be written to {staging.parent} ({error}), where it lies while it is on its way; make "
        f"room there, or name another folder with TMPDIR"
    )


def _cause_of(error: CheckpointException, what: str) -> BitError:
    """Return what a rank failed with as an error of ours: torch's own is not even an Exception."""
    rank, (cause, _) = next(iter(error.failures.items()))
    if isinstance(cause, BitError):
        return cause
    message = f"{type(cause).__name__}: {cause}".splitlines()[0]
    return ServiceError(f"{what} (rank {rank}: {message})")
