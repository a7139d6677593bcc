"""A training run as plain data: what is learned, from what, and how it is kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.dataset.dataset import Address
from pipeline.image.transforms import Transform
from pipeline.store.base import Store
from pipeline.streaming.order import OrderConfig
from pipeline.streaming.stream import Stream, WeightedSelection
from trainer.model.network import ResNetV2
from trainer.run.held_out import Evaluation
from trainer.run.settings import RunSettings
from trainer.step.losses import Loss
from trainer.step.optimizer import MasterOptimizer
from trainer.step.ranks import World
from trainer.step.tensors import TensorBatch


@dataclass(frozen=True)
class TrainingRun:
    """One run: what is learned, from what, and how it is kept.

    Attributes:
        store: The run's folder.
        world: This rank.
        settings: How the run is computed and kept.
        sources: The datasets, with their shares.
        order: Seed, global batch and lanes.
        transform: From encoded pictures to what the network sees.
        model: The network, with its first weights.
        optimizer: Of the network.
        loss: Of `trainer.step.losses`.
        learning_rate: From the number of a step, counted from 0, to its learning rate.
        num_steps: Steps of the whole run.
        num_classes: Outputs of the network.
        about: What its checkpoints say of the weights.
        mix: See `Learner`.
        saves_last: Whether the state after the last step is saved as the states before it are.
        begin: Fills network, momentum and place in the data of a run without a checkpoint, and returns the steps done.
        order_from: Steps done where the present order of samples begins: only later checkpoints need a place in it.
        steps_ahead: By how many steps the schedule is ahead of the steps done.
        evaluation: What the run is measured on while it trains; None for nothing.
    """

    store: Store
    world: World
    settings: RunSettings
    sources: Sequence[WeightedSelection]
    order: OrderConfig
    transform: Transform
    model: ResNetV2
    optimizer: MasterOptimizer
    loss: Loss
    learning_rate: Callable[[int], float]
    num_steps: int
    num_classes: int
    about: Mapping[str, Any]
    mix: Callable[[int, TensorBatch], TensorBatch] | None = None
    saves_last: bool = True
    begin: Callable[[Stream], int] | None = None
    order_from: int = 0
    steps_ahead: int = 0
    evaluation: Evaluation | None = None

    @property
    def num_samples(self) -> int:
        """Samples of an epoch: of all datasets together."""
        return sum(source.selection.num_samples for source in self.sources)

    def key_of(self, place: Sequence[int]) -> str:
        """Return the key of a sample from its row of `Batch.places`."""
        source, _, shard, row = place
        return str(self.sources[source].selection.dataset.sample(Address(shard, row))["key"])
