"""The one optimizer of the paper: SGD with momentum."""

import torch
from torch import nn


def sgd(model: nn.Module, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """Gives SGD whose weight decay applies to kernels only; the learning rate is set every step.

    Kernels are the parameters with more than one axis: convolutions and the head, not norms nor biases.
    """
    kernels = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
