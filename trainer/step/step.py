"""One optimizer step, in plain PyTorch, on any number of ranks and micro-batches."""

import itertools
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.base.errors import NonFinite
from trainer.step.losses import Loss
from trainer.step.optimizer import MasterOptimizer
from trainer.step.precision import Precision
from trainer.step.ranks import gradient_sync
from trainer.step.tensors import TensorBatch


@dataclass(frozen=True)
class StepResult:
    """What a step measured on this rank's part of the batch.

    Attributes:
        loss: Mean over the samples.
        accuracy: Share of samples whose highest logit is one of their labels.
        gradient_norm: Euclidean norm of the averaged gradient, equal on all ranks.
        forward_seconds: Time of the forward passes, in which no rank waits for another.
    """

    loss: float
    accuracy: float
    gradient_norm: float
    forward_seconds: float = 0.0


class Clock:
    """Measures parts of a step by the clock of the device that works on them."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time inside."""
        if self._is_cuda:
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            yield
            stop.record()
            self._events.append((start, stop))
        else:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began

    def seconds(self) -> float:
        """Return the time, once the step has its result."""
        return self._seconds + float(sum(start.elapsed_time(stop) for start, stop in self._events)) / 1000


class QueuedStep:
    """A step that a GPU may still be working on: whoever queues the next one before asking keeps it busy.

    Its figures are on their way to the CPU at once: read later, they would wait for all that was queued since.

    Args:
        figures: Loss, accuracy, gradient norm, and whether all ranks' figures are finite as 1 or 0, on the device.
        clock: Of its forward passes.
    """

    def __init__(self, figures: Tensor, clock: Clock | None = None) -> None:
        self._clock = clock
        self._figures = figures.to("cpu", non_blocking=True)
        self._arrival = torch.cuda.Event() if figures.is_cuda else None  # type: ignore[no-untyped-call]
        if self._arrival:
            self._arrival.record()

    def result(self) -> StepResult:
        """Wait for the device.

        Raises:
            NonFinite: Loss or gradient of some rank is NaN or infinite, raised on all of them; the step left parameters
                and momentum as they were.
        """
        if self._arrival:
            self._arrival.synchronize()
        loss, accuracy, gradient_norm, is_finite = self._figures.tolist()
        result = StepResult(loss, accuracy, gradient_norm, self._clock.seconds() if self._clock else 0.0)
        if not is_finite:
            raise NonFinite(f"loss {result.loss}, gradient norm {result.gradient_norm}; nothing was updated")
        return result


def train_step(
    model: nn.Module,
    optimizer: MasterOptimizer,
    batch: TensorBatch,
    loss: Loss,
    learning_rate: float,
    microbatch_size: int,
    *,
    num_microbatches: int | None = None,
    share: float = 1.0,
    precision: Precision = "float32",
    clip_norm: float | None = None,
) -> QueuedStep:
    """Accumulate the gradient over micro-batches, and take one step if it and the loss are finite on all ranks.

    Args:
        model: The module to call; where it is spread over ranks, it averages on the last micro-batch only.
        optimizer: Of the model that is called.
        batch: This rank's samples.
        loss: Of `trainer.step.losses`; a mean over samples.
        learning_rate: Of this step.
        microbatch_size: Most samples in one forward pass.
        num_microbatches: Instead of it, the number of forward passes, the same on every rank: ranks that share a model
            or its BatchNorm wait for each other in each.
        share: This rank's samples against the mean over ranks. Gradients are averaged over ranks as if they held
            equally many; where the ranks do not divide the lanes they do not.
        precision: Of convolutions and activations; parameters, statistics, loss and the step stay in float32.
        clip_norm: Longest gradient to follow; a longer one is shortened to it. None for any.
    """
    num_samples = len(batch.images_BCHW)
    parts = microbatches(num_samples, num_microbatches or math.ceil(num_samples / microbatch_size))
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    before = [buffer.clone() for buffer in buffers]
    optimizer.zero_grad()
    total_loss = torch.zeros((), device=batch.images_BCHW.device)
    num_correct = torch.zeros((), device=batch.images_BCHW.device)
    clock = Clock(batch.images_BCHW.device)
    half = torch.bfloat16 if precision == "bfloat16" else None
    with in_precision(precision, batch.images_BCHW.device), optimizer.kernels(half):
        for start, stop in parts:
            images, targets = batch.images_BCHW[start:stop], batch.targets_BK[start:stop]
            with gradient_sync(model, last=stop == num_samples):
                with clock.running():
                    logits = model(images)
                if stop == num_samples:
                    optimizer.drop_kernels()
                part = loss(logits, targets) * ((stop - start) / num_samples)
                (part * share).backward()  # type: ignore[no-untyped-call]
            total_loss += part.detach()
            num_correct += correct(logits.detach(), targets).sum()
    figures = torch.stack((total_loss, num_correct / num_samples, optimizer.gradient_norm()))
    is_finite = figures.isfinite().all().float()
    if dist.is_initialized():  # a loss may overflow on one rank alone: either all take the step or none
        dist.all_reduce(is_finite, dist.ReduceOp.MIN)
    for buffer, was in zip(buffers, before, strict=True):  # running statistics, which the forward passes have moved
        buffer.copy_(torch.where(is_finite > 0, buffer, was))
    optimizer.step(learning_rate, only_if=is_finite > 0, clip_norm=clip_norm)
    return QueuedStep(torch.cat((figures, is_finite.reshape(1))), clock)


def microbatches(num_samples: int, num_parts: int) -> list[tuple[int, int]]:
    """Return where each micro-batch starts and stops: as equal as can be, so of two sizes at most.

    A compiled network is compiled once for each size.
    """
    ends = [num_samples * part // num_parts for part in range(num_parts + 1)]
    return list(itertools.pairwise(ends))


def correct(logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
    """Return for each sample whether its highest logit is one of its labels, shape (B,)."""
    return targets_BK.gather(1, logits_BK.argmax(1, keepdim=True)).squeeze(1) > 0


def in_precision(precision: Precision, device: torch.device) -> torch.autocast:
    """Compute forward and backward passes inside in this precision."""
    # A step casts its kernels once; what a cache would keep are casts of weights that shards gather for one unit.
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False)
