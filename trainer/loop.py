"""One optimizer step, in plain PyTorch, on any number of ranks and micro-batches."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import NonFinite
from trainer.batches import TensorBatch
from trainer.losses import Loss
from trainer.optimizer import set_learning_rate


@dataclass(frozen=True)
class StepResult:
    """What a step measured on this rank's part of the batch.

    Attributes:
        loss: Mean over the samples.
        accuracy: Share of samples whose highest logit is one of their labels.
        gradient_norm: Euclidean norm of the averaged gradient, equal on all ranks.
    """

    loss: float
    accuracy: float
    gradient_norm: float


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: TensorBatch,
    loss: Loss,
    learning_rate: float,
    microbatch_size: int,
    share: float = 1.0,
) -> StepResult:
    """Accumulates the gradient over micro-batches, checks it, and takes one step.

    Args:
        model: The module to call; DistributedDataParallel averages over ranks on the last micro-batch only.
        optimizer: SGD of `trainer.optimizer`.
        batch: This rank's samples.
        loss: Of `trainer.losses`; a mean over samples.
        learning_rate: Of this step.
        microbatch_size: Most samples in one forward pass.
        share: This rank's samples against the mean over ranks. Gradients are averaged over ranks as if they held
            equally many; where the ranks do not divide the lanes they do not.

    Raises:
        NonFinite: Loss or gradient is NaN or infinite; the parameters are unchanged.
    """
    num_samples = len(batch.images_BCHW)
    optimizer.zero_grad(set_to_none=True)
    total_loss = torch.zeros((), device=batch.images_BCHW.device)
    num_correct = torch.zeros((), device=batch.images_BCHW.device)
    for start in range(0, num_samples, microbatch_size):
        stop = min(start + microbatch_size, num_samples)
        images, targets = batch.images_BCHW[start:stop], batch.targets_BK[start:stop]
        with _gradient_sync(model, last=stop == num_samples):
            logits = model(images)
            part = loss(logits, targets) * ((stop - start) / num_samples)
            (part * share).backward()  # type: ignore[no-untyped-call]
        total_loss += part.detach()
        num_correct += correct(logits.detach(), targets).sum()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if not (torch.isfinite(norm) and torch.isfinite(total_loss)):
        raise NonFinite(f"loss {total_loss.item()}, gradient norm {norm.item()}; nothing was updated")
    set_learning_rate(optimizer, learning_rate)
    optimizer.step()
    return StepResult(total_loss.item(), num_correct.item() / num_samples, norm.item())


def correct(logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
    """Tells for each sample whether its highest logit is one of its labels, shape (B,)."""
    return targets_BK.gather(1, logits_BK.argmax(1, keepdim=True)).squeeze(1) > 0


def _gradient_sync(model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    if last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()
