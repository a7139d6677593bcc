"""A training run from its newest checkpoint to its last step: the loop with its stream, metrics and checkpoints.

Pretraining and each fine-tuning run are one call of `fit`. What is to happen between steps, for all of them, has its
place in `_Hooks`.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from pipeline.base.errors import Interrupted, ResumeMismatch, StorageError
from pipeline.dataset.dataset import Address
from pipeline.image.transforms import Transform
from pipeline.store.base import Store
from pipeline.store.lease import Lease
from pipeline.streaming.order import OrderConfig, lanes_of_rank
from pipeline.streaming.stream import LoaderConfig, Stream, WeightedSelection
from trainer.checkpoint.background import BackgroundSaver
from trainer.checkpoint.fallback import load_newest
from trainer.run.averages import Averages
from trainer.run.controls import Controls
from trainer.run.folder import begin_attempt, write_metrics, write_quarantine
from trainer.run.progress import Meter, Report
from trainer.run.settings import RunSettings
from trainer.run.telemetry import Quarantine, Telemetry
from trainer.step.loop import Hook, Learner, every, train
from trainer.step.losses import Loss
from trainer.step.optimizer import MasterSGD
from trainer.step.ranks import World, average_buffers, broadcast, cores_per_rank, distributed
from trainer.step.step import StepResult
from trainer.step.tensors import TensorBatch

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_STOP_CHECKS = 5.0  # of several ranks, which have to agree; a choice: the loop rests for each
_SECONDS_BETWEEN_LINES = 5.0  # of progress where rows of metrics are further apart


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
    begin: Callable[[Stream], int] | None = None
    order_from: int = 0
    steps_ahead: int = 0

    @property
    def num_samples(self) -> int:
        """Samples of an epoch: of all datasets together."""
        return sum(source.selection.num_samples for source in self.sources)

    def key_of(self, place: Sequence[int]) -> str:
        """Return the key of a sample from its row of `Batch.places`."""
        source, _, shard, row = place
        return str(self.sources[source].selection.dataset.sample(Address(shard, row))["key"])


def fit(run: TrainingRun, report: Report, controls: Controls | None = None) -> None:
    """Train to the last step, from the newest checkpoint if there is one; every rank must call.

    Args:
        run: What to train.
        report: Receives a row of metrics every `log_every_steps` steps, on rank 0.
        controls: Of the launch; None for none.

    Raises:
        NonFinite: The loss diverged; names the step and the samples.
        CorruptShard: All checkpoints are damaged, or too many samples are.
        Fenced: A newer start has taken over the folder.
        Interrupted: The run was asked to stop; its state is saved.
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
        _announce(run, first_step)
        num_lanes = len(lanes_of_rank(run.order.num_lanes, world.rank, world.num_ranks))
        num_workers = min(loader.num_workers or 0, num_lanes)
        with closing(Telemetry(stream, num_workers, world.rank, run.settings.loader_log)) as telemetry:
            start = _Start(stream, quarantine, telemetry, attempt)
            hooks = _Hooks(run, start, report, controls or Controls(), first_step)
            try:
                done = train(
                    world,
                    _learner(run),
                    stream,
                    first_step=first_step,
                    num_steps=run.num_steps,
                    hooks=hooks.in_order(),
                    on_result=hooks.on_result,
                    after_step=hooks.after_step,
                    key_of=run.key_of,
                )
            except BaseException:
                hooks.abandon()
                raise
        hooks.end(done)
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
    """Restore the newest sound checkpoint, and return the number of steps it has done."""
    record = load_newest(run.store, run.world, lambda _: run.optimizer.state(), set_aside=True)
    if record is None:
        return run.begin(stream) if run.begin else 0
    try:
        stream.load_state_dict(record.stream)
    except ResumeMismatch:
        if record.step > run.order_from:
            raise
    return record.step


def _announce(run: TrainingRun, first_step: int) -> None:
    """Say where the run begins."""
    if not run.world.is_first:
        return
    if first_step >= run.num_steps:
        logger.info("finished already at step %s: %s", f"{first_step:,}", run.store.url)
        return
    device = torch.cuda.get_device_name(run.world.device) if run.world.device.type == "cuda" else "CPU"
    where = f"{device}, {run.world.num_ranks} ranks" if run.world.num_ranks > 1 else device
    begins = f"resumed from step {first_step:,}" if first_step else "from step 0"
    logger.info("training on %s, %s of %s", where, begins, f"{run.num_steps:,}")


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


class _Start(NamedTuple):
    """What a start of a run works with on one rank."""

    stream: Stream
    quarantine: Quarantine
    telemetry: Telemetry
    attempt: str


class _Hooks:
    """What happens between the steps of every run."""

    def __init__(
        self,
        run: TrainingRun,
        start: _Start,
        report: Report,
        controls: Controls,
        first_step: int,
    ) -> None:
        self._run, self._start, self._report, self._controls = run, start, report, controls
        self._meter = Meter(first_step, run.num_steps, run.order.batch_size, run.num_samples, run.steps_ahead)
        self._averages = Averages()
        self._lease = controls.lease or (Lease.take(run.store) if run.world.is_first else None)
        keep = run.settings.keep_checkpoints
        self._saver = BackgroundSaver(run.store, run.world, start.attempt, self._lease, keep)
        self._first_step, self._saved_step = first_step, first_step
        self._next_stop_check = first_step + 1
        self._began = self._last_line = time.monotonic()

    def in_order(self) -> list[Hook]:
        """Return the hooks: the row of a step comes before its checkpoint, and an end after both."""
        run, settings = self._run, self._run.settings
        is_checkpoint = every(settings.checkpoint_every_steps, run.num_steps)
        return [
            Hook(every(settings.log_every_steps, run.num_steps), self._log),
            Hook(lambda done: is_checkpoint(done) and (run.saves_last or done < run.num_steps), self._checkpoint),
            Hook(self._is_stop_check, self._stop_if_wanted),
        ]

    def on_result(self, result: StepResult, num_samples: int) -> None:
        """Take the figures of a step."""
        self._averages.add(result, num_samples)
        self._start.telemetry.on_result(result.loss)

    def after_step(self, done: int, batch: Any) -> None:
        """Count a step, and show that it was made."""
        self._start.telemetry.after_step(done, batch)
        self._controls.on_step(done)
        now = time.monotonic()
        if self._run.world.is_first and (
            now - self._last_line >= _SECONDS_BETWEEN_LINES or done == self._first_step + 1
        ):
            self._last_line = now
            seconds = (now - self._began) / (done - self._first_step)
            left = f"{seconds * (self._run.num_steps - done):,.0f}"
            logger.info("step %s/%s  %.2f s a step  %s s left", f"{done:,}", f"{self._run.num_steps:,}", seconds, left)

    def abandon(self) -> None:
        """Let the checkpoint that is being written become whole, if the other ranks live, whatever ends the run."""
        self._saver.abandon()

    def end(self, done: int) -> None:
        """Keep what is left after the last step."""
        run = self._run
        self._saver.wait()
        average_buffers(run.world, run.model)
        if run.world.is_first:
            write_metrics(run.store, self._meter.take_rows())
        if done < run.num_steps:
            raise Interrupted(
                f"stopped after step {done:,} of {run.num_steps:,}; its state is saved at {run.store.url}: run the "
                f"same command again to go on from there"
            )

    def _log(self, done: int, _: StepResult) -> bool:
        averages = self._averages.take(self._run.world)
        if self._run.world.is_first:
            rate = self._run.learning_rate(done - 1)
            averages["checkpoint_stall_seconds"] = round(self._saver.take_stall(), 4)
            self._report(self._meter.row(done, self._start.telemetry.lap(), learning_rate=rate, **averages))
            self._last_line = time.monotonic()
            if self._lease:
                self._lease.check()
        return True

    def _checkpoint(self, done: int, _: StepResult) -> bool:
        run, world = self._run, self._run.world
        if world.is_first:
            write_metrics(run.store, self._meter.take_rows())
        write_quarantine(run.store, done, world.rank, self._start.quarantine.take_rows())
        average_buffers(world, run.model)
        stream = self._start.stream.state_dict()
        self._saver.start(run.optimizer.state(), step=done, stream=stream, about=run.about)
        self._saved_step = done
        return True

    def _is_stop_check(self, done: int) -> bool:
        if self._run.world.num_ranks == 1:
            return self._controls.wants_stop()
        return done >= self._next_stop_check

    def _stop_if_wanted(self, done: int, result: StepResult) -> bool:
        """End after a checkpoint, if rank 0 is asked to; the ranks agree on when they look again."""
        seconds = (time.monotonic() - self._began) / max(1, done - self._first_step)
        wish = (self._controls.wants_stop(), max(1, round(_SECONDS_BETWEEN_STOP_CHECKS / max(seconds, 1e-3))))
        wants_stop, pause = broadcast(self._run.world, wish if self._run.world.is_first else None)
        self._next_stop_check = done + pause
        if not wants_stop or done >= self._run.num_steps:
            return True
        if self._saved_step != done:
            self._checkpoint(done, result)
        return False
