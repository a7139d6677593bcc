"""The GroupNorm of BiT. Axes: B batch, C channels, H height, W width."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainer.model.architecture import NUM_GROUPS
from trainer.model.memory_format import memory_format_of

_EPS = 1e-5  # inside the root [released code]
# In half precision torch's loops on CPUs fill their vectors with the channels of one group: with fewer than these, the
# way over float32 is up to four times as fast, with more it is slower (benchmarks/norms.py).
_CHANNELS_OF_A_VECTOR = 16


class GroupNorm(nn.GroupNorm):
    """32 groups; statistics in float32 at least, output in the precision of the input.

    Autocast would make the output float32 on GPUs, and so double what is kept of every activation.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(NUM_GROUPS, channels, _EPS)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalise."""
        is_half = x_BCHW.dtype in (torch.float16, torch.bfloat16)
        with torch.autocast(x_BCHW.device.type, enabled=False):
            if is_half and x_BCHW.device.type == "cpu" and self.num_channels < NUM_GROUPS * _CHANNELS_OF_A_VECTOR:
                out: Tensor = _InFloat32.apply(x_BCHW, self.weight, self.bias)  # type: ignore[no-untyped-call]
                return out
            scale, bias = self.weight.to(x_BCHW.dtype), self.bias.to(x_BCHW.dtype)
            return F.group_norm(x_BCHW, NUM_GROUPS, scale, bias, _EPS)


class _InFloat32(torch.autograd.Function):
    """Normalises picture by picture, so that what is float32 stays small, in the processor's cache."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, scale_C: Tensor, bias_C: Tensor) -> Tensor:
        x_BCHW = x_BCHW.contiguous(memory_format=memory_format_of(x_BCHW))
        out_BCHW = torch.empty_like(x_BCHW)
        means, rstds = [], []
        for x, out in zip(torch.split(x_BCHW, 1), torch.split(out_BCHW, 1), strict=True):
            normal, mean, rstd = torch.native_group_norm(x.float(), scale_C, bias_C, *_sizes(x), NUM_GROUPS, _EPS)
            out.copy_(normal)
            means.append(mean)
            rstds.append(rstd)
        ctx.save_for_backward(x_BCHW, scale_C, torch.cat(means), torch.cat(rstds))
        return out_BCHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_BCHW, scale_C, means, rstds = ctx.saved_tensors
        # The kernel reads both in the layout of the input.
        gradient_BCHW = gradient_BCHW.contiguous(memory_format=memory_format_of(x_BCHW))
        by_x, by_scale, by_bias = torch.empty_like(x_BCHW), torch.zeros_like(scale_C), torch.zeros_like(scale_C)
        pictures = (torch.split(each, 1) for each in (gradient_BCHW, x_BCHW, means, rstds, by_x))
        for gradient, x, mean, rstd, place in zip(*pictures, strict=True):
            for_x, for_scale, for_bias = torch.ops.aten.native_group_norm_backward(
                gradient.float(), x.float(), mean, rstd, scale_C, *_sizes(x), NUM_GROUPS, [True, True, True]
            )
            place.copy_(for_x)
            by_scale += for_scale
            by_bias += for_bias
        return by_x, by_scale, by_bias


def _sizes(x_BCHW: Tensor) -> tuple[int, int, int]:
    """Return the numbers of pictures, channels and positions."""
    count, channels, height, width = x_BCHW.shape
    return count, channels, height * width
