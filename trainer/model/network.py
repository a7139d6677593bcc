"""The BiT ResNet-v2: GroupNorm, weight-standardised convolutions, pre-activation bottlenecks.

Axes: B batch, C channels, H height, W width, K classes. Module names follow timm's `resnetv2_*_bit`, so that its
state dictionaries fit without renaming.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.model.architecture import Architecture
from trainer.model.conv import Conv2d
from trainer.model.group_norm import GroupNorm

_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "group": GroupNorm,
    "batch": nn.BatchNorm2d,
    "sync-batch": nn.SyncBatchNorm,
}


def normalized(images_BCHW: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return uint8 pictures as floats in [-1, 1], others as they are."""
    if images_BCHW.dtype != torch.uint8:
        return images_BCHW
    return images_BCHW.to(dtype).div_(127.5).sub_(1.0)


class Stem(nn.Module):
    """7x7 convolution with stride 2, then a max-pool over a border of zeros; neither norm nor ReLU.

    Pixels are normalised here, where a compiled network does it in the kernel that reads them.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.conv = Conv2d(3, architecture.stem_channels, 7, stride=2, standardized=architecture.standardized)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return a quarter of the resolution."""
        out = self.conv(normalized(images_BCHW, self.conv.weight.dtype))
        # Not max_pool2d(padding=1): that pads with -inf, here zeros take part in the maximum.
        return F.max_pool2d(F.pad(out, (1, 1, 1, 1)), 3, stride=2)


class Projection(nn.Module):
    """The shortcut where shape or stride change: a 1x1 convolution of the pre-activated input."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, standardized: bool) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, 1, stride, standardized=standardized)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Project."""
        out: Tensor = self.conv(x_BCHW)
        return out


class Bottleneck(nn.Module):
    """Pre-activation bottleneck unit with its stride on the 3x3 convolution."""

    def __init__(self, architecture: Architecture, in_channels: int, mid_channels: int, stride: int) -> None:
        super().__init__()
        out_channels = 4 * mid_channels
        norm, standardized = _NORMS[architecture.norm], architecture.standardized
        self.norm1 = norm(in_channels)
        self.conv1 = Conv2d(in_channels, mid_channels, 1, standardized=standardized)
        self.norm2 = norm(mid_channels)
        self.conv2 = Conv2d(mid_channels, mid_channels, 3, stride, standardized=standardized)
        self.norm3 = norm(mid_channels)
        self.conv3 = Conv2d(mid_channels, out_channels, 1, standardized=standardized)
        projects = stride != 1 or in_channels != out_channels
        self.downsample = Projection(in_channels, out_channels, stride, standardized=standardized) if projects else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Add the residual branch to the shortcut; no ReLU after the sum."""
        activated = F.relu(self.norm1(x_BCHW), inplace=True)
        shortcut = x_BCHW if self.downsample is None else self.downsample(activated)
        out = self.conv1(activated)
        out = self.conv2(F.relu(self.norm2(out), inplace=True))
        out = self.conv3(F.relu(self.norm3(out), inplace=True))
        total: Tensor = out.add_(shortcut)  # no backward pass wants the branch's own output
        return total


class Stage(nn.Module):
    """Units of one resolution.

    Attributes:
        recomputes: Whether training keeps only the input of each unit and computes it again in the backward pass.
    """

    def __init__(
        self, architecture: Architecture, in_channels: int, mid_channels: int, num_units: int, stride: int
    ) -> None:
        super().__init__()
        first = Bottleneck(architecture, in_channels, mid_channels, stride)
        rest = [Bottleneck(architecture, 4 * mid_channels, mid_channels, 1) for _ in range(num_units - 1)]
        self.blocks = nn.Sequential(first, *rest)
        self.recomputes = False

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Run the units in order."""
        out = x_BCHW
        for block in self.blocks:
            out = _recomputed(block, out) if self.recomputes and self.training else block(out)
        return out


def _recomputed(part: nn.Module, x_BCHW: Tensor) -> Tensor:
    """Run a part, which draws no random numbers, and keep its input only."""
    out: Tensor = checkpoint(part, x_BCHW, use_reentrant=False, preserve_rng_state=False)
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
        """Return logits, shape (B, K)."""
        logits: Tensor = self.fc(features_BC11)
        return logits.flatten(1)


class ResNetV2(nn.Module):
    """BiT's network [paper 3.3].

    Args:
        architecture: Depth, width, normalisation.
        num_classes: Outputs of the head.
        dropout: Share of the features before the head that training drops [paper appendix A], 0 to 1.
        recomputes: Whether training keeps the input of stem and units only: less memory, a third more computation.
    """

    def __init__(
        self, architecture: Architecture, num_classes: int, *, dropout: float = 0.0, recomputes: bool = False
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.recomputes = recomputes
        channels = architecture.stem_channels
        self.stem = Stem(architecture)
        stages = []
        for stage, num_units in enumerate(architecture.units):
            mid_channels = architecture.stem_channels * 2**stage
            stages.append(Stage(architecture, channels, mid_channels, num_units, stride=1 if stage == 0 else 2))
            stages[-1].recomputes = recomputes
            channels = 4 * mid_channels
        self.stages = nn.Sequential(*stages)
        self.norm = _NORMS[architecture.norm](channels)
        self.dropout = nn.Dropout(dropout)
        self.head = Head(channels, num_classes)

    def feature_maps(self, images_BCHW: Tensor) -> list[Tensor]:
        """Return the outputs of the four stages, before norm and ReLU, at strides 4, 8, 16 and 32."""
        out = self._stem(images_BCHW)
        maps = []
        for stage in self.stages:
            out = stage(out)
            maps.append(out)
        return maps

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Return the pooled features before the head, shape (B, C, 1, 1)."""
        out = self.stages(self._stem(images_BCHW))
        return F.relu(self.norm(out), inplace=True).mean(dim=(2, 3), keepdim=True)

    def _stem(self, images_BCHW: Tensor) -> Tensor:
        out: Tensor = (
            _recomputed(self.stem, images_BCHW) if self.recomputes and self.training else self.stem(images_BCHW)
        )
        return out

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits, shape (B, K), of images in uint8, or in floats in [-1, 1]."""
        logits: Tensor = self.head(self.dropout(self.features(images_BCHW)))
        return logits
