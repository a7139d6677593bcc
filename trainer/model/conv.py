"""Convolutions and their weight standardisation. Axes: O out, I in, H and W height and width.

Standardised are the kernels of every convolution but the head: per output channel, over in, height and width.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.cpu import product_of_patches, wants_product
from trainer.model.memory_format import memory_format_of

_WS_EPS = 1e-10  # inside the root [released code]; below fp16's smallest number, so statistics are in fp32


def kernel_rows(weight_OIHW: Tensor) -> Tensor:
    """Return one row for each output channel, shape (O, H * W * I) or (O, I * H * W), without copying the kernel."""
    if weight_OIHW.is_contiguous(memory_format=torch.channels_last):
        return weight_OIHW.permute(0, 2, 3, 1).flatten(1)
    return weight_OIHW.flatten(1)


def kernel_of_rows(rows: Tensor, like_OIHW: Tensor) -> Tensor:
    """Return the kernel whose `kernel_rows` are `rows`, in the layout of `like_OIHW`."""
    out_channels, in_channels, height, width = like_OIHW.shape
    if like_OIHW.is_contiguous(memory_format=torch.channels_last):
        return rows.view(out_channels, height, width, in_channels).permute(0, 3, 1, 2)
    return rows.view(out_channels, in_channels, height, width)


def standardize(weight_OIHW: Tensor) -> Tensor:
    """Return the kernel with zero mean and unit variance per output channel (biased variance, eps 1e-10).

    That is layer normalisation of its rows, for which torch has one fused kernel each way. Kernels of half precision
    are standardised in float32 and come back so.
    """
    weight = weight_OIHW.float() if weight_OIHW.dtype in (torch.float16, torch.bfloat16) else weight_OIHW
    rows = kernel_rows(weight)
    return kernel_of_rows(F.layer_norm(rows, rows.shape[1:], eps=_WS_EPS), weight)


class RowStatistics(NamedTuple):
    """What the backward pass of a standardisation needs: mean and 1 / deviation of each row, shape (O, 1)."""

    mean: Tensor
    rstd: Tensor


@torch.no_grad()
def standardize_once(weight_OIHW: Tensor) -> tuple[Tensor, RowStatistics]:
    """Return the standardised kernel, without gradient, and what `standardize_gradient` needs."""
    rows = kernel_rows(weight_OIHW)
    kernel, mean, rstd = torch.native_layer_norm(rows, rows.shape[1:], None, None, _WS_EPS)
    return kernel_of_rows(kernel, weight_OIHW), RowStatistics(mean, rstd)


@torch.no_grad()
def standardize_all(weights_OIHW: list[Tensor], dtype: torch.dtype | None = None) -> list[tuple[Tensor, RowStatistics]]:
    """Return what `standardize_once` does of each kernel, the kernels in this dtype; None for that of the weights."""
    found = []
    for weight in weights_OIHW:
        kernel, statistics = standardize_once(weight)
        found.append((kernel.to(dtype or kernel.dtype), statistics))
    return found


@torch.no_grad()
def standardize_gradients(
    gradients_OIHW: list[Tensor], weights_OIHW: list[Tensor], statistics: list[RowStatistics]
) -> None:
    """Put what `standardize_gradient` makes of each gradient in its place, so that few of both are there at a time."""
    for place, (weight, of_weight) in enumerate(zip(weights_OIHW, statistics, strict=True)):
        gradients_OIHW[place] = standardize_gradient(gradients_OIHW[place], weight, of_weight)


@torch.no_grad()
def standardize_gradient(gradient_OIHW: Tensor, weight_OIHW: Tensor, statistics: RowStatistics) -> Tensor:
    """Return the gradient by the raw kernel from that by the standardised one; linear in it, and itself without one."""
    rows = kernel_rows(weight_OIHW)
    gradient = gradient_OIHW.to(weight_OIHW.dtype).contiguous(memory_format=memory_format_of(weight_OIHW))
    by_rows, _, _ = torch.ops.aten.native_layer_norm_backward(
        kernel_rows(gradient), rows, rows.shape[1:], statistics.mean, statistics.rstd, None, None, [True, False, False]
    )
    return kernel_of_rows(by_rows, weight_OIHW)


class _InPlaceOf(torch.autograd.Function):
    """A kernel that takes the place of a weight: whatever gradient it is given goes to the weight as it is."""

    @staticmethod
    def forward(ctx: Any, weight_OIHW: Tensor, kernel_OIHW: Tensor) -> Tensor:
        ctx.dtype = weight_OIHW.dtype
        return kernel_OIHW.view_as(kernel_OIHW)

    @staticmethod
    def backward(ctx: Any, gradient_OIHW: Tensor) -> tuple[Tensor, None]:
        return gradient_OIHW.to(ctx.dtype), None


class Conv2d(nn.Conv2d):
    """A convolution without bias, weight-standardised or plain, padded so that stride 1 keeps the size.

    Attributes:
        standardized: Whether the kernel is standardised.
        weight_is_raw: Whether that happens on use; not while `weight` itself holds the standardised kernel.
        kernel: What takes the place of the weight, ready for use, while a step lasts (trainer.step.optimizer).
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_px: int, stride: int = 1, *, standardized: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_px, stride, padding=kernel_px // 2, bias=False)
        self.standardized = standardized
        self.weight_is_raw = True
        self.kernel: Tensor | None = None

    def use(self, kernel_OIHW: Tensor) -> None:
        """Convolve with this kernel from now on; its gradients are added up in the weight's, in the weight's dtype."""
        self.kernel = _InPlaceOf.apply(self.weight, kernel_OIHW)  # type: ignore[no-untyped-call]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Convolve with the standardised or plain kernel."""
        kernel = self.kernel
        if kernel is None:
            kernel = standardize(self.weight) if self.standardized and self.weight_is_raw else self.weight
        if wants_product(x_BCHW, kernel, self.stride[0]):
            return product_of_patches(x_BCHW, kernel, self.stride[0])
        return F.conv2d(x_BCHW, kernel, None, self.stride, self.padding)
