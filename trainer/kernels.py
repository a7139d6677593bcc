"""Convolutions and their weight standardisation. Axes: O out, I in, H and W height and width.

Standardised are the kernels of every convolution but the head: per output channel, over in, height and width.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WS_EPS = 1e-10  # inside the root [released code]; below fp16's smallest number, so statistics are in fp32
# On CPUs a convolution whose kernel is large against its output is faster as one product of matrices, because the
# kernel is then not brought into another order first: from so many (in x out) channels for each output position on
# (benchmarks/convolutions.py).
_CHANNEL_PAIRS_PER_POSITION = 1024


def kernel_rows(weight_OIHW: Tensor) -> Tensor:
    """Gives one row for each output channel, shape (O, H * W * I) or (O, I * H * W), without copying the kernel."""
    if weight_OIHW.is_contiguous(memory_format=torch.channels_last):
        return weight_OIHW.permute(0, 2, 3, 1).flatten(1)
    return weight_OIHW.flatten(1)


def kernel_of_rows(rows: Tensor, like_OIHW: Tensor) -> Tensor:
    """Gives the kernel whose `kernel_rows` are `rows`, in the layout of `like_OIHW`."""
    out_channels, in_channels, height, width = like_OIHW.shape
    if like_OIHW.is_contiguous(memory_format=torch.channels_last):
        return rows.view(out_channels, height, width, in_channels).permute(0, 3, 1, 2)
    return rows.view(out_channels, in_channels, height, width)


def standardize(weight_OIHW: Tensor) -> Tensor:
    """Gives the kernel with zero mean and unit variance per output channel (biased variance, eps 1e-10).

    That is layer normalisation of its rows, for which torch has one fused kernel each way. Kernels of half precision
    are standardised in float32 and come back so.
    """
    weight = weight_OIHW.float() if weight_OIHW.dtype in (torch.float16, torch.bfloat16) else weight_OIHW
    rows = kernel_rows(weight)
    return kernel_of_rows(F.layer_norm(rows, rows.shape[1:], eps=_WS_EPS), weight)


@dataclass(frozen=True)
class RowStatistics:
    """What the backward pass of a standardisation needs: mean and 1 / deviation of each row, shape (O, 1)."""

    mean: Tensor
    rstd: Tensor


def standardize_into(target_OIHW: Tensor, weight_OIHW: Tensor) -> RowStatistics:
    """Writes the standardised kernel into `target_OIHW`, of the same shape, dtype and layout; takes no gradient."""
    rows = kernel_rows(weight_OIHW)
    mean, rstd = rows.new_empty(len(rows), 1), rows.new_empty(len(rows), 1)
    torch.ops.aten.native_layer_norm.out(
        rows, rows.shape[1:], None, None, _WS_EPS, out0=kernel_rows(target_OIHW), out1=mean, out2=rstd
    )
    return RowStatistics(mean, rstd)


def standardize_gradient(gradient_OIHW: Tensor, weight_OIHW: Tensor, statistics: RowStatistics) -> Tensor:
    """Gives the gradient by the raw kernel from that by the standardised one; linear in the gradient."""
    rows = kernel_rows(weight_OIHW)
    gradient = gradient_OIHW.to(weight_OIHW.dtype).contiguous(memory_format=_layout(weight_OIHW))
    by_rows, _, _ = torch.ops.aten.native_layer_norm_backward(
        kernel_rows(gradient), rows, rows.shape[1:], statistics.mean, statistics.rstd, None, None, [True, False, False]
    )
    return kernel_of_rows(by_rows, weight_OIHW)


def _layout(weight_OIHW: Tensor) -> torch.memory_format:
    is_last = weight_OIHW.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


class Conv2d(nn.Conv2d):
    """A convolution without bias, weight-standardised or plain, padded so that stride 1 keeps the size.

    Attributes:
        standardized: Whether the kernel is standardised.
        weight_is_raw: Whether that happens on use. An optimizer that owns the raw kernel puts the standardised one into
            `weight` (trainer.optimizer).
        cast: The kernel in a lower precision, while `cast_kernels` lasts.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_px: int, stride: int = 1, *, standardized: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_px, stride, padding=kernel_px // 2, bias=False)
        self.standardized = standardized
        self.weight_is_raw = True
        self.cast: Tensor | None = None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Convolves with the standardised or plain kernel."""
        kernel = self.weight if self.cast is None else self.cast
        kernel = standardize(kernel) if self.standardized and self.weight_is_raw else kernel
        stride = self.stride[0]
        out_px = math.ceil(x_BCHW.shape[2] / stride) * math.ceil(x_BCHW.shape[3] / stride)
        num_pairs = self.in_channels * self.out_channels
        is_fixed = not torch.compiler.is_exporting()  # else the exported graph would hold for one batch size only
        if (
            is_fixed
            and x_BCHW.device.type == "cpu"
            and num_pairs >= _CHANNEL_PAIRS_PER_POSITION * x_BCHW.shape[0] * out_px
        ):
            return product_of_patches(x_BCHW, kernel, stride)
        return F.conv2d(x_BCHW, kernel, None, self.stride, self.padding)


def product_of_patches(x_BCHW: Tensor, kernel_OIHW: Tensor, stride: int) -> Tensor:
    """Convolves by one product of matrices: the patches under the kernel, and the kernel as rows."""
    size = kernel_OIHW.shape[2]
    out_height, out_width = (math.ceil(px / stride) for px in x_BCHW.shape[2:])
    x_BHWC = x_BCHW.permute(0, 2, 3, 1)
    if size > 1:
        x_BHWC = F.pad(x_BHWC, (0, 0, *(4 * [size // 2])))
    heights, widths = ([slice(i, i + stride * (out - 1) + 1, stride) for i in range(size)]
                       for out in (out_height, out_width))  # fmt: skip
    patches = [x_BHWC[:, height, width] for height in heights for width in widths]
    rows = kernel_OIHW.permute(0, 2, 3, 1).flatten(1)
    return F.linear(torch.cat(patches, dim=3) if size > 1 else patches[0], rows).permute(0, 3, 1, 2)


@contextmanager
def cast_kernels(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Casts the kernels that convolutions use as they are once, for all forward and backward passes inside.

    Autocast would cast them in every forward pass; its own cache does not reach the rows of a kernel.
    """
    convs = [module for module in model.modules() if isinstance(module, Conv2d)]
    convs = [conv for conv in convs if not (conv.standardized and conv.weight_is_raw)]
    for conv in convs:
        conv.cast = conv.weight.to(dtype)
    try:
        yield
    finally:
        for conv in convs:
            conv.cast = None
