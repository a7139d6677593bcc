"""What makes the network fast on CPUs, and only there: other ways to the same figures.

Axes: B batch, C channels, O out, I in, H height, W width.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.model.memory_format import memory_format_of

# On CPUs a convolution whose kernel is large against its output is faster as one product of matrices, because the
# kernel is then not brought into another order first: from so many (in x out) channels for each output position on
# (benchmarks/convolutions.py).
_CHANNEL_PAIRS_PER_POSITION = 1024
# In half precision torch's loops on CPUs fill their vectors with the channels of one group: with fewer than these, the
# way over float32 is up to four times as fast, with more it is slower (benchmarks/norms.py).
_CHANNELS_OF_A_VECTOR = 16


def wants_product(x_BCHW: Tensor, kernel_OIHW: Tensor, stride: int) -> bool:
    """Return whether `product_of_patches` is the faster convolution: on CPUs, with few output positions."""
    if x_BCHW.device.type != "cpu" or torch.compiler.is_exporting():  # an exported graph must fit any batch size
        return False
    num_positions = x_BCHW.shape[0] * math.ceil(x_BCHW.shape[2] / stride) * math.ceil(x_BCHW.shape[3] / stride)
    return kernel_OIHW.shape[0] * kernel_OIHW.shape[1] >= _CHANNEL_PAIRS_PER_POSITION * num_positions


def product_of_patches(x_BCHW: Tensor, kernel_OIHW: Tensor, stride: int) -> Tensor:
    """Convolve by one product of matrices: the patches under the kernel, and the kernel as rows."""
    if kernel_OIHW.shape[2] == 1:
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)[:, ::stride, ::stride]
        return F.linear(x_BHWC, _rows(kernel_OIHW)).permute(0, 3, 1, 2)
    out: Tensor = _ProductOfPatches.apply(x_BCHW, kernel_OIHW, stride)  # type: ignore[no-untyped-call]
    return out


class _ProductOfPatches(torch.autograd.Function):
    """Keeps its input for the backward pass; the patches, nine times as much, are put together again."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, kernel_OIHW: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x_BCHW, kernel_OIHW)
        ctx.stride = stride
        patches = torch.cat(_shifted(_padded(x_BCHW, kernel_OIHW), kernel_OIHW, stride), dim=3)
        return F.linear(patches, _rows(kernel_OIHW)).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BOHW: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_BCHW, kernel_OIHW = ctx.saved_tensors
        by_out = gradient_BOHW.permute(0, 2, 3, 1)
        by_x = by_kernel = None
        if ctx.needs_input_grad[0]:
            by_patches = by_out @ _rows(kernel_OIHW).to(by_out.dtype)
            by_padded = torch.zeros_like(_padded(x_BCHW, kernel_OIHW))
            places = _shifted(by_padded, kernel_OIHW, ctx.stride)
            for place, part in zip(places, torch.split(by_patches, x_BCHW.shape[1], dim=3), strict=True):
                place.add_(part)
            border = kernel_OIHW.shape[2] // 2
            by_x = by_padded[:, border:-border, border:-border].permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            patches = torch.cat(_shifted(_padded(x_BCHW, kernel_OIHW), kernel_OIHW, ctx.stride), dim=3)
            by_rows = by_out.flatten(0, 2).T @ patches.flatten(0, 2).to(by_out.dtype)
            out_channels, in_channels, size, _ = kernel_OIHW.shape
            by_kernel = by_rows.view(out_channels, size, size, in_channels).permute(0, 3, 1, 2).to(kernel_OIHW.dtype)
        return by_x, by_kernel, None


def _rows(kernel_OIHW: Tensor) -> Tensor:
    """Return one row for each output channel, shape (O, H * W * I)."""
    return kernel_OIHW.permute(0, 2, 3, 1).flatten(1)


def _padded(x_BCHW: Tensor, kernel_OIHW: Tensor) -> Tensor:
    """Return the input with a border of zeros, shape (B, H, W, C)."""
    return F.pad(x_BCHW.permute(0, 2, 3, 1), (0, 0, *(4 * [kernel_OIHW.shape[2] // 2])))


def _shifted(padded_BHWC: Tensor, kernel_OIHW: Tensor, stride: int) -> list[Tensor]:
    """Return, for each position of the kernel, what lies under it at all output positions: views."""
    border = kernel_OIHW.shape[2] - 1
    size = kernel_OIHW.shape[2]
    heights, widths = ([slice(i, i + px - border, stride) for i in range(size)] for px in padded_BHWC.shape[1:3])
    return [padded_BHWC[:, height, width] for height in heights for width in widths]


def wants_float32(x_BCHW: Tensor, num_groups: int) -> bool:
    """Return whether `group_norm_in_float32` is the faster normalisation: on CPUs, in half precision, narrow groups."""
    is_half = x_BCHW.dtype in (torch.float16, torch.bfloat16)
    return is_half and x_BCHW.device.type == "cpu" and x_BCHW.shape[1] < num_groups * _CHANNELS_OF_A_VECTOR


def group_norm_in_float32(x_BCHW: Tensor, scale_C: Tensor, bias_C: Tensor, num_groups: int, eps: float) -> Tensor:
    """Normalise groups of channels by way of float32; the output has the precision of the input."""
    out: Tensor = _GroupNormInFloat32.apply(x_BCHW, scale_C, bias_C, num_groups, eps)  # type: ignore[no-untyped-call]
    return out


class _GroupNormInFloat32(torch.autograd.Function):
    """Normalises picture by picture, so that what is float32 stays small, in the processor's cache."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, scale_C: Tensor, bias_C: Tensor, num_groups: int, eps: float) -> Tensor:
        x_BCHW = x_BCHW.contiguous(memory_format=memory_format_of(x_BCHW))
        out_BCHW = torch.empty_like(x_BCHW)
        means, rstds = [], []
        for x, out in zip(torch.split(x_BCHW, 1), torch.split(out_BCHW, 1), strict=True):
            normal, mean, rstd = torch.native_group_norm(_float32(x), scale_C, bias_C, *_sizes(x), num_groups, eps)
            out.copy_(normal)
            means.append(mean)
            rstds.append(rstd)
        ctx.save_for_backward(x_BCHW, scale_C, torch.cat(means), torch.cat(rstds))
        ctx.num_groups = num_groups
        return out_BCHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x_BCHW, scale_C, means, rstds = ctx.saved_tensors
        # The kernel reads both in the layout of the input.
        gradient_BCHW = gradient_BCHW.contiguous(memory_format=memory_format_of(x_BCHW))
        by_x, by_scale, by_bias = torch.empty_like(x_BCHW), torch.zeros_like(scale_C), torch.zeros_like(scale_C)
        pictures = (torch.split(each, 1) for each in (gradient_BCHW, x_BCHW, means, rstds, by_x))
        for gradient, x, mean, rstd, place in zip(*pictures, strict=True):
            for_x, for_scale, for_bias = torch.ops.aten.native_group_norm_backward(
                _float32(gradient), _float32(x), mean, rstd, scale_C, *_sizes(x), ctx.num_groups, [True, True, True]
            )
            place.copy_(for_x)
            by_scale += for_scale
            by_bias += for_bias
        return by_x, by_scale, by_bias, None, None


def _float32(x_BCHW: Tensor) -> Tensor:
    """Return the values in float32, with the strides that their order has by the book: kernels guess it from them."""
    return torch.empty(x_BCHW.shape, memory_format=memory_format_of(x_BCHW)).copy_(x_BCHW)


def _sizes(x_BCHW: Tensor) -> tuple[int, int, int]:
    """Return the numbers of pictures, channels and positions."""
    count, channels, height, width = x_BCHW.shape
    return count, channels, height * width
