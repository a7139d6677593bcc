"""A stand-in for an embedding, which needs no weights."""

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def pixel_model(folder: Path, nearness: str) -> str:
    """Write a model whose vectors are pixels of a picture at 10x10, and of its parts; return the path of its TOML file.

    Args:
        folder: Receives the model.
        nearness: Lines of the table `nearness`.
    """
    nodes = [
        helper.make_node("AveragePool", ["x"], ["p"], kernel_shape=[22, 22], strides=[22, 22]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 3, 224, 224]), ("y", [1, 300]))
    ]
    graph = helper.make_graph(nodes, "pixels", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "pixels.onnx")
    (folder / "model.toml").write_text(f'model = "pixels.onnx"\ncrops = true\n[nearness]\n{nearness}\n')
    return str(folder / "model.toml")
