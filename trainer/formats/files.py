"""Files of weights: read without executing anything in them, written without replacing anything."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import PurePosixPath
from pickle import UnpicklingError
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pipeline.base.errors import ConfigError
from pipeline.base.records import json_bytes
from trainer.model.architecture import Architecture

Format = Literal["official", "timm", "big_transfer", "big_vision", "transformers", "onnx"]
# The first suffix is what a new file must have.
SUFFIXES: dict[Format, tuple[str, ...]] = {
    "official": (".npz",),
    "timm": (".safetensors", ".pth"),
    "big_transfer": (".pth.tar",),
    "big_vision": (".npz",),
    "transformers": ("",),
    "onnx": (".onnx",),
}
_NESTED = ("state_dict", "model")  # where training scripts put the weights beside the rest


def read_weights(body: bytes, source: str) -> dict[str, Tensor]:
    """Return all arrays of an .npz, .safetensors or PyTorch file by key.

    Pickled code is never run: npz without objects, PyTorch files as weights only.

    Raises:
        ConfigError: It is none of these, is damaged, or holds something else than arrays.
    """
    try:
        if _is_npz(body):
            with np.load(io.BytesIO(body), allow_pickle=False) as file:
                return {key: torch.from_numpy(_array(file[key])) for key in file.files}
        if source.endswith(".safetensors"):
            return dict(safetensors.torch.load(body))
        loaded: Any = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except (ValueError, OSError, EOFError, RuntimeError, UnpicklingError, zipfile.BadZipFile, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{source} is no file of plain weights (.npz, .safetensors, or a PyTorch file of tensors only): {reason}"
        ) from error
    for name in _NESTED:
        if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
            loaded = loaded[name]
    if not isinstance(loaded, dict):
        raise ConfigError(f"{source} holds a {type(loaded).__name__}, not weights by name")
    return {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}


def _is_npz(body: bytes) -> bool:
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as file:
            return all(PurePosixPath(name).suffix == ".npy" for name in file.namelist())
    except zipfile.BadZipFile:
        return False


def _array(value: Any) -> Any:
    """Return an array that torch takes: little-endian and writable."""
    return np.ascontiguousarray(value, value.dtype.newbyteorder("<"))


def files_of(
    values: Mapping[str, Tensor], file_format: Format, name: str, architecture: Architecture
) -> dict[str, bytes]:
    """Return the files of an export by name.

    Args:
        values: In the layout of the format.
        file_format: Any but onnx.
        name: Of the file; for `transformers` that of its folder.
        architecture: Of the weights.
    """
    if file_format in ("official", "big_vision"):
        sink = io.BytesIO()
        np.savez(sink, **{key: value.numpy() for key, value in values.items()})  # type: ignore[arg-type]
        return {name: sink.getvalue()}
    if file_format == "transformers":
        num_classes = len(values["classifier.1.bias"])
        return {
            f"{name}/model.safetensors": safetensors.torch.save(dict(values), {"format": "pt"}),
            f"{name}/config.json": json_bytes(_transformers_config(architecture, num_classes)),
            f"{name}/preprocessor_config.json": json_bytes(_TRANSFORMERS_PICTURES),
        }
    if name.endswith(".safetensors"):
        return {name: safetensors.torch.save(dict(values), {"format": "pt"})}
    sink = io.BytesIO()
    torch.save({"model": dict(values)} if file_format == "big_transfer" else dict(values), sink)
    return {name: sink.getvalue()}


def check_suffix(name: str, file_format: Format) -> None:
    """Refuse a name that the readers of a format would not take.

    Raises:
        ConfigError: Names the suffixes that they do.
    """
    suffixes = SUFFIXES[file_format]
    if not name.endswith(suffixes) or (file_format == "transformers" and PurePosixPath(name).suffix):
        wanted = " or ".join(suffix or "no suffix: it is a folder" for suffix in suffixes)
        raise ConfigError(f"{name}: a file in the format {file_format} ends with {wanted}")


def _transformers_config(architecture: Architecture, num_classes: int) -> dict[str, Any]:
    return {
        "architectures": ["BitForImageClassification"],
        "model_type": "bit",
        "depths": list(architecture.units),
        "embedding_size": architecture.stem_channels,
        "hidden_sizes": [architecture.num_features // 2**power for power in (3, 2, 1, 0)],
        "num_channels": 3,
        "num_groups": 32,
        "layer_type": "preactivation",
        "hidden_act": "relu",
        "global_padding": None,
        "output_stride": 32,
        "id2label": {str(label): str(label) for label in range(num_classes)},
        "label2id": {str(label): label for label in range(num_classes)},
        "torch_dtype": "float32",
    }


_TRANSFORMERS_PICTURES = {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
