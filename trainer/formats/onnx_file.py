"""ONNX: the network with its kernels standardised, for any batch size."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch

from pipeline.base.errors import ConfigError
from trainer.formats.description import Description
from trainer.model.conv import Conv2d, standardize
from trainer.model.network import ResNetV2

_MOST_IN_ONE_FILE = 2**31 - 2**20  # bytes: a protocol buffer has no more than 2 GiB, and the graph wants some


def write_onnx(network: ResNetV2, path: Path, description: Description, *, any_size: bool = False) -> None:
    """Write the network: input `images` (batch, 3, height, width), float32 in [-1, 1]; output `logits`.

    The metadata names the model, the classes by label, and the resolution. Weights of more than 2 GB go into a second
    file beside the first.

    Args:
        network: In evaluation mode.
        path: Of the new file.
        description: With the resolution.
        any_size: Whether height and width are left open, instead of being the resolution.

    Raises:
        ConfigError: The packages for it are not installed.
    """
    try:
        import onnxscript  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(
            "ONNX files need the packages onnx and onnxscript; run `pip install -e '.[onnx]'` in a clone of the "
            "repository"
        ) from error
    dim, side = torch.export.Dim, description.resolution_px or 0
    open_axes = {0: dim("batch")} | ({2: dim("height"), 3: dim("width")} if any_size else {})
    num_bytes = sum(value.nbytes for value in network.state_dict().values())
    with _standardized(network), _without_foreign_warnings():
        exported = torch.onnx.export(
            network,
            (torch.zeros(2, 3, side, side + 32 if any_size else side),),  # axes that are equal would stay equal
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=(open_axes,),
            verbose=False,
        )
        program = cast("torch.onnx.ONNXProgram", exported)  # None comes without `dynamo` only
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # names and paths of the sources on this machine
        program.model.metadata_props.update(
            {
                "model": network.architecture.name,
                "classes": json.dumps(description.classes),
                "resolution_px": json.dumps(description.resolution_px),
                "input": "RGB, (batch, 3, height, width), float32 in [-1, 1]: pixel / 127.5 - 1",
            }
        )
        program.save(path, external_data=num_bytes > _MOST_IN_ONE_FILE)  # still shares the memory of the kernels


@contextmanager
def _standardized(network: ResNetV2) -> Iterator[None]:
    """Let the weights of convolutions be their standardised kernels for a while."""
    convs = [module for module in network.modules() if isinstance(module, Conv2d) and module.standardized]
    raw = [conv.weight.detach().clone() for conv in convs]
    for conv in convs:
        conv.weight.data.copy_(standardize(conv.weight.detach()))
        conv.weight_is_raw = False
    try:
        yield
    finally:
        for conv, weight in zip(convs, raw, strict=True):
            conv.weight.data.copy_(weight)
            conv.weight_is_raw = True


@contextmanager
def _without_foreign_warnings() -> Iterator[None]:
    """Keep torch from speaking of torchvision, whose operators no network of ours has, and of its own old names."""

    def is_of_interest(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("torchvision is not installed")

    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    logger.addFilter(is_of_interest)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        logger.removeFilter(is_of_interest)
