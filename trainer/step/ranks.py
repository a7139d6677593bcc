"""The ranks of a run, and the few collectives it needs. One rank without a process group is the simplest case."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from pipeline.base.errors import ConfigError

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


def alone(use_gpu: bool = False) -> World:
    """Return the world of a single process, on the GPU if there is one.

    Args:
        use_gpu: Whether there has to be one.

    Raises:
        ConfigError: There has to be a GPU, and there is none.
    """
    if use_gpu and not torch.cuda.is_available():
        raise ConfigError("--gpu: torch finds no GPU on this machine; leave --gpu out to train on the CPU")
    return World(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def distributed(world: World, model: nn.Module) -> nn.Module:
    """Return the module to call in training: gradients are averaged over ranks in its backward.

    A sharded model is that itself. BatchNorm's running statistics stay each rank's own until `average_buffers`.

    Raises:
        ConfigError: BatchNorm over all ranks on CPUs, for which torch has none.
    """
    is_synchronised = any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    if is_synchronised and world.num_ranks > 1 and world.device.type == "cpu":
        raise ConfigError("SyncBN works on GPUs only; choose a model with -BN, or give --gpu")
    if world.num_ranks == 1 or isinstance(model, FSDPModule):
        return model
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)


@contextmanager
def gradient_sync(model: nn.Module, *, last: bool) -> Iterator[None]:
    """Average gradients over ranks in the backward pass inside only if it is the last of a step.

    Ranks that share a model keep nothing but their parts of the sums, in each backward pass; copies of it wait.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_all_reduce(last)
    if not last and isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
        return
    yield


def average_buffers(world: World, model: nn.Module) -> None:
    """Make BatchNorm's running statistics the mean over ranks; every rank must call."""
    if world.num_ranks > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer.div_(world.num_ranks)


def limit_collectives(world: World, seconds: float) -> None:
    """Let collectives that this rank begins from now on fail when they take longer, in all process groups of the run.

    Args:
        world: This rank.
        seconds: For a collective, with the wait for the slowest rank.
    """
    if world.num_ranks > 1:
        groups = dist.distributed_c10d._world.pg_map  # those of FSDP's mesh, too
        for group in groups:
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def cores_per_rank(world: World) -> int:
    """Return the processor cores of this machine for each rank on it, at least 1; every rank must call."""
    hosts = gather(world, socket.gethostname())
    return max(1, len(os.sched_getaffinity(0)) // hosts.count(socket.gethostname()))


def broadcast(world: World, value: T | None) -> T:
    """Return rank 0's value on every rank; others pass None."""
    box = [value]
    if world.num_ranks > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[return-value]


def gather(world: World, value: T) -> list[T]:
    """Return every rank's value, in rank order, on every rank."""
    if world.num_ranks == 1:
        return [value]
    values: list[T] = [value] * world.num_ranks
    dist.all_gather_object(values, value)
    return values
