"""Pretraining: the recipe over the stream, with checkpoints; the same function with and without Ray."""

from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, PositiveInt
from torch import nn

from pipeline.base.errors import ConfigError, NonFinite, StorageError
from pipeline.dataset.dataset import Address, Dataset
from pipeline.image.transforms import PretrainView
from pipeline.store.base import Store
from pipeline.store.url import absolute_url, open_store
from pipeline.streaming.order import OrderConfig, lanes_of_rank
from pipeline.streaming.stream import Batch, LoaderConfig, Stream, WeightedSelection
from trainer.checkpoint.record import latest
from trainer.checkpoint.retention import discard_old
from trainer.checkpoint.sharded import load, save
from trainer.model.architecture import parse_architecture
from trainer.model.build import new_model
from trainer.model.network import ResNetV2
from trainer.recipes.data import TrainingData, training_sources
from trainer.recipes.pretrain import PretrainRecipe, pretrain_learning_rate, total_steps
from trainer.run.folder import begin_attempt, require_same_config, write_metrics, write_quarantine
from trainer.run.progress import Meter
from trainer.run.telemetry import Quarantine, Telemetry
from trainer.step.losses import LOSSES
from trainer.step.optimizer import MasterSGD
from trainer.step.ranks import World, average_buffers, cores_per_rank, distributed
from trainer.step.step import Precision, QueuedStep, StepResult, train_step
from trainer.step.tensors import to_device

Report = Callable[[dict[str, Any]], None]


class PretrainConfig(TrainingData):
    """A pretraining run; together with the dataset it decides every weight.

    Attributes:
        out: URL of the run folder.
        model: Such as R50x1.
        recipe: Schedule and augmentation.
        seed: Key of initial weights, order and augmentation.
        num_lanes: See pipeline.streaming.order; at least the number of workers.
        window_blocks: See pipeline.streaming.order.
        microbatch_size: Most samples of a rank in one forward pass.
        precision: Of convolutions and activations.
        recomputes: Whether only the input of each unit is kept for the backward pass.
        sharded: Whether the ranks share parameters, gradients and momentum instead of each holding all.
        compiled: Whether torch.compile makes the network's kernels; needs a C compiler, on CPUs a C++ compiler. None:
            on GPUs, where it is more than twice as fast (benchmarks/gpu.py), but for sharded models.
        checkpoint_every_steps: Steps between checkpoints.
        log_every_steps: Steps between metric rows.
        keep_checkpoints: How many of the newest to keep.
        loader: How batches are made; may differ from start to start.
        loader_log: URL of a file of JSON lines with each rank's loader figures of every second; `-rank0` and so on is
            added to its name, and on S3 the time of each minute's part. None for none; may differ from start to start.
    """

    out: str
    model: str
    recipe: PretrainRecipe
    seed: int = 0
    num_lanes: PositiveInt = 16
    window_blocks: PositiveInt = 4
    microbatch_size: PositiveInt = 64
    precision: Precision = "float32"
    recomputes: bool = False
    sharded: bool = False
    compiled: bool | None = None
    checkpoint_every_steps: PositiveInt = 500
    log_every_steps: PositiveInt = 20
    keep_checkpoints: PositiveInt = 3
    loader: LoaderConfig = LoaderConfig()
    loader_log: Annotated[str, AfterValidator(absolute_url)] | None = None


def check_pretrain(config: PretrainConfig, num_workers: int) -> None:
    """Refuse what could not run, before any process starts.

    Raises:
        NotFound: A dataset or a list of samples is not there.
        ConfigError: Unknown model, fewer lanes than workers, a batch that the lanes do not divide, other classes,
            shards for a single process.
    """
    parse_architecture(config.model)
    if config.sharded and num_workers == 0:
        raise ConfigError("sharded=true spreads the model over Ray workers; give --workers 2 or more, or leave it out")
    order_config(config).samples_per_lane()
    lanes_of_rank(config.num_lanes, 0, max(1, num_workers))
    training_sources(config)


def order_config(config: PretrainConfig) -> OrderConfig:
    """Return the stream's part of the configuration."""
    return OrderConfig(
        seed=config.seed,
        batch_size=config.recipe.batch_size,
        num_lanes=config.num_lanes,
        window_blocks=config.window_blocks,
    )


def pretrain(config: PretrainConfig, world: World, report: Report) -> None:
    """Train to the end of the recipe, from the newest checkpoint if there is one; every rank must call.

    Args:
        config: The run.
        world: This rank.
        report: Receives a row of metrics now and then, on rank 0.

    Raises:
        NonFinite: The loss diverged; names the step and the samples.
        ResumeMismatch: The run folder belongs to another configuration.
    """
    store = open_store(config.out)
    require_same_config(store, world, config)
    sources = training_sources(config)
    dataset = sources[0].selection.dataset
    model = new_model(
        config.model,
        dataset.version.num_classes,
        config.seed,
        device=world.device,
        recomputes=config.recomputes,
        sharded=config.sharded,
    )
    loader, quarantine = sized(config.loader, world), Quarantine()
    stream = Stream(
        sources,
        order_config(config),
        PretrainView(config.recipe.resolution_px, flip=config.recipe.flip),
        rank=world.rank,
        num_ranks=world.num_ranks,
        loader=loader,
        on_bad=quarantine,
    )
    optimizer = MasterSGD(model, config.recipe.momentum, config.recipe.weight_decay)
    num_lanes = len(lanes_of_rank(config.num_lanes, world.rank, world.num_ranks))
    run = _Run(
        config, world, store, sources, model, optimizer, stream, quarantine, min(loader.num_workers or 0, num_lanes)
    )
    try:
        _train(run, report)
    finally:
        stream.close()
        with suppress(StorageError):  # what stopped the run is the error to tell
            # The batch after the last one handed out may be the one that stopped the stream.
            write_quarantine(store, int(stream.state_dict()["step"]) + 1, world.rank, quarantine.take_rows())


def sized(loader: LoaderConfig, world: World) -> LoaderConfig:
    """Choose the number of loader workers where the user did not; every rank must call.

    A GPU wants every core but the one that drives it. On CPUs the model computes on the cores that decoding would want.
    """
    cores = cores_per_rank(world)
    if loader.num_workers is not None:
        return loader
    return loader.model_copy(update={"num_workers": max(1, cores - 1) if world.device.type == "cuda" else 0})


@dataclass(frozen=True)
class _Run:
    config: PretrainConfig
    world: World
    store: Store
    sources: tuple[WeightedSelection, ...]
    model: ResNetV2
    optimizer: MasterSGD
    stream: Stream
    quarantine: Quarantine
    num_loader_workers: int

    @property
    def data(self) -> Dataset:
        return self.sources[0].selection.dataset

    @property
    def num_samples(self) -> int:
        return sum(source.selection.num_samples for source in self.sources)

    def key(self, place: Sequence[int]) -> str:
        source, _, shard, row = place
        return str(self.sources[source].selection.dataset.sample(Address(shard, row))["key"])


def _resume(run: _Run) -> int:
    """Restore the newest checkpoint; return the number of steps it has done."""
    record = latest(run.store)
    if record is None:
        return 0
    load(run.store, run.world, record, run.optimizer.state())
    run.stream.load_state_dict(record.stream)
    return record.step


def _train(run: _Run, report: Report) -> None:
    config, world = run.config, run.world
    num_samples = run.num_samples
    num_steps = total_steps(config.recipe, num_samples)
    first_step = _resume(run)
    attempt = begin_attempt(run.store, world, first_step)
    module = distributed(world, run.model)
    if config.compiled or (config.compiled is None and world.device.type == "cuda" and not config.sharded):
        # With sizes left open, which torch does by itself once a second one comes, kernels made for an H100 read at
        # misaligned addresses (torch 2.11).
        module.compile(dynamic=False)
    module.train()
    meter = Meter(first_step, num_steps, config.recipe.batch_size, num_samples)
    with closing(Telemetry(run.stream, run.num_loader_workers, world.rank, config.loader_log)) as telemetry:
        underway: _Underway | None = None  # a GPU works on it while the batch after it is made ready
        loss = 0.0  # the last one that is known; from the first step on
        for step in range(first_step, num_steps):
            batch = next(run.stream)
            rate = pretrain_learning_rate(config.recipe, step, num_samples)
            following = _Underway(step, batch.places[:8].tolist(), _queued(run, module, batch, rate))
            if underway:
                loss = _ended(run, underway).loss
            underway, done = following, step + 1
            is_row = done % config.log_every_steps == 0 or done == num_steps
            is_checkpoint = done % config.checkpoint_every_steps == 0 or done == num_steps
            if is_row or is_checkpoint or step == first_step:
                result, underway = _ended(run, underway), None
                loss = result.loss
            telemetry.after_step(done, batch, loss)
            if is_row and world.is_first:
                report(meter.row(done, telemetry.lap(), learning_rate=rate, **asdict(result)))
            if is_checkpoint:
                _checkpoint(run, done, attempt, meter)


class _Underway(NamedTuple):
    step: int
    places: list[list[int]]  # of its first samples
    queued: QueuedStep


def _queued(run: _Run, module: nn.Module, batch: Batch, rate: float) -> QueuedStep:
    config, world = run.config, run.world
    return train_step(
        module,
        run.optimizer,
        to_device(batch, run.data.version.num_classes, world.device),
        LOSSES[config.recipe.loss],
        rate,
        config.microbatch_size,
        share=len(batch.labels) * world.num_ranks / config.recipe.batch_size,
        precision=config.precision,
    )


def _ended(run: _Run, underway: _Underway) -> StepResult:
    try:
        return underway.queued.result()
    except NonFinite as error:
        keys = ", ".join(run.key(place) for place in underway.places)
        told = f"step {underway.step}, rank {run.world.rank}, samples {keys}, ...: {error}"
        raise NonFinite(told) from error


def _checkpoint(run: _Run, step: int, attempt: str, meter: Meter) -> None:
    about = {
        "model": run.config.model,
        "num_classes": run.data.version.num_classes,
        "classes_sha256": run.data.classes_sha256,
        "data": run.config.data,
        "data_version": run.config.data_version,
        "resolution_px": run.config.recipe.resolution_px,
    }
    if run.world.is_first:
        write_metrics(run.store, meter.take_rows())
    write_quarantine(run.store, step, run.world.rank, run.quarantine.take_rows())
    stream = run.stream.state_dict()
    average_buffers(run.world, run.model)
    save(run.store, run.world, run.optimizer.state(), step=step, attempt=attempt, stream=stream, about=about)
    if run.world.is_first:
        discard_old(run.store, run.config.keep_checkpoints)
