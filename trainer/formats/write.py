"""Files of an export: the weights of a network, and what says what its classes and images are."""

import io
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from pipeline.base.errors import ConfigError
from pipeline.base.records import json_bytes
from trainer.formats.convert import from_ours
from trainer.formats.description import Description, timm_config, transformers_config, transformers_processor
from trainer.formats.layouts import LAYOUTS
from trainer.formats.onnx_file import write_onnx
from trainer.model.network import ResNetV2

Format = Literal["official", "timm", "big_transfer", "big_vision", "transformers", "onnx"]
# What the name of an export ends with; nothing where it is a folder.
SUFFIXES: dict[Format, tuple[str, ...]] = {
    "official": (".npz",),
    "timm": (".safetensors", ".pth", ""),
    "big_transfer": (".pth.tar",),
    "big_vision": (".npz",),
    "transformers": ("",),
    "onnx": (".onnx",),
}
_IN_FOLDERS = "model.safetensors"


def export_files(
    network: ResNetV2, file_format: Format, name: str, description: Description, *, any_size: bool = False
) -> dict[str, bytes]:
    """Return the files of an export by name.

    Args:
        network: What is exported.
        file_format: For whom.
        name: Of the file, or of the folder.
        description: With the resolution.
        any_size: Whether an ONNX file takes images of any height and width instead of the resolution's.

    Raises:
        ConfigError: The format cannot hold such a network, or the packages for ONNX are not installed.
    """
    if file_format == "onnx":
        with tempfile.TemporaryDirectory(prefix="onnx-") as folder:
            write_onnx(network, Path(folder) / name, description, any_size=any_size)
            return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    architecture, num_classes = network.architecture, network.head.fc.out_channels
    if architecture.norm != "group" or not architecture.standardized:
        raise ConfigError(f"{architecture.name} is no BiT network; only --format onnx can hold it")
    values = from_ours(network.state_dict(), LAYOUTS[file_format])
    if file_format == "transformers":
        return {
            f"{name}/{_IN_FOLDERS}": _body(values, _IN_FOLDERS),
            f"{name}/config.json": json_bytes(transformers_config(architecture, num_classes, description)),
            f"{name}/preprocessor_config.json": json_bytes(transformers_processor(description)),
        }
    config = json_bytes(timm_config(architecture, num_classes, description))
    if is_folder(name, file_format):
        return {f"{name}/{_IN_FOLDERS}": _body(values, _IN_FOLDERS), f"{name}/config.json": config}
    return {name: _body(values, name), f"{name}.json": config}


def _body(values: Mapping[str, Tensor], name: str) -> bytes:
    """Return the file of a state dictionary; its suffix says which kind."""
    if name.endswith(".safetensors"):
        return safetensors.torch.save(dict(values), {"format": "pt"})
    sink = io.BytesIO()
    if name.endswith(".npz"):
        np.savez(sink, **{key: value.numpy() for key, value in values.items()})  # type: ignore[arg-type]
    else:
        torch.save({"model": dict(values)} if name.endswith(".tar") else dict(values), sink)
    return sink.getvalue()


def is_folder(name: str, file_format: Format) -> bool:
    """Return whether an export of that name is a folder."""
    return "" in SUFFIXES[file_format] and not PurePosixPath(name).suffix


def check_name(name: str, file_format: Format) -> None:
    """Refuse a name that the readers of a format would not take.

    Raises:
        ConfigError: Names the suffixes that they do.
    """
    suffixes = SUFFIXES[file_format]
    if not is_folder(name, file_format) and not name.endswith(tuple(filter(None, suffixes))):
        wanted = " or ".join(suffix or "no suffix: it is a folder" for suffix in suffixes)
        raise ConfigError(f"{name}: a file in the format {file_format} ends with {wanted}")
