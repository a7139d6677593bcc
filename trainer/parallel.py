"""The ranks of a run, and the few collectives it needs. One rank without a process group is the simplest case."""

import os
import socket
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This rank's place.

    Attributes:
        rank: 0 to num_ranks - 1.
        num_ranks: Processes of the run.
        device: Where the model lives.
    """

    rank: int
    num_ranks: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes what is written once."""
        return self.rank == 0


def alone() -> World:
    """Gives the world of a single process, on the GPU if there is one."""
    return World(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def distributed(world: World, model: nn.Module) -> nn.Module:
    """Gives the module to call in training: gradients are averaged over ranks in its backward."""
    if world.num_ranks == 1:
        return model
    return DistributedDataParallel(model, device_ids=[world.device] if world.device.type == "cuda" else None)


def cores_per_rank(world: World) -> int:
    """Gives the processor cores of this machine for each rank on it, at least 1; every rank must call."""
    hosts = gather(world, socket.gethostname())
    return max(1, len(os.sched_getaffinity(0)) // hosts.count(socket.gethostname()))


def broadcast(world: World, value: T | None) -> T:
    """Gives rank 0's value on every rank; others pass None."""
    box = [value]
    if world.num_ranks > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[return-value]


def gather(world: World, value: T) -> list[T]:
    """Gives every rank's value, in rank order, on every rank."""
    if world.num_ranks == 1:
        return [value]
    values: list[T] = [value] * world.num_ranks
    dist.all_gather_object(values, value)
    return values
