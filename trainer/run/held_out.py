"""Figures of the network on pictures that it does not train on, taken while it trains."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from pipeline.dataset.dataset import label_matrix
from pipeline.image.transforms import EvaluationView
from pipeline.streaming.one_pass import one_pass
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import Batch
from trainer.model.network import ResNetV2
from trainer.scores.intervals import wilson_interval
from trainer.scores.linear_probe import few_shot_accuracies
from trainer.step.losses import Loss
from trainer.step.precision import Precision
from trainer.step.ranks import World, broadcast, gather
from trainer.step.step import correct, in_precision
from trainer.step.tensors import images_to_device


@dataclass(frozen=True)
class Labelled:
    """Pictures with labels.

    Attributes:
        selection: The pictures.
        labels: For each label of the dataset that of the model, or of the probe; -1 where there is none.
    """

    selection: Selection
    labels: tuple[int, ...]

    def given(self, labels: tuple[int, ...]) -> list[int]:
        """Return the labels of a picture as the model has them."""
        return [self.labels[label] for label in labels if self.labels[label] >= 0]


@dataclass(frozen=True)
class Probe:
    """Sets of the linear few-shot probe, with the same labels."""

    name: str
    train: Labelled
    test: Labelled


@dataclass(frozen=True)
class Evaluation:
    """What a run is measured on while it trains.

    Attributes:
        every_steps: Steps between two measurements; there is one after the last step, too.
        held_out: Pictures with labels of the training set; None for none.
        probes: Sets of the linear few-shot probe.
        resolution_px: Side of the input.
        batch_size: Pictures of a rank in one forward pass.
        precision: Of the forward pass.
    """

    every_steps: int
    held_out: Labelled | None
    probes: tuple[Probe, ...]
    resolution_px: int
    batch_size: int
    precision: Precision = "float32"


class _Outputs(NamedTuple):
    batch: Batch
    logits_BK: Tensor
    features_BC: Tensor


@dataclass(frozen=True)
class _Passes:
    """Forward passes of a network over pictures."""

    model: ResNetV2
    evaluation: Evaluation
    world: World
    on_batch: Callable[[], None]

    def over(self, selection: Selection) -> Iterator[_Outputs]:
        """Yield what the network makes of this rank's share of the pictures.

        Every pass has the same shape, and every rank makes equally many: a sharded network gathers its weights in
        each, and a compiled one is compiled once.
        """
        world, side, size = self.world, self.evaluation.resolution_px, self.evaluation.batch_size
        batches = one_pass(selection, EvaluationView(side), side, size, rank=world.rank, num_ranks=world.num_ranks)
        captured: list[Tensor] = []
        hook = self.model.head.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0].flatten(1)))
        try:
            for _ in range(math.ceil(math.ceil(selection.num_samples / world.num_ranks) / size)):
                self.on_batch()
                batch = next(batches, None)
                images = np.zeros((size, side, side, 3), np.uint8)
                if batch:
                    images[: len(batch.labels)] = batch.images
                padded = Batch(images=images, labels=(), places=np.empty((0, 4), np.int64))
                with in_precision(self.evaluation.precision, world.device):
                    logits = self.model(images_to_device(padded, world.device))
                features = captured.pop()
                if batch:
                    yield _Outputs(batch, logits[: len(batch.labels)].float(), features[: len(batch.labels)])
        finally:
            hook.remove()


def measure(
    model: ResNetV2, evaluation: Evaluation, world: World, loss: Loss, on_batch: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Return the figures of a network as it is; every rank must call and gets them all.

    Args:
        model: The network.
        evaluation: What it is measured on.
        world: This rank.
        loss: Of `trainer.step.losses`.
        on_batch: Called before every batch, as a sign of progress.

    Returns:
        `held_out` with loss (mean over labelled pictures), accuracy (share of pictures whose highest logit is one of
        their labels), its 95 % Wilson interval and the counts behind it; `few_shot` with the accuracies of each probe
        by number of shots, for three seeds each.

    Raises:
        CorruptShard: A picture is damaged.
    """
    was_training = model.training
    model.eval()
    figures: dict[str, Any] = {}
    passes = _Passes(model, evaluation, world, on_batch)
    try:
        with torch.inference_mode():
            if evaluation.held_out:
                figures["held_out"] = _held_out(passes, evaluation.held_out, world, loss)
            if evaluation.probes:
                figures["few_shot"] = {probe.name: _few_shot(passes, probe, world) for probe in evaluation.probes}
    finally:
        if isinstance(model, FSDPModule):
            model.reshard()  # what is in no unit stays gathered until a backward pass, and a step begins with parts
        model.train(was_training)
    return figures


def _held_out(passes: _Passes, pictures: Labelled, world: World, loss: Loss) -> dict[str, float | int]:
    loss_sum, num_correct, num_test = 0.0, 0, 0
    for batch, logits, _ in passes.over(pictures.selection):
        labels = [pictures.given(given) for given in batch.labels]
        labelled = [row for row, given in enumerate(labels) if given]
        if not labelled:
            continue
        targets = torch.from_numpy(label_matrix([labels[row] for row in labelled], logits.shape[1])).to(world.device)
        loss_sum += float(loss(logits[labelled], targets)) * len(labelled)
        num_correct += int(correct(logits[labelled], targets).sum())
        num_test += len(labelled)
    parts = gather(world, (loss_sum, num_correct, num_test))
    loss_sum = sum(part[0] for part in parts)
    num_correct, num_test = sum(part[1] for part in parts), sum(part[2] for part in parts)
    low, high = wilson_interval(num_correct, num_test)
    return {
        "loss": loss_sum / max(1, num_test),
        "accuracy": num_correct / max(1, num_test),
        "low": low,
        "high": high,
        "num_correct": num_correct,
        "num_test": num_test,
    }


def _few_shot(passes: _Passes, probe: Probe, world: World) -> dict[str, Any]:
    train = _embedded(passes, probe.train, world)
    test = _embedded(passes, probe.test, world)
    figures: dict[str, Any] = {}
    if world.is_first:
        for number, accuracies in few_shot_accuracies(*train, *test).items():
            figures[str(number)] = {"mean": float(np.mean(accuracies)), "seeds": [float(each) for each in accuracies]}
    return broadcast(world, figures if world.is_first else None)


def _embedded(
    passes: _Passes, pictures: Labelled, world: World
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return pre-logits and first labels of all labelled pictures, in dataset order."""
    features, labels = [], []
    for batch, _, found in passes.over(pictures.selection):
        given = [pictures.given(each) for each in batch.labels]
        labelled = [row for row, each in enumerate(given) if each]
        features.append(found[labelled].float().cpu().numpy())
        labels += [given[row][0] for row in labelled]
    parts = gather(world, (features, labels))
    whole = np.concatenate([part for found, _ in parts for part in found])
    return whole, np.array([label for _, found in parts for label in found], np.int64)
