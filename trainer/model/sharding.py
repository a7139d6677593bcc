"""A model spread over the ranks of a run by FSDP2."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard


def shard(
    model: nn.Module, units: Iterable[nn.Module], device: torch.device, ranks_per_replica: int | None = None
) -> nn.Module:
    """Spread parameters, gradients and optimizer state over the ranks (FSDP2); each rank keeps its part of each.

    Kernels are split by output channel, over which nothing is standardised, so each rank can standardise its own.

    Args:
        model: Without weights yet (on the meta device), or with equal ones on all ranks.
        units: Parts that are gathered one at a time; the rest is gathered as a whole.
        device: Of the ranks.
        ranks_per_replica: Ranks, one beside the other, that share a copy of the model, such as those of a node, which
            then gathers over its own links (HSDP). None for all; all too where it does not divide their number, which
            an elastic group may change.
    """
    mesh = _mesh(device, ranks_per_replica)
    for unit in units:
        fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _mesh(device: torch.device, ranks_per_replica: int | None) -> DeviceMesh | None:
    num_ranks = dist.get_world_size()
    if ranks_per_replica is None or ranks_per_replica >= num_ranks or num_ranks % ranks_per_replica:
        return None
    places = (num_ranks // ranks_per_replica, ranks_per_replica)
    return init_device_mesh(device.type, places, mesh_dim_names=("replicas", "shards"))
