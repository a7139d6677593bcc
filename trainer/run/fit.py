"""A training run from its newest checkpoint to its last step: the loop with its stream, metrics and checkpoints.

Pretraining and each fine-tuning run are one call of `fit`. What is to happen between steps, for all of them, has its
place in `_hooks`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule

from pipeline.base.errors import StorageError
from pipeline.dataset.dataset import Address
from pipeline.image.transforms import Transform
from pipeline.store.base import Store
from pipeline.streaming.order import OrderConfig, lanes_of_rank
from pipeline.streaming.stream import LoaderConfig, Stream, WeightedSelection
from trainer.checkpoint.record import latest
from trainer.checkpoint.retention import discard_old
from trainer.checkpoint.sharded import load, save
from trainer.run.folder import begin_attempt, write_metrics, write_quarantine
from trainer.run.progress import Meter, Report
from trainer.run.settings import RunSettings
from trainer.run.telemetry import Quarantine, Telemetry
from trainer.step.loop import Hook, Learner, every, train
from trainer.step.losses import Loss
from trainer.step.optimizer import MasterSGD
from trainer.step.ranks import World, average_buffers, cores_per_rank, distributed
from trainer.step.step import StepResult
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
    """

    store: Store
    world: World
    settings: RunSettings
    sources: Sequence[WeightedSelection]
    order: OrderConfig
    transform: Transform
    model: nn.Module
    optimizer: MasterSGD
    loss: Loss
    learning_rate: Callable[[int], float]
    num_steps: int
    num_classes: int
    about: Mapping[str, Any]
    mix: Callable[[int, TensorBatch], TensorBatch] | None = None
    saves_last: bool = True

    @property
    def num_samples(self) -> int:
        """Samples of an epoch: of all datasets together."""
        return sum(source.selection.num_samples for source in self.sources)

    def key_of(self, place: Sequence[int]) -> str:
        """Return the key of a sample from its row of `Batch.places`."""
        source, _, shard, row = place
        return str(self.sources[source].selection.dataset.sample(Address(shard, row))["key"])


def fit(run: TrainingRun, report: Report) -> None:
    """Train to the last step, from the newest checkpoint if there is one; every rank must call.

    Args:
        run: What to train.
        report: Receives a row of metrics every `log_every_steps` steps, on rank 0.

    Raises:
        NonFinite: The loss diverged; names the step and the samples.
        CorruptShard: The newest checkpoint is damaged, or too many samples are.
    """
    world, quarantine = run.world, Quarantine()
    loader = with_workers(run.settings.loader, world)
    stream = Stream(
        run.sources,
        run.order,
        run.transform,
        rank=world.rank,
        num_ranks=world.num_ranks,
        loader=loader,
        on_bad=quarantine,
    )
    try:
        first_step = _resume(run, stream)
        attempt = begin_attempt(run.store, world, first_step)
        meter = Meter(first_step, run.num_steps, run.order.batch_size, run.num_samples)
        num_lanes = len(lanes_of_rank(run.order.num_lanes, world.rank, world.num_ranks))
        num_workers = min(loader.num_workers or 0, num_lanes)
        with closing(Telemetry(stream, num_workers, world.rank, run.settings.loader_log)) as telemetry:
            train(
                world,
                _learner(run),
                stream,
                first_step=first_step,
                num_steps=run.num_steps,
                hooks=_hooks(run, stream, quarantine, meter, telemetry, attempt, report),
                after_step=telemetry.after_step,
                key_of=run.key_of,
            )
        average_buffers(world, run.model)
        if world.is_first:
            write_metrics(run.store, meter.take_rows())
    finally:
        stream.close()
        with suppress(StorageError):  # what stopped the run is the error to report
            # The batch after the last one handed out may be the one that stopped the stream.
            write_quarantine(run.store, int(stream.state_dict()["step"]) + 1, world.rank, quarantine.take_rows())


def with_workers(loader: LoaderConfig, world: World) -> LoaderConfig:
    """Choose the number of loader workers where the user did not; every rank must call.

    A GPU wants every core but the one that drives it. On CPUs the model computes on the cores that decoding would want.
    """
    cores = cores_per_rank(world)
    if loader.num_workers is not None:
        return loader
    return loader.model_copy(update={"num_workers": max(1, cores - 1) if world.device.type == "cuda" else 0})


def _resume(run: TrainingRun, stream: Stream) -> int:
    """Restore the newest checkpoint, and return the number of steps it has done."""
    record = latest(run.store)
    if record is None:
        return 0
    load(run.store, run.world, record, run.optimizer.state())
    stream.load_state_dict(record.stream)
    return record.step


def _learner(run: TrainingRun) -> Learner:
    module = distributed(run.world, run.model)
    compiled = run.settings.compiled
    if compiled or (compiled is None and run.world.device.type == "cuda" and not isinstance(run.model, FSDPModule)):
        # With sizes left open, which torch does by itself once a second one comes, kernels made for an H100 read at
        # misaligned addresses (torch 2.11).
        module.compile(dynamic=False)
    return Learner(
        module,
        run.optimizer,
        run.loss,
        run.learning_rate,
        run.num_classes,
        run.order.batch_size,
        run.settings.microbatch_size,
        run.settings.precision,
        run.mix,
    )


def _hooks(
    run: TrainingRun,
    stream: Stream,
    quarantine: Quarantine,
    meter: Meter,
    telemetry: Telemetry,
    attempt: str,
    report: Report,
) -> list[Hook]:
    """Return what happens between the steps of every run, in this order."""
    settings, world = run.settings, run.world

    def log(done: int, result: StepResult) -> bool:
        if world.is_first:
            report(meter.row(done, telemetry.lap(), learning_rate=run.learning_rate(done - 1), **asdict(result)))
        return True

    def checkpoint(done: int, _: StepResult) -> bool:
        if world.is_first:
            write_metrics(run.store, meter.take_rows())
        write_quarantine(run.store, done, world.rank, quarantine.take_rows())
        average_buffers(world, run.model)
        state = run.optimizer.state()
        save(run.store, world, state, step=done, attempt=attempt, stream=stream.state_dict(), about=run.about)
        if world.is_first:
            discard_old(run.store, settings.keep_checkpoints)
        return True

    is_checkpoint = every(settings.checkpoint_every_steps, run.num_steps)
    return [
        Hook(every(settings.log_every_steps, run.num_steps), log),
        Hook(lambda done: is_checkpoint(done) and (run.saves_last or done < run.num_steps), checkpoint),
    ]
