"""New models: built without memory, spread over ranks if asked, and only then given weights.

So no rank ever holds the whole of a model that is sharded: at most one parameter is made whole at a time.
"""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pipeline.base.seeds import key128
from trainer.model.architecture import parse_architecture
from trainer.model.conv import Conv2d
from trainer.model.network import Bottleneck, ResNetV2
from trainer.model.sharding import shard


def new_model(
    name: str,
    num_classes: int,
    seed: int,
    *,
    device: torch.device | None = None,
    dropout: float = 0.0,
    recomputes: bool = False,
    sharded: bool = False,
    ranks_per_replica: int | None = None,
) -> ResNetV2:
    """Return a freshly initialised model; equal arguments give equal weights on any device and number of ranks.

    Args:
        name: Such as R50x1.
        num_classes: Outputs of the head.
        seed: Key of the weights.
        device: Where it lives; the CPU by default.
        dropout: See ResNetV2.
        recomputes: See ResNetV2.
        sharded: Whether the ranks of the process group share it, see `trainer.model.sharding.shard`; every rank must
            call.
        ranks_per_replica: See there.
    """
    device = device or torch.device("cpu")
    with torch.device("meta"):
        model = ResNetV2(parse_architecture(name), num_classes, dropout=dropout, recomputes=recomputes)
    if not sharded:  # FSDP2 shards contiguous parameters only
        # Channels last is the layout of the pictures, and what convolutions are fastest in on CPUs and GPUs.
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    else:
        units = [module for module in model.modules() if isinstance(module, Bottleneck)]
        shard(model, units, device, ranks_per_replica)
    model.to_empty(device=device)
    initialize(model, seed)
    return model


@torch.no_grad()
def initialize(model: nn.Module, seed: int) -> None:
    """Fill parameters and buffers: kernels LeCun normal keyed by (seed, name), norms one and zero, the head zero.

    The paper names no scheme for kernels; with weight standardisation the output does not depend on their scale.
    """
    kernels = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv2d)}
    for name, parameter in model.named_parameters():
        if name in kernels:
            generator = torch.Generator().manual_seed(key128(seed, "initial weights", name) >> 65)
            std = parameter[0].numel() ** -0.5
            fill(parameter, torch.empty(parameter.shape).normal_(std=std, generator=generator))
        else:
            is_scale = name.endswith("weight") and parameter.ndim == 1
            parameter.fill_(1.0 if is_scale else 0.0)
    for name, buffer in model.named_buffers():
        buffer.fill_(1.0 if name.endswith("running_var") else 0.0)


def fill(parameter: Tensor, whole: Tensor) -> None:
    """Copy the whole values into a parameter, or this rank's part of them."""
    if isinstance(parameter, DTensor):
        mesh, placement = parameter.device_mesh, parameter.placements[-1]  # what comes before are replicas
        parts = whole.chunk(mesh.size(mesh.ndim - 1), dim=placement.dim)  # type: ignore[attr-defined]
        local, place = parameter.to_local(), mesh.get_local_rank(mesh.ndim - 1)
        if place < len(parts):
            local.copy_(parts[place])
        return
    parameter.copy_(whole)
