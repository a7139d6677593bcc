"""Losses over multi-hot targets. Axes: B batch, K classes."""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

LossName = Literal["softmax", "sigmoid"]
Loss = Callable[[Tensor, Tensor], Tensor]


def softmax_loss(logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
    """Cross-entropy against the targets scaled to sum 1, mean over the batch; a sample without label adds 0."""
    total = targets_BK.sum(dim=1, keepdim=True).clamp_min(1e-12)
    return (
        -(targets_BK / total * F.log_softmax(logits_BK.float() if _half(logits_BK) else logits_BK, dim=1)).sum(1).mean()
    )


def sigmoid_loss(logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
    """Binary cross-entropy, summed over classes, mean over the batch [big_vision].

    A mean over 21,843 classes would shrink the gradient by that factor.
    """
    logits = logits_BK.float() if _half(logits_BK) else logits_BK
    return F.binary_cross_entropy_with_logits(logits, targets_BK, reduction="none").sum(1).mean()


def _half(tensor: Tensor) -> bool:
    return tensor.element_size() == 2


LOSSES: dict[LossName, Loss] = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}
