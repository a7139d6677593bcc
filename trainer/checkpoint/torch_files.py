"""Checkpoints in the files of torch.distributed.checkpoint, as version 0.1 wrote them: read only, nothing executed.

Their index is a pickle, and a pickle can name any function to call. Only the classes that such an index is made of may
be named here; values that would be unpickled later are not among them.
"""

import pickle
import tempfile
import warnings
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from pipeline.base.errors import CorruptShard, NotFound, ServiceError, StorageFull
from pipeline.dataset.schema import sha256_hex
from pipeline.store.base import Store
from trainer.checkpoint.record import CheckpointRecord
from trainer.step.ranks import World, gather

_DTYPES = {name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)}
_ALLOWED = {
    "torch": {"Size", *_DTYPES},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "WindowsPath"},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return what the pickle names, if an index may name it."""
        if name not in _ALLOWED.get(module, ()):
            raise CorruptShard(f"the index of a checkpoint names {module}.{name}, which no checkpoint of ours holds")
        return super().find_class(module, name)


def read_index(file: BufferedIOBase) -> Metadata:
    """Return the index of a checkpoint.

    Raises:
        CorruptShard: It is no index, or names anything but what an index is made of.
    """
    try:
        index = _Unpickler(file).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError, TypeError) as error:
        raise CorruptShard(f"the index of a checkpoint cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(index, Metadata):
        raise CorruptShard(f"the index of a checkpoint holds {type(index).__name__} instead of an index")
    for place in dict(index.storage_data or {}).values():
        if "/" in (name := str(getattr(place, "relative_path", "/"))):
            raise CorruptShard(f"the index of a checkpoint names {name!r}, which is no file beside it")
    return index


class SafeReader(FileSystemReader):
    """Reads the files of a checkpoint; executes nothing in them."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the index; see `read_index`."""
        with self.fs.create_stream(self._get_metadata_path(kwargs.get("rank")), "rb") as file:
            index = read_index(file)  # type: ignore[arg-type]
        if getattr(index, "storage_meta", None) is None:
            index.storage_meta = StorageMeta()
        index.storage_meta.load_id = self.load_id  # type: ignore[union-attr]
        return index


def load_torch_files(store: Store, world: World, record: CheckpointRecord, state: dict[str, Tensor]) -> None:
    """Fill tensors in place; every rank must call. All files are checked on all ranks before the first is touched.

    Raises:
        CorruptShard: A file is missing, or its content is not what the record says.
        StorageFull: There is no room on this machine for the files.
    """
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as staging, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        problems = [problem for problem in gather(world, _staged(store, record, Path(staging))) if problem]
        if problems:
            raise CorruptShard(problems[0])
        try:
            dcp_load(state, storage_reader=SafeReader(staging), no_dist=world.num_ranks == 1)
        except CheckpointException as error:  # not even an Exception
            rank, (cause, _) = next(iter(error.failures.items()))
            message = f"{type(cause).__name__}: {cause}".splitlines()[0]
            raise ServiceError(f"{store.url}/{record.folder} cannot be loaded (rank {rank}: {message})") from error


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
        try:
            (staging / file.name).write_bytes(body)
        except OSError as error:
            raise StorageFull(f"{staging.parent}: {error}; make room there, or name another with TMPDIR") from error
    try:
        with (staging / ".metadata").open("rb") as index:
            read_index(index)
    except (OSError, CorruptShard) as error:
        return str(error)
    return None
