"""The BiT ResNet-v2: GroupNorm, weight-standardised convolutions, pre-activation bottlenecks.

Axes: B batch, C channels, H height, W width, K classes. Module names follow timm's `resnetv2_*_bit`, so that its
state dictionaries fit without renaming.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.architecture import NUM_GROUPS, Architecture

_WS_EPS = 1e-10  # inside the root [released code]; below fp16's smallest number, so statistics are in fp32
_GN_EPS = 1e-5  # inside the root [released code]


def standardize(weight_OIHW: Tensor) -> Tensor:
    """Gives the kernel with zero mean and unit variance per output channel (biased variance, eps 1e-10)."""
    weight = weight_OIHW.float() if weight_OIHW.dtype in (torch.float16, torch.bfloat16) else weight_OIHW
    variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
    return (weight - mean) * torch.rsqrt(variance + _WS_EPS)


class StdConv2d(nn.Conv2d):
    """A convolution whose kernel is standardised on use; the raw kernel is the parameter."""

    def __init__(self, in_channels: int, out_channels: int, kernel_px: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_px, stride, padding=kernel_px // 2, bias=False)

    def reset_parameters(self) -> None:
        """LeCun normal. The paper names no scheme, and the forward pass does not depend on the scale."""
        nn.init.normal_(self.weight, std=1.0 / math.sqrt(self.weight[0].numel()))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Convolves with the standardised kernel."""
        return F.conv2d(x_BCHW, standardize(self.weight), None, self.stride, self.padding)


class Stem(nn.Module):
    """7x7 convolution with stride 2, then a max-pool over a border of zeros; neither norm nor ReLU."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.conv = StdConv2d(3, out_channels, 7, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Gives a quarter of the resolution."""
        # Not max_pool2d(padding=1): that pads with -inf, here zeros take part in the maximum.
        return F.max_pool2d(F.pad(self.conv(x_BCHW), (1, 1, 1, 1)), 3, stride=2)


class Projection(nn.Module):
    """The shortcut where shape or stride change: a 1x1 convolution of the pre-activated input."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = StdConv2d(in_channels, out_channels, 1, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Projects."""
        out: Tensor = self.conv(x_BCHW)
        return out


class Bottleneck(nn.Module):
    """Pre-activation bottleneck unit with its stride on the 3x3 convolution."""

    def __init__(self, in_channels: int, mid_channels: int, stride: int) -> None:
        super().__init__()
        out_channels = 4 * mid_channels
        self.norm1 = nn.GroupNorm(NUM_GROUPS, in_channels, _GN_EPS)
        self.conv1 = StdConv2d(in_channels, mid_channels, 1)
        self.norm2 = nn.GroupNorm(NUM_GROUPS, mid_channels, _GN_EPS)
        self.conv2 = StdConv2d(mid_channels, mid_channels, 3, stride)
        self.norm3 = nn.GroupNorm(NUM_GROUPS, mid_channels, _GN_EPS)
        self.conv3 = StdConv2d(mid_channels, out_channels, 1)
        projects = stride != 1 or in_channels != out_channels
        self.downsample = Projection(in_channels, out_channels, stride) if projects else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Adds the residual branch to the shortcut; no ReLU after the sum."""
        activated = F.relu(self.norm1(x_BCHW))
        shortcut = x_BCHW if self.downsample is None else self.downsample(activated)
        out = self.conv1(activated)
        out = self.conv2(F.relu(self.norm2(out)))
        out = self.conv3(F.relu(self.norm3(out)))
        total: Tensor = out + shortcut
        return total


class Stage(nn.Module):
    """Units of one resolution."""

    def __init__(self, in_channels: int, mid_channels: int, num_units: int, stride: int) -> None:
        super().__init__()
        first = Bottleneck(in_channels, mid_channels, stride)
        rest = [Bottleneck(4 * mid_channels, mid_channels, 1) for _ in range(num_units - 1)]
        self.blocks = nn.Sequential(first, *rest)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Runs the units in order."""
        out: Tensor = self.blocks(x_BCHW)
        return out


class Head(nn.Module):
    """The classifier: a 1x1 convolution with bias on pooled features, not standardised, all zero at the start."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(num_features, num_classes, 1)
        nn.init.zeros_(self.fc.weight)
        if self.fc.bias is not None:
            nn.init.zeros_(self.fc.bias)

    def forward(self, features_BC11: Tensor) -> Tensor:
        """Gives logits, shape (B, K)."""
        logits: Tensor = self.fc(features_BC11)
        return logits.flatten(1)


class ResNetV2(nn.Module):
    """BiT's network [paper 3.3].

    Args:
        architecture: Depth and width.
        num_classes: Outputs of the head.
    """

    def __init__(self, architecture: Architecture, num_classes: int) -> None:
        super().__init__()
        channels = architecture.stem_channels
        self.stem = Stem(channels)
        stages = []
        for stage, num_units in enumerate(architecture.units):
            mid_channels = architecture.stem_channels * 2**stage
            stages.append(Stage(channels, mid_channels, num_units, stride=1 if stage == 0 else 2))
            channels = 4 * mid_channels
        self.stages = nn.Sequential(*stages)
        self.norm = nn.GroupNorm(NUM_GROUPS, channels, _GN_EPS)
        self.head = Head(channels, num_classes)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Gives the pooled features before the head, shape (B, C, 1, 1)."""
        out = self.stages(self.stem(images_BCHW))
        return F.relu(self.norm(out)).mean(dim=(2, 3), keepdim=True)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Gives logits, shape (B, K), of images in [-1, 1]."""
        logits: Tensor = self.head(self.features(images_BCHW))
        return logits
