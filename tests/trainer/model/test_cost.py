"""What `trainer describe` prints is what the network has: parameters, multiply-accumulates, memory of a step."""

import subprocess
import sys

import pytest
import torch

from tests.conftest import run_cli
from trainer.model.architecture import PAPER_MODELS, parse_architecture
from trainer.model.cost import largest_batch, layers, step_memory
from trainer.model.network import ResNetV2

# GMAC of convolutions and head with 1,000 classes, at 32, 128, 224 and 480 px [spec bit 1.5].
GIGA_MACS = {
    "R50x1": (0.085, 1.337, 4.089, 18.77),
    "R50x3": (0.742, 11.79, 36.08, 165.7),
    "R101x1": (0.161, 2.549, 7.801, 35.82),
    "R101x3": (1.424, 22.70, 69.49, 319.1),
    "R152x2": (0.939, 14.96, 45.81, 210.4),
    "R152x4": (3.738, 59.69, 182.78, 839.3),
}
STEP = """
import sys, torch
from pathlib import Path
from trainer.step.tensors import TensorBatch
from trainer.model.build import new_model
from trainer.step.step import train_step
from trainer.step.losses import softmax_loss
from trainer.step.optimizer import MasterOptimizer

def resident(kind):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind))

def steps(name, px, batch, precision, recomputes):
    model = new_model(name, 1000, 0, recomputes=recomputes).train()
    optimizer = MasterOptimizer(model, 0.9, 1e-4)
    images = torch.randn(2 * batch, 3, px, px).to(memory_format=torch.channels_last)
    both = TensorBatch(images, torch.zeros(2 * batch, 1000))
    train_step(model, optimizer, both, softmax_loss, 0.01, batch, precision=precision)

torch.set_num_threads(1)
name, px, batch, precision, recomputes = sys.argv[1:]
steps("R14x0.5", 32, 1, precision, False)  # libraries are loaded
before = resident("VmRSS")
steps(name, int(px), int(batch), precision, recomputes == "True")
print(resident("VmHWM") - before)
"""


@pytest.mark.parametrize("name", PAPER_MODELS)
def test_macs_are_the_papers(name: str) -> None:
    architecture = parse_architecture(name)
    for px, expected in zip((32, 128, 224, 480), GIGA_MACS[name], strict=True):
        found = sum(layer.num_macs for layer in layers(architecture, 1000, px)) / 1e9
        assert found == pytest.approx(expected, rel=6e-3 if expected < 1 else 6e-4)


@pytest.mark.parametrize("name", [*PAPER_MODELS, "R26x1", "R14x0.5", "R50x1-BN"])
def test_layers_are_those_of_the_network(name: str) -> None:
    architecture = parse_architecture(name)
    with torch.device("meta"):
        model = ResNetV2(architecture, 21_843)
    counts: dict[str, int] = {}
    for parameter, value in model.named_parameters():
        module = parameter.rpartition(".")[0]
        counts[module] = counts.get(module, 0) + value.numel()
    assert counts == {layer.name: layer.num_parameters for layer in layers(architecture, 21_843, 224)}


@pytest.mark.parametrize(
    ("name", "px", "batch", "half", "recomputes"),
    [("R26x1", 128, 12, False, False), ("R14x0.5", 192, 16, True, False), ("R50x0.5", 160, 24, False, True)],
)
def test_memory_of_a_step_is_what_is_measured(name: str, px: int, batch: int, half: bool, recomputes: bool) -> None:
    precision = "bfloat16" if half else "float32"
    done = subprocess.run(
        [sys.executable, "-c", STEP, name, str(px), str(batch), precision, str(recomputes)],
        # Freed blocks go back to the system, so that what is resident is what is used.
        env={"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    estimated = step_memory(layers(parse_architecture(name), 1000, px), batch, half=half, recomputes=recomputes).total
    assert estimated == pytest.approx(int(done.stdout), rel=0.15)


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    found = layers(parse_architecture("R101x3"), 1000, 224)
    for options in ({}, {"half": True}, {"recomputes": True, "num_shards": 8}):
        most = largest_batch(found, 40 * 10**9, **options)
        assert step_memory(found, most, **options).total <= 40 * 10**9 < step_memory(found, most + 1, **options).total
    assert largest_batch(found, 10**9) == 0
    assert 3 * step_memory(found, 1, num_moments=2).weights == 4 * step_memory(found, 1).weights


def test_describe_tells_the_parameters_of_the_largest_model() -> None:
    done = run_cli("trainer", "describe", "R152x4", "--batch", "4", "--gpu-memory", "80GB")
    assert "936,533,224 parameters (928,340,224 without the head), 182.78 GMAC" in done.stdout
    wrong = run_cli("trainer", "describe", "R152x4", "--gpu-memory", "eighty")
    assert (wrong.returncode, "write a number and a unit" in wrong.stderr) == (2, True)
