"""A training run from its newest checkpoint to its last step: the loop with its stream, metrics and checkpoints.

Pretraining and each fine-tuning run are one call of `fit`. What is to happen between steps has its place in
`trainer.run.hooks`.
"""

import itertools
import logging
from collections.abc import Iterator
from contextlib import closing, suppress

import torch
from torch.distributed.fsdp import FSDPModule
from torch.nn import SyncBatchNorm

from pipeline.base.errors import ResumeMismatch, StorageError
from pipeline.store.retry import waiting_for_outages
from pipeline.streaming.order import lanes_of_rank
from pipeline.streaming.stream import Batch, LoaderConfig, Stream
from trainer.checkpoint.fallback import load_newest
from trainer.checkpoint.weights import training_state
from trainer.run.averages import Averages, share
from trainer.run.controls import Controls
from trainer.run.folder import begin_attempt, write_quarantine
from trainer.run.hooks import Hooks, Start
from trainer.run.progress import Report
from trainer.run.skipped import SkippedSteps
from trainer.run.telemetry import Quarantine, Telemetry
from trainer.run.training import TrainingRun
from trainer.step.loop import Learner, train
from trainer.step.ranks import World, cores_per_rank, distributed

logger = logging.getLogger(__name__)


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
    with waiting_for_outages():
        _fit(run, report, controls or Controls())


def _fit(run: TrainingRun, report: Report, controls: Controls) -> None:
    world, quarantine = run.world, Quarantine()
    controls.on_phase("start")
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
        first_step, averages = _resume(run, stream)
        attempt = begin_attempt(run.store, world, first_step)
        _announce(run, first_step)
        lanes = lanes_of_rank(run.order.num_lanes, world.rank, world.num_ranks)
        num_workers = min(loader.num_workers or 0, len(lanes))
        log = run.settings.loader_log
        with closing(Telemetry(stream, num_workers, run.store.url, world.rank, log)) as telemetry:
            start = Start(stream, quarantine, telemetry, attempt, averages)
            hooks = Hooks(run, start, report, controls, first_step)
            skipped = SkippedSteps(run.store, world, run.settings.max_skipped_steps)
            try:
                done = train(
                    world,
                    _learner(run),
                    _shown(stream, controls),
                    first_step=first_step,
                    num_steps=run.num_steps,
                    hooks=hooks.in_order(),
                    on_result=hooks.on_result,
                    after_step=hooks.after_step,
                    key_of=run.key_of,
                    lanes=lanes,
                    passes_over=skipped.passes_over,
                )
            except BaseException:
                hooks.abandon()
                raise
        hooks.end(done)
    finally:
        controls.on_phase("")
        stream.close()
        with suppress(StorageError):  # what stopped the run is the error to report
            # The batch after the last one handed out may be the one that stopped the stream.
            write_quarantine(run.store, int(stream.state_dict()["step"]) + 1, world.rank, quarantine.take_rows())


def _shown(stream: Iterator[Batch], controls: Controls) -> Iterator[Batch]:
    """Yield the batches of a stream, and show when the rank waits for one.

    The first step may take long to compile; until the second one is done, no one knows how long a step is.
    """
    for phase in itertools.chain(("start", "start"), itertools.repeat("step")):
        controls.on_phase("data")
        batch = next(stream, None)
        if batch is None:
            return
        controls.on_phase(phase)
        yield batch


def with_workers(loader: LoaderConfig, world: World) -> LoaderConfig:
    """Choose the number of loader workers where the user did not; every rank must call.

    A GPU wants every core but the one that drives it. On CPUs the model computes on the cores that decoding would want.
    """
    cores = cores_per_rank(world)
    if loader.num_workers is not None:
        return loader
    return loader.model_copy(update={"num_workers": max(1, cores - 1) if world.device.type == "cuda" else 0})


def _resume(run: TrainingRun, stream: Stream) -> tuple[int, Averages]:
    """Restore the newest sound checkpoint, and return the steps it has done and what it has not reported yet."""
    record = load_newest(run.store, run.world, lambda record: training_state(record, run.optimizer), set_aside=True)
    if record is None:
        return run.begin(stream) if run.begin else 0, Averages()
    if not record.about.get("averaged"):
        run.optimizer.begin_averages()
    try:
        stream.load_state_dict(record.stream)
    except ResumeMismatch:
        if record.step > run.order_from:
            raise
    return record.step, Averages(share(record.unreported, run.world.rank, run.world.num_ranks))


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
    compiled = run.settings.compiled
    if compiled or (compiled is None and run.world.device.type == "cuda" and not isinstance(run.model, FSDPModule)):
        # With sizes left open, which torch does by itself once a second one comes, kernels made for an H100 read at
        # misaligned addresses (torch 2.11).
        run.model.compile(dynamic=False)
        if compiled == "step":
            run.optimizer.compile(dynamic=False)
    num_ranks, num_microbatches = run.world.num_ranks, None
    if isinstance(run.model, FSDPModule) or any(isinstance(module, SyncBatchNorm) for module in run.model.modules()):
        num_microbatches = run.settings.num_microbatches(run.order.batch_size, num_ranks)  # ranks wait in each
    return Learner(
        distributed(run.world, run.model),
        run.optimizer,
        run.loss,
        run.learning_rate,
        run.num_classes,
        run.order.batch_size,
        run.settings.microbatch_size,
        num_microbatches,
        run.settings.precision,
        run.mix,
        run.settings.clip_norm,
        run.order.seed,
    )
