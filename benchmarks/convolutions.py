"""Convolutions of the network beside the same as one product of matrices: where the product is faster.

Usage: python benchmarks/convolutions.py

Prints forward and backward seconds of both, sorted by the pairs of channels for each output position, the figure that
trainer/model/cpu.py decides by.
"""

import json
import math
import os
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from side_by_side import environment
from torch import Tensor

from trainer.model.cpu import product_of_patches

_ROUNDS = 9
# Pictures; in and out channels, kernel, stride, input pixels.
_SHAPES = [
    (count, *shape)
    for count in (2, 4, 16)
    for shape in (
        (64, 256, 1, 1, 32), (256, 128, 1, 1, 32), (512, 256, 1, 1, 16), (256, 1024, 1, 1, 8), (1024, 256, 1, 1, 8),
        (1024, 512, 1, 1, 8), (512, 2048, 1, 1, 4), (1024, 2048, 1, 2, 8), (2048, 512, 1, 1, 4), (128, 128, 3, 1, 16),
        (256, 256, 3, 1, 8), (256, 256, 3, 2, 16), (512, 512, 3, 2, 8), (512, 512, 3, 1, 4),
    )
] + [(1, 1024, 1024, 3, 1, 8), (1, 2048, 2048, 3, 1, 4)]  # fmt: skip


def seconds(run: Callable[[], object]) -> float:
    """Return the median time of a call."""
    run()
    found = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    return median(found)


def both_passes(convolve: Callable[..., Tensor], x: Tensor, kernel: Tensor, stride: int) -> float:
    """Return the time of forward and backward pass."""
    gradient = torch.randn_like(convolve(x, kernel, stride))
    return seconds(lambda: torch.autograd.grad(convolve(x, kernel, stride), (x, kernel), gradient))


def convolution(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """Convolve as torch does."""
    return F.conv2d(x, kernel, None, stride, kernel.shape[2] // 2)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rows = []
    for precision in (torch.float32, torch.bfloat16):
        for count, in_channels, out_channels, size, stride, px in _SHAPES:
            x = torch.randn(count, in_channels, px, px, dtype=precision)
            kernel = torch.randn(out_channels, in_channels, size, size, dtype=precision)
            x, kernel = (each.to(memory_format=torch.channels_last).requires_grad_() for each in (x, kernel))
            out = convolution(x, kernel, stride)
            error = (out - product_of_patches(x, kernel, stride)).abs().max() / out.std()
            assert error < (0.1 if precision == torch.bfloat16 else 1e-4), error
            one, other = (both_passes(way, x, kernel, stride) for way in (convolution, product_of_patches))
            pairs = in_channels * out_channels / (count * math.ceil(px / stride) ** 2)
            shape = f"{count} x {in_channels} -> {out_channels}, {size}x{size}, stride {stride}, {px} px"
            rows.append((pairs, f"{precision}".removeprefix("torch."), shape, one, other))
    print("| pairs of channels a position | precision | shape | convolution, ms | product, ms | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for pairs, precision, shape, one, other in sorted(rows):
        print(f"| {pairs:,.0f} | {precision} | {shape} | {1e3 * one:.2f} | {1e3 * other:.2f} | {one / other:.2f} |")
    print(json.dumps(environment()))


if __name__ == "__main__":
    main()
