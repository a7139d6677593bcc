"""ONNX: the network with its kernels standardised, for any batch size."""

from pathlib import Path

import torch

from pipeline.base.errors import ConfigError
from trainer.model.conv import Conv2d, standardize
from trainer.model.network import ResNetV2


def write_onnx(network: ResNetV2, path: Path, resolution_px: int) -> None:
    """Write the network: input `images` (batch, 3, resolution, resolution), float32 in [-1, 1]; output `logits`.

    Weights of more than 2 GB go into a second file beside the first.

    Raises:
        ConfigError: The packages for it are not installed.
    """
    try:
        import onnxscript  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        raise ConfigError("ONNX files need more packages: pip install 'bit-pretrain[onnx]'") from error
    images = torch.zeros(2, 3, resolution_px, resolution_px)
    convs = [module for module in network.modules() if isinstance(module, Conv2d) and module.standardized]
    raw = [conv.weight.detach().clone() for conv in convs]
    for conv in convs:
        conv.weight.data.copy_(standardize(conv.weight.detach()))
        conv.weight_is_raw = False
    try:
        torch.onnx.export(
            network,
            (images,),
            str(path),
            dynamo=True,
            external_data=sum(value.nbytes for value in network.state_dict().values()) > 2**31 - 2**20,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    finally:
        for conv, weight in zip(convs, raw, strict=True):
            conv.weight.data.copy_(weight)
            conv.weight_is_raw = True
