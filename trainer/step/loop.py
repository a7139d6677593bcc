"""The one loop of pretraining and fine-tuning, in plain PyTorch, on any number of ranks.

A step is queued before the one before it is waited for, so that a GPU always has work. What happens between steps
(metrics, checkpoints, evaluation, an early end) is handed in as hooks; for a hook that is due the loop comes to rest:
no step is pending, and weights, momentum and figures are those after `done` steps.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn

from pipeline.base.errors import NonFinite
from pipeline.base.seeds import key128
from pipeline.streaming.stream import Batch
from trainer.model.network import normalized
from trainer.step.losses import Loss
from trainer.step.optimizer import MasterOptimizer
from trainer.step.precision import Precision
from trainer.step.ranks import World
from trainer.step.step import QueuedStep, StepResult, train_step
from trainer.step.tensors import TensorBatch, to_device

_NAMED_SAMPLES = 8  # of the batch of a failed step; a choice: enough to look at, short enough for a message


class Hook(NamedTuple):
    """Work between two steps.

    Attributes:
        is_due: From the number of steps done to whether the loop comes to rest for it; the same on every rank.
        run: Called with the steps done and the figures of the last one; returns whether training goes on.
    """

    is_due: Callable[[int], bool]
    run: Callable[[int, StepResult], bool]


def every(num_steps: int, last: int) -> Callable[[int], bool]:
    """Return the rule of a hook that is due every `num_steps` steps and after step `last`."""
    return lambda done: done % num_steps == 0 or done == last


@dataclass(frozen=True)
class Learner:
    """What takes the steps of a rank.

    Attributes:
        module: The network to call; where it is spread over ranks, it averages gradients in its backward pass.
        optimizer: Of that network.
        loss: Of `trainer.step.losses`.
        learning_rate: From the number of a step, counted from 0, to its learning rate.
        num_classes: Outputs of the network.
        batch_size: Global batch.
        microbatch_size: Most samples of a rank in one forward pass.
        num_microbatches: See `train_step`; None for as few as this rank needs.
        precision: Of convolutions and activations.
        mix: From the number of a step and its batch, with pictures in floats, to what is learned from, such as MixUp;
            None for that batch.
        clip_norm: Norm to which a longer gradient is shortened; None for none.
        seed: Of the masks of dropout, which differ from step to step and from rank to rank.
    """

    module: nn.Module
    optimizer: MasterOptimizer
    loss: Loss
    learning_rate: Callable[[int], float]
    num_classes: int
    batch_size: int
    microbatch_size: int
    num_microbatches: int | None = None
    precision: Precision = "float32"
    mix: Callable[[int, TensorBatch], TensorBatch] | None = None
    clip_norm: float | None = None
    seed: int = 0

    def queue(self, step: int, batch: Batch, world: World) -> QueuedStep:
        """Queue one optimizer step on this rank's part of the global batch."""
        torch.manual_seed(key128(self.seed, "dropout", step, world.rank) >> 65)
        tensors = to_device(batch, self.num_classes, world.device)
        if self.mix:
            tensors = self.mix(step, replace(tensors, images_BCHW=normalized(tensors.images_BCHW)))
        return train_step(
            self.module,
            self.optimizer,
            tensors,
            self.loss,
            self.learning_rate(step),
            self.microbatch_size,
            num_microbatches=self.num_microbatches,
            share=len(batch.labels) * world.num_ranks / self.batch_size,
            precision=self.precision,
            clip_norm=self.clip_norm,
        )


class _Pending(NamedTuple):
    step: int
    num_samples: int
    places: list[list[int]]  # of its first samples
    queued: QueuedStep


def train(
    world: World,
    learner: Learner,
    batches: Iterator[Batch],
    *,
    first_step: int,
    num_steps: int,
    hooks: Sequence[Hook],
    on_result: Callable[[StepResult, int], None],
    after_step: Callable[[int, Batch], None],
    key_of: Callable[[Sequence[int]], str],
    lanes: range = range(0),
    passes_over: Callable[[int, str], bool] = lambda step, why: False,
) -> int:
    """Take the steps from `first_step` to `num_steps`; every rank must call.

    Args:
        world: This rank.
        learner: What takes the steps.
        batches: This rank's part of each global batch.
        first_step: Steps done already.
        num_steps: Steps to be done in all.
        hooks: Called in order where due.
        on_result: Called with the figures of every step, in order, and the number of this rank's samples behind them:
            before the hooks of that step; where the loop does not rest, a step late.
        after_step: Called after every step with the steps done and the batch.
        key_of: From a row of `Batch.places` to the sample's key, for messages.
        lanes: Of this rank, for messages.
        passes_over: Called with the number of a step that was not finite and what is known of it, the same steps on
            every rank; returns whether training goes on without it. The schedule and the order go on.

    Returns:
        Steps done: `num_steps`, or fewer where a hook ended the training.

    Raises:
        NonFinite: Loss or gradient is not finite, and the step is not passed over; names the step, the rank, its lanes
            and its first samples. Nothing was updated.
    """

    def finish(pending: _Pending) -> StepResult:
        try:
            result = pending.queued.result()
        except NonFinite as error:
            keys = ", ".join(key_of(place) for place in pending.places)
            read = f", lanes {lanes[0]} to {lanes[-1]}" if lanes else ""
            why = f"step {pending.step}, rank {world.rank}{read}, samples {keys}, ...: {error}"
            if passes_over(pending.step, why):
                return StepResult(math.nan, math.nan, math.nan)
            raise NonFinite(why) from error
        on_result(result, pending.num_samples)
        return result

    learner.module.train()
    pending: _Pending | None = None
    for step in range(first_step, num_steps):
        batch = next(batches)
        places = batch.places[:_NAMED_SAMPLES].tolist()
        queued = _Pending(step, len(batch.labels), places, learner.queue(step, batch, world))
        if pending:
            finish(pending)
        pending, done = queued, step + 1
        due = [hook for hook in hooks if hook.is_due(done)]
        if due or done == num_steps or step == first_step:  # the first result shows at once that steps work
            result, pending = finish(pending), None
        after_step(done, batch)
        if due:
            learner.optimizer.zero_grad()  # measuring and saving need the memory
            goes_on = [hook.run(done, result) for hook in due]
            learner.module.train()
            if not all(goes_on):
                return done
    return num_steps
