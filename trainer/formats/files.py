"""Files of weights, read without executing anything in them."""

import io
import math
import re
import warnings
import zipfile
from pathlib import PurePosixPath
from pickle import UnpicklingError
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from pipeline.base.errors import ConfigError

_NESTED = ("state_dict", "model")  # where training scripts put the weights beside the rest
# A choice: trained weights shrink by a tenth, kernels that are zero to nothing; the floor lets small files of those be.
_MOST_UNPACKED_RATIO, _MOST_UNPACKED_BYTES = 4, 256 << 20
_SHOWN_BYTES = 16  # at the beginning of a file that is none of the known ones


def read_weights(body: bytes, source: str) -> dict[str, Tensor]:
    """Return all arrays of numbers of an .npz, .safetensors or PyTorch file by key; what else it holds is ignored.

    Code in it is never run: arrays of objects in an .npz are passed over, PyTorch files are read as weights only.

    Raises:
        ConfigError: It is none of these, is damaged, or cannot be read without running code.
    """
    if source.endswith(".onnx"):
        raise ConfigError(
            f"{source} is ONNX: its kernels are standardised, and the raw ones cannot be had from them; import another "
            f"export of the same run"
        )
    try:
        loaded = _loaded(body)
    except Exception as error:  # a damaged file makes its reader fail in any way
        raise ConfigError(
            f"{source} is no file of plain weights (.npz, .safetensors, or a PyTorch file of tensors only): "
            f"{_problem(body, error)}"
        ) from error
    for name in _NESTED:
        if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
            loaded = loaded[name]
    if not isinstance(loaded, dict):
        raise ConfigError(f"{source} holds a {type(loaded).__name__}, not weights by name")
    return {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}


def _loaded(body: bytes) -> Any:
    _check_unpacked(body)
    if _is_npz(body):
        return _npz(body)
    if _is_safetensors(body):
        return safetensors.torch.load(body)
    with warnings.catch_warnings(action="ignore"):  # of how a foreign file was pickled
        return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)


class _TooLargeError(Exception):
    """The file claims to hold more than weights of its size can; the message says what."""


def _check_unpacked(body: bytes) -> None:
    """Refuse an archive that unpacks to far more than its size, before any of it is unpacked."""
    most_bytes = max(_MOST_UNPACKED_BYTES, _MOST_UNPACKED_RATIO * len(body))
    unpacked = sum(member.file_size for member in _members(body))
    if unpacked > most_bytes:
        raise _TooLargeError(f"its {len(body):,} bytes unpack to {unpacked:,}, and weights do not shrink so much")


def _members(body: bytes) -> list[zipfile.ZipInfo]:
    """Return what an archive holds; nothing of a file that is none."""
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as file:
            return file.infolist()
    except zipfile.BadZipFile:
        return []


def _is_npz(body: bytes) -> bool:
    members = _members(body)
    return bool(members) and all(PurePosixPath(member.filename).suffix == ".npy" for member in members)


def _is_safetensors(body: bytes) -> bool:
    """Return whether a file begins with the length of a JSON object, and with the object."""
    return body[8:9] == b"{" and int.from_bytes(body[:8], "little") < len(body)


def _npz(body: bytes) -> dict[str, Tensor]:
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(body)) as file:
        for name in file.namelist():
            with file.open(name) as member:
                if _holds_numbers(member, file.getinfo(name).file_size):
                    member.seek(0)
                    value = np.lib.format.read_array(member, allow_pickle=False)
                    # torch takes little-endian and writable arrays.
                    little = np.ascontiguousarray(value, value.dtype.newbyteorder("<")).reshape(value.shape)
                    arrays[name.removesuffix(".npy")] = torch.from_numpy(little)
    return arrays


def _holds_numbers(member: Any, num_bytes: int) -> bool:
    """Return whether an array holds plain numbers that torch takes; reads its header only.

    Raises:
        _TooLargeError: Its header claims more values than its bytes can be.
    """
    version = np.lib.format.read_magic(member)
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in headers:
        return False
    shape, _, dtype = headers[version](member)
    if math.prod(shape) * dtype.itemsize > num_bytes:
        raise _TooLargeError(f"an array claims the shape {shape} and has {num_bytes:,} bytes")
    return dtype.kind in "bif" and dtype.itemsize <= np.dtype("<f8").itemsize


def _problem(body: bytes, error: Exception) -> str:
    """Return why a file cannot be read, in our words: those of torch advise to run what it holds."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, UnpicklingError) else None
    if named:
        return f"it holds {named[1]}, which only running its code could make; save the dictionary of tensors alone"
    if isinstance(error, _TooLargeError):
        return str(error)
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    beginning = f"{len(body):,} bytes, beginning with {body[:_SHOWN_BYTES]!r}"
    return f"it is damaged, cut short or something else ({beginning}); fetch it again"
