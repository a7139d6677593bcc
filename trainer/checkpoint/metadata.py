"""The index of a checkpoint's files, read without executing anything in it.

torch.distributed.checkpoint stores it as a pickle, and a pickle can name any function to call. Only the classes that
such an index is made of may be named here; values that would be unpickled later are not among them.
"""

import pickle
from io import BufferedIOBase
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from pipeline.base.errors import CorruptShard

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
