"""The GroupNorm of BiT. Axes: B batch, C channels, H height, W width."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.architecture import NUM_GROUPS
from trainer.model.cpu import group_norm_in_float32, wants_float32

_EPS = 1e-5  # inside the root [released code]


class GroupNorm(nn.GroupNorm):
    """32 groups; statistics in float32 at least, output in the precision of the input.

    Autocast would make the output float32 on GPUs, and so double what is kept of every activation.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(NUM_GROUPS, channels, _EPS)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalise."""
        with torch.autocast(x_BCHW.device.type, enabled=False):
            if wants_float32(x_BCHW, NUM_GROUPS):
                return group_norm_in_float32(x_BCHW, self.weight, self.bias, NUM_GROUPS, _EPS)
            scale, bias = self.weight.to(x_BCHW.dtype), self.bias.to(x_BCHW.dtype)
            return F.group_norm(x_BCHW, NUM_GROUPS, scale, bias, _EPS)
