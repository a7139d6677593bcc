"""Compiled steps: as the plain ones, in one graph for each size, with every kernel standardised once a step."""

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from tests.trainer.runs import batch_of
from trainer.model.build import new_model
from trainer.model.conv import Conv2d
from trainer.model.network import normalized
from trainer.step.losses import softmax_loss
from trainer.step.optimizer import MasterOptimizer
from trainer.step.step import train_step
from trainer.step.tensors import TensorBatch

NUM_STEPS = 3


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    torch.compiler.reset()  # torch compiles a function a few times in a process, then refuses


class Graphs:
    """A backend that runs graphs as they are, and counts them, their operations and their runs."""

    def __init__(self) -> None:
        self.graphs: list[GraphModule] = []
        self.runs: Counter[int] = Counter()

    def __call__(self, graph: GraphModule, inputs: list[Tensor]) -> object:
        number = len(self.graphs)
        self.graphs.append(graph)

        def run(*inputs: Tensor) -> object:
            self.runs[number] += 1
            return graph.forward(*inputs)

        return run

    def count(self, operation: str) -> list[int]:
        """Return how often an operation stands in each graph."""
        return [sum(operation in str(node.target) for node in graph.graph.nodes) for graph in self.graphs]


def batch_of_pixels(num_samples: int) -> TensorBatch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_samples, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return TensorBatch(images.contiguous(memory_format=torch.channels_last), batch_of(num_samples).targets_BK)


def steps(network: object = None, kernels: object = None, **options: bool) -> tuple[list[float], dict[str, Tensor]]:
    """Return gradient norms and the state after steps on five pictures, in micro-batches of two and three."""
    model = new_model("R14x0.5", 3, seed=1, **options).double().train()
    torch.nn.init.normal_(model.head.fc.weight, generator=torch.Generator().manual_seed(2))
    optimizer = MasterOptimizer(model, 0.9, 1e-4)
    if network:
        model.compile(backend=network, fullgraph=True, dynamic=False)  # a break in the graph is an error
    if kernels:
        optimizer.compile(backend=kernels, fullgraph=True, dynamic=False)
    batch = batch_of_pixels(5)
    results = [train_step(model, optimizer, batch, softmax_loss, 0.05, 3).result() for _ in range(NUM_STEPS)]
    return [result.gradient_norm for result in results], optimizer.state()


@pytest.mark.parametrize("recomputes", [False, True])
def test_compiled_steps_are_the_plain_ones(recomputes: bool) -> None:
    norms, state = steps(recomputes=recomputes)
    # All of compilation but the C++ compiler, which not every machine has.
    compiled_norms, compiled = steps("aot_eager", "aot_eager", recomputes=recomputes)
    assert compiled_norms == pytest.approx(norms, rel=1e-9)
    for name, value in state.items():
        assert torch.allclose(value, compiled[name], rtol=1e-8, atol=1e-11), name


def test_each_size_is_one_graph_and_every_kernel_is_standardised_in_one_region_once_a_step() -> None:
    network, kernels = Graphs(), Graphs()
    steps(network, kernels)
    num_kernels = sum(isinstance(module, Conv2d) for module in new_model("R14x0.5", 3, seed=1).modules())
    # Two sizes of micro-batches: one graph each, run once a step, in which nothing is standardised.
    assert network.runs == {0: NUM_STEPS, 1: NUM_STEPS}
    assert network.count("layer_norm") == [0, 0]
    # All kernels forth in one graph, all gradients back in another one, each run once a step.
    assert kernels.runs == {0: NUM_STEPS, 1: NUM_STEPS}
    assert kernels.count("layer_norm") == [num_kernels] * 2
    assert kernels.count("layer_norm_backward") == [0, num_kernels]


def test_pixels_are_normalised_in_the_graph_of_the_network_to_the_floats_of_plain_arithmetic() -> None:
    images = batch_of_pixels(5).images_BCHW
    assert torch.equal(normalized(images), images.float().div(127.5).sub(1.0))
    assert torch.equal(normalized(normalized(images)), normalized(images))
    network = Graphs()
    steps(network)
    divisions = [list(graph.graph.find_nodes(op="call_method", target="div_")) for graph in network.graphs]
    assert [[node.args[1] for node in nodes] for nodes in divisions] == [[127.5], [127.5]]
