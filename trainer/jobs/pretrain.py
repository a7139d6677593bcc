"""Pretraining: the upstream recipe over the stream; the same function with and without Ray."""

import logging
from collections.abc import Sequence

import torch

from pipeline.base.errors import ConfigError, ResumeMismatch
from pipeline.dataset.dataset import Dataset
from pipeline.image.transforms import PretrainView
from pipeline.packing.foreign_tars.open_any import open_any
from pipeline.store.url import open_store
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import Stream
from trainer.checkpoint.record import chosen
from trainer.checkpoint.sharded import load
from trainer.checkpoint.weights import load_into, training_state
from trainer.formats.convert import infer_architecture, to_ours
from trainer.formats.source import open_weights
from trainer.jobs.checks import order_began, steps_ahead
from trainer.jobs.config import PretrainConfig
from trainer.model.build import fill, new_model
from trainer.model.network import ResNetV2
from trainer.recipes.classes import match_classes
from trainer.recipes.data import held_out_selection, training_sources
from trainer.recipes.held_out import ProbeSet
from trainer.recipes.pretrain import pretrain_learning_rate, total_steps
from trainer.run.classes import write_classes
from trainer.run.controls import Controls
from trainer.run.fit import fit
from trainer.run.folder import settled_config
from trainer.run.held_out import Evaluation, Labelled, Probe
from trainer.run.progress import Report
from trainer.run.training import TrainingRun
from trainer.step.losses import LOSSES
from trainer.step.optimizer import MasterOptimizer, model_state
from trainer.step.ranks import World

logger = logging.getLogger(__name__)


def pretrain(config: PretrainConfig, world: World, report: Report, controls: Controls | None = None) -> None:
    """Train to the end of the recipe, from the newest checkpoint if there is one; every rank must call.

    Args:
        config: The run.
        world: This rank.
        report: Receives a row of metrics now and then, on rank 0.
        controls: Of the launch; None for none.

    Raises:
        NonFinite: The loss diverged; names the step and the samples.
        ResumeMismatch: The run folder belongs to another configuration.
        Interrupted: The run was asked to stop; its state is saved.
    """
    store = open_store(config.out)
    config = settled_config(store, world, config)
    recipe, sources = config.recipe, training_sources(config)
    dataset = sources[0].selection.dataset
    num_classes = dataset.version.num_classes
    num_samples = sum(source.selection.num_samples for source in sources)
    began, ahead = order_began(config), steps_ahead(config, num_samples)
    model = new_model(
        config.model,
        num_classes,
        config.seed,
        device=world.device,
        recomputes=config.recomputes,
        sharded=config.sharded,
        ranks_per_replica=config.ranks_per_replica,
    )
    with torch.no_grad():
        dict(model.named_parameters())["head.fc.bias"].fill_(recipe.head_bias)
    optimizer = MasterOptimizer(
        model,
        recipe.momentum,
        recipe.weight_decay,
        kind=recipe.optimizer,
        decoupled=recipe.decoupled_decay,
        average_decay=config.average_decay,
    )
    if world.is_first:
        write_classes(store, dataset.classes)

    def begin(stream: Stream) -> int:
        if config.branch:
            return _begin_branch(config, world, optimizer, stream)
        if config.init:
            _begin_from_weights(config, world, model, dataset)
            optimizer.begin_averages()
        return 0

    run = TrainingRun(
        store=store,
        world=world,
        settings=config,
        sources=sources,
        order=config.order(recipe.batch_size),
        transform=PretrainView(recipe.resolution_px, flip=recipe.flip),
        model=model,
        optimizer=optimizer,
        loss=LOSSES[recipe.loss],
        learning_rate=lambda step: pretrain_learning_rate(recipe, max(0, step + ahead), num_samples),
        num_steps=total_steps(recipe, num_samples) - ahead,
        num_classes=num_classes,
        about={
            "model": config.model,
            "num_classes": num_classes,
            "classes_sha256": dataset.classes_sha256,
            "data": config.data,
            "data_version": config.data_version,
            "resolution_px": recipe.resolution_px,
        }
        | ({"averaged": True} if config.average_decay is not None else {}),
        begin=begin,
        order_from=began.step if began else 0,
        steps_ahead=ahead,
        evaluation=_evaluation(config, dataset.classes),
    )
    fit(run, report, controls)


def _evaluation(config: PretrainConfig, classes: Sequence[str]) -> Evaluation | None:
    """Return what the run is measured on while it trains."""
    held_out = held_out_selection(config)
    if held_out is None and not config.probes:
        return None
    labelled = None
    if held_out is not None:
        url = held_out.dataset.store.url
        labelled = Labelled(held_out, match_classes(classes, held_out.dataset.classes, config.data, url))
    return Evaluation(
        config.evaluate_every_steps,
        labelled,
        tuple(_probe(probe) for probe in config.probes),
        config.recipe.resolution_px,
        config.microbatch_size,
        config.precision,
    )


def _probe(probe: ProbeSet) -> Probe:
    train, test = open_any(probe.train, probe.train_version), open_any(probe.test, probe.test_version)
    return Probe(
        probe.name,
        Labelled(Selection(train), tuple(range(len(train.classes)))),
        Labelled(Selection(test), match_classes(train.classes, test.classes, probe.train, probe.test)),
    )


def _begin_branch(config: PretrainConfig, world: World, optimizer: MasterOptimizer, stream: Stream) -> int:
    """Take up the state of another run, and pass over the batches that are to be left out."""
    branch = config.branch
    if branch is None:
        return 0
    other = open_store(branch.run)
    record = chosen(other, branch.step)
    load(other, world, record, training_state(record, optimizer))
    if not record.about.get("averaged"):
        optimizer.begin_averages()
    try:
        stream.load_state_dict(record.stream | {"step": int(record.stream["step"]) + branch.skip_steps})
    except ResumeMismatch:
        if world.is_first:
            logger.info("a new order of samples begins, since batch, data or seed are others")
    return record.step


def _begin_from_weights(config: PretrainConfig, world: World, model: ResNetV2, dataset: Dataset) -> None:
    """Fill a new network with the weights of a run or a file; a head of other classes stays one of zeros."""
    state, url = model_state(model), str(config.init)
    body = {name: value for name, value in state.items() if not name.startswith("model/head.")}
    if config.init_step is None:
        weights = {f"model/{name}": value for name, value in to_ours(open_weights(url).values, url).items()}
        found = infer_architecture({name.removeprefix("model/"): value for name, value in weights.items()}).name
        keeps_head = all(
            name in weights and weights[name].shape == value.shape for name, value in state.items() if name not in body
        )
        for name, value in (state if keeps_head else body).items():
            fill(value, weights[name])
    else:
        source = open_store(url)
        record = chosen(source, config.init_step)
        found = record.about["model"]
        keeps_head = record.about["classes_sha256"] == dataset.classes_sha256
        if found == config.model:
            load_into(source, world, config.init_step, state if keeps_head else body)
    if found != config.model:
        raise ConfigError(f"--init {url} holds {found}, the run is of {config.model}; give --model {found}")
    if world.is_first:
        kept = "with its head" if keeps_head else "with a new head: its classes are others"
        logger.info("starting from the weights of %s, %s", url, kept)
