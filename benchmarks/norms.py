"""GroupNorms of the network in bfloat16 on a CPU: torch's beside the same in float32, picture by picture.

Usage: python benchmarks/norms.py

Prints forward and backward seconds of both, the figures that trainer/model/cpu.py decides by.
"""

import json
import os

import torch
from convolutions import seconds
from side_by_side import environment
from torch import Tensor

from trainer.model import cpu
from trainer.model.group_norm import GroupNorm

# Pictures, channels, pixels: those of R50x1 at 224 px and 128 px.
_SHAPES = [
    *((16, channels, px) for channels, px in ((64, 56), (128, 56), (256, 56), (128, 28), (256, 28), (512, 28))),
    *((16, channels, px) for channels, px in ((256, 14), (512, 14), (1024, 14), (512, 7), (2048, 7))),
    *((count, channels, px) for count in (2, 16) for channels, px in ((64, 32), (256, 32), (128, 16), (256, 8))),
]  # fmt: skip


def both_passes(norm: GroupNorm, x: Tensor) -> float:
    """Return the time of forward and backward pass."""
    gradient = torch.randn_like(x)
    return seconds(lambda: torch.autograd.grad(norm(x), (x, *norm.parameters()), gradient))


def main() -> None:
    """Print the table."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    print(
        "| pictures x channels, px | channels of a group | torch's, ms | in float32, picture by picture, ms | ratio |"
    )
    print("| --- | --- | --- | --- | --- |")
    for count, channels, px in _SHAPES:
        x = torch.randn(count, channels, px, px, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        x.requires_grad_()
        norm = GroupNorm(channels)
        milliseconds, outputs = [], []
        for narrow in (0, channels):
            cpu._CHANNELS_OF_A_VECTOR = narrow
            outputs.append(norm(x).float())
            milliseconds.append(1e3 * both_passes(norm, x))
        assert (outputs[0] - outputs[1]).abs().max() < 0.1
        theirs, ours = milliseconds
        shape, group = f"{count} x {channels}, {px} px", channels // 32
        print(f"| {shape} | {group} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.2f} |")
    print(json.dumps(environment()))


if __name__ == "__main__":
    main()
