"""A model spread over the ranks of a run by FSDP2."""

from collections.abc import Iterable

from torch import nn
from torch.distributed.fsdp import fully_shard


def shard(model: nn.Module, units: Iterable[nn.Module]) -> nn.Module:
    """Spread parameters, gradients and optimizer state over all ranks (FSDP2); each rank keeps its part of each.

    Kernels are split by output channel, over which nothing is standardised, so each rank standardises its own.

    Args:
        model: Without weights yet (on the meta device), or with equal ones on all ranks.
        units: Parts that are gathered one at a time; the rest is gathered as a whole.
    """
    for unit in units:
        fully_shard(unit)
    fully_shard(model)
    return model
