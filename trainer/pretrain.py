"""Pretraining: the recipe over the stream, with checkpoints; the same function with and without Ray."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from pipeline.augment import pretrain_view
from pipeline.dataset import Dataset, open_dataset
from pipeline.errors import ConfigError, NonFinite
from pipeline.order import OrderConfig
from pipeline.records import Record
from pipeline.store.base import Store
from pipeline.store.url import open_store
from pipeline.stream import Stream
from pipeline.view import View
from trainer.architecture import parse_architecture
from trainer.batches import to_device
from trainer.checkpoint import discard_old, latest, load, model_state, momentum_state, save
from trainer.loop import train_step
from trainer.losses import LOSSES
from trainer.meter import Meter
from trainer.model import ResNetV2
from trainer.optimizer import sgd
from trainer.parallel import World, distributed
from trainer.recipes import PretrainRecipe, learning_rate, total_steps
from trainer.run_folder import begin_attempt, settle_config, write_metrics

Report = Callable[[dict[str, Any]], None]


class PretrainConfig(Record):
    """A pretraining run; together with the dataset it decides every weight.

    Attributes:
        data: URL of the dataset.
        data_version: Manifest version, pinned for the whole run.
        out: URL of the run folder.
        model: Such as R50x1.
        recipe: Schedule and augmentation.
        seed: Key of initial weights, order and augmentation.
        num_lanes: See pipeline.order; the number of workers must divide it.
        window_blocks: See pipeline.order.
        microbatch_size: Most samples of a rank in one forward pass.
        checkpoint_every_steps: Steps between checkpoints.
        log_every_steps: Steps between metric rows.
        keep_checkpoints: How many of the newest to keep.
        decode_threads: Threads that decode and augment, per rank.
    """

    data: str
    data_version: int
    out: str
    model: str
    recipe: PretrainRecipe
    seed: int = 0
    num_lanes: PositiveInt = 16
    window_blocks: PositiveInt = 4
    microbatch_size: PositiveInt = 64
    checkpoint_every_steps: PositiveInt = 500
    log_every_steps: PositiveInt = 20
    keep_checkpoints: PositiveInt = 3
    decode_threads: PositiveInt = 1


def check_pretrain(config: PretrainConfig, num_workers: int) -> None:
    """Refuses what could not run, before any process starts.

    Raises:
        ConfigError: Unknown model, lanes that workers or batch do not fit.
    """
    parse_architecture(config.model)
    order_config(config).samples_per_lane()
    if config.num_lanes % max(1, num_workers):
        raise ConfigError(
            f"{num_workers} workers do not divide {config.num_lanes} lanes; change --workers or num_lanes"
        )


def order_config(config: PretrainConfig) -> OrderConfig:
    """Gives the stream's part of the configuration."""
    return OrderConfig(
        seed=config.seed,
        batch_size=config.recipe.batch_size,
        num_lanes=config.num_lanes,
        window_blocks=config.window_blocks,
    )


def pretrain(config: PretrainConfig, world: World, report: Report) -> None:
    """Trains to the end of the recipe, from the newest checkpoint if there is one; every rank must call.

    Args:
        config: The run.
        world: This rank.
        report: Receives a row of metrics now and then, on rank 0.

    Raises:
        NonFinite: The loss diverged; names the step and the samples.
        ResumeMismatch: The run folder belongs to another configuration.
    """
    store = open_store(config.out)
    settle_config(store, world, config)
    dataset = open_dataset(config.data, config.data_version)
    model = new_model(config.model, dataset.version.num_classes, config.seed).to(world.device)
    stream = Stream(
        View(dataset),
        order_config(config),
        pretrain_view(config.recipe.resolution_px, flip=config.recipe.flip),
        rank=world.rank,
        num_ranks=world.num_ranks,
        decode_threads=config.decode_threads,
    )
    optimizer = sgd(model, config.recipe.momentum, config.recipe.weight_decay)
    run = _Run(config, world, store, dataset, model, optimizer, stream)
    try:
        _train(run, report)
    finally:
        stream.close()


def new_model(name: str, num_classes: int, seed: int) -> ResNetV2:
    """Gives a freshly initialised model; equal arguments give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNetV2(parse_architecture(name), num_classes)


@dataclass(frozen=True)
class _Run:
    config: PretrainConfig
    world: World
    store: Store
    data: Dataset
    model: ResNetV2
    optimizer: torch.optim.SGD
    stream: Stream

    def state(self) -> dict[str, Tensor]:
        return model_state(self.model) | momentum_state(self.model, self.optimizer)


def _resume(run: _Run) -> int:
    """Restores the newest checkpoint; gives the number of steps it has done."""
    record = latest(run.store)
    if record is None:
        return 0
    load(run.store, run.world, record, run.state())
    run.stream.load_state_dict(record.stream)
    return record.step


def _train(run: _Run, report: Report) -> None:
    config, world = run.config, run.world
    num_samples = run.data.version.num_samples
    num_steps = total_steps(config.recipe, num_samples)
    first_step = _resume(run)
    attempt = begin_attempt(run.store, world, first_step)
    module = distributed(world, run.model)
    module.train()
    meter = Meter(first_step, num_steps, config.recipe.batch_size, num_samples)
    for step in range(first_step, num_steps):
        with meter.waiting():
            batch = next(run.stream)
        rate = learning_rate(config.recipe, step, num_samples)
        try:
            result = train_step(
                module,
                run.optimizer,
                to_device(batch, run.data.version.num_classes, world.device),
                LOSSES[config.recipe.loss],
                rate,
                config.microbatch_size,
            )
        except NonFinite as error:
            keys = ", ".join(run.data.sample(address)["key"] for address in batch.addresses[:8])
            raise NonFinite(f"step {step}, rank {world.rank}, samples {keys}, ...: {error}") from error
        done = step + 1
        if world.is_first and (done % config.log_every_steps == 0 or done == num_steps):
            report(meter.row(done, learning_rate=rate, **asdict(result)))
        if done % config.checkpoint_every_steps == 0 or done == num_steps:
            _checkpoint(run, done, attempt, meter)


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
    stream = run.stream.state_dict()
    save(run.store, run.world, run.state(), step=step, attempt=attempt, stream=stream, about=about)
    if run.world.is_first:
        discard_old(run.store, run.config.keep_checkpoints)
