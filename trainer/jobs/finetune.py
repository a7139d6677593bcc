"""Fine-tuning with the HyperRule on full or few-shot training sets; from a pretrained run or from scratch."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from pipeline.base.errors import ConfigError
from pipeline.base.records import Record
from pipeline.base.seeds import rng
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.schema import table_of, to_parquet
from pipeline.image.transforms import FinetuneView
from pipeline.packing.foreign_tars.open_any import open_any
from pipeline.store.base import Store, exists
from pipeline.store.url import open_store
from pipeline.streaming.order import OrderConfig, lanes_of_rank
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import LoaderConfig, Stream
from trainer.checkpoint.record import require_latest
from trainer.checkpoint.sharded import load, save
from trainer.jobs.evaluate import check_classes, predict
from trainer.jobs.pretrain import Report, sized
from trainer.model.architecture import parse_architecture
from trainer.model.build import new_model
from trainer.model.network import ResNetV2
from trainer.recipes.data import selection_without
from trainer.recipes.hyperrule import TransferRecipe, finetune_learning_rate, hyperrule, shortened
from trainer.run.folder import begin_attempt, require_same_config
from trainer.scores.predictions import summary
from trainer.step.losses import LOSSES
from trainer.step.optimizer import MasterSGD, model_state
from trainer.step.ranks import World, average_buffers, broadcast, distributed
from trainer.step.step import Precision, train_step
from trainer.step.tensors import TensorBatch, to_device
from trainer.tasks.few_shot import few_shot_rows

SCRATCH = "scratch"


class Shortened(Record):
    """The HyperRule's schedule at another length, batch and resolution, for work on a CPU."""

    steps: PositiveInt
    batch_size: PositiveInt
    resize_px: PositiveInt
    crop_px: PositiveInt


class FinetuneConfig(Record):
    """A set of fine-tuning runs, one for each number of shots and each subset.

    Attributes:
        init: URL of a pretraining run, or `scratch`.
        model: Such as R50x1; that of the run unless from scratch.
        train: URL of the training set.
        train_version: Its manifest version.
        test: URL of the test set.
        test_version: Its manifest version.
        exclude_test: URL of a Parquet file with `shard` and `row` of test samples to leave out, such as an audit's.
        out: URL of the results.
        shots: Pictures a class; 0 means the whole training set.
        num_subsets: Few-shot subsets for each number of shots [paper 4.1: five].
        rule: Variant of the HyperRule.
        shortened: Another length of the schedule, or None for the rule itself.
        seed: Key of subsets, initial weights, order and augmentation.
        flip: False for tasks whose label depends on direction.
        crop: False for tasks whose label depends on position.
        num_lanes: See pipeline.streaming.order; at least the number of workers.
        microbatch_size: Most samples of a rank in one forward pass.
        precision: Of convolutions and activations.
        recomputes: Whether only the input of each unit is kept for the backward pass.
        dropout: Share of the features before the head that training drops; none by the HyperRule.
        decay_to_start: Weight decay towards the initial weights (L2-SP); none by the HyperRule.
        loader: How batches are made; may differ from start to start.
    """

    init: str
    model: str
    train: str
    train_version: int
    test: str
    test_version: int
    exclude_test: str | None = None
    out: str
    shots: tuple[NonNegativeInt, ...] = (0,)
    num_subsets: PositiveInt = 5
    rule: Literal["paper", "code"] = "paper"
    shortened: Shortened | None = None
    seed: int = 0
    flip: bool = True
    crop: bool = True
    num_lanes: PositiveInt = 16
    microbatch_size: PositiveInt = 64
    precision: Precision = "float32"
    recomputes: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    decay_to_start: NonNegativeFloat = 0.0
    loader: LoaderConfig = LoaderConfig()


@dataclass(frozen=True)
class _Job:
    config: FinetuneConfig
    world: World
    store: Store
    train: Dataset
    test: Selection
    attempt: str
    report: Report


def finetune(config: FinetuneConfig, world: World, report: Report) -> None:
    """Run what is not done yet and write a result, predictions and weights for each; every rank must call.

    Raises:
        NotFound: The pretraining run has no checkpoint, or a dataset is missing.
        ConfigError: A class has too few pictures for the shots.
        ResumeMismatch: The results folder belongs to another configuration.
    """
    store = open_store(config.out)
    require_same_config(store, world, config)
    train, test = open_any(config.train, config.train_version), _test_view(config)
    job = _Job(config, world, store, train, test, begin_attempt(store, world, 0), report)
    for shots in config.shots:
        for subset in range(config.num_subsets if shots else 1):
            name = f"{shots:04d}-shots-{subset}"
            if not broadcast(world, exists(store, f"results/{name}.json") if world.is_first else None):
                _run_one(job, shots, subset, name)
            elif world.is_first:
                report(json.loads(store.read(f"results/{name}.json")))


def check_finetune(config: FinetuneConfig, num_workers: int) -> None:
    """Refuse what could not run, before any process starts.

    Raises:
        ConfigError: Unknown model, other classes in the test set, too few pictures for the shots, or lanes that
            workers or batch do not fit.
        NotFound: A dataset is missing.
    """
    parse_architecture(config.model)
    train, test = open_any(config.train, config.train_version), _test_view(config).dataset
    check_classes(config.train, train.classes, config.test, test.classes)
    lanes_of_rank(config.num_lanes, 0, max(1, num_workers))
    for shots in config.shots:
        rows = few_shot_rows(first_labels(train), train.version.num_classes, shots, config.seed, 0)
        recipe = recipe_for(config, len(rows), (224, 224))
        order = OrderConfig(batch_size=recipe.batch_size, num_lanes=config.num_lanes)
        if order.samples_per_lane() == 1 and recipe.mixup_alpha is not None:
            raise ConfigError(f"MixUp needs two samples a lane; lower num_lanes {config.num_lanes} below the batch")


def _test_view(config: FinetuneConfig) -> Selection:
    return selection_without(config.test, config.test_version, config.exclude_test)


def first_labels(dataset: Dataset) -> npt.NDArray[np.int64]:
    """Return the first label of every sample, -1 without label, shape (samples,)."""
    labels = dataset.all_samples(["labels"])["labels"].to_pylist()
    return np.array([sample[0] if sample else -1 for sample in labels], np.int64)


def _run_one(job: _Job, shots: int, subset: int, name: str) -> None:
    config, world, store = job.config, job.world, job.store
    selection, nominal_px = _training_view(config, job.train, shots, subset)
    recipe = recipe_for(config, selection.num_samples, nominal_px)
    num_classes = max(job.train.version.num_classes, job.test.dataset.version.num_classes)
    model = initial_model(config, world, num_classes)

    def on_step(done: int, loss: float) -> None:
        if world.is_first and done % max(1, recipe.steps // 4) == 0:
            job.report({"run": name, "step": done, "num_steps": recipe.steps, "loss": loss})

    _fit(job, selection, model, recipe, num_classes, on_step)
    predictions = predict(model, job.test, world, recipe.crop_px, config.microbatch_size)
    result = {"name": name, "init": config.init, "shots": shots, "subset": subset, "num_train": selection.num_samples}
    result |= summary(predictions) | {"recipe": recipe.model_dump()}
    about = {
        "model": config.model,
        "num_classes": num_classes,
        "classes_sha256": job.train.classes_sha256,
        "resolution_px": recipe.crop_px,
        "result": result,
    }
    models = open_store(f"{config.out.rstrip('/')}/models/{name}")
    save(models, world, model_state(model), step=recipe.steps, attempt=job.attempt, stream={}, about=about)
    if world.is_first:
        if shots:
            _write(store, f"subsets/{name}.parquet", subset_table(selection))
        _write(store, f"predictions/{name}.parquet", to_parquet(predictions))
        store.create(f"results/{name}.json", (json.dumps(result, indent=1) + "\n").encode())
        job.report(result)
    broadcast(world, None)


def _training_view(
    config: FinetuneConfig, train: Dataset, shots: int, subset: int
) -> tuple[Selection, tuple[int, int]]:
    """Return the subset and the nominal (height, width) of the task: the medians of the training set."""
    samples = train.all_samples(["width", "height"])
    nominal = int(np.median(samples["height"].to_numpy())), int(np.median(samples["width"].to_numpy()))
    if shots == 0:
        selection = Selection(train)
    else:
        rows = few_shot_rows(first_labels(train), train.version.num_classes, shots, config.seed, subset)
        chosen = samples.select(["shard", "row"]).take(rows)
        by_shard: dict[int, list[int]] = {}
        for shard, row in zip(chosen["shard"].to_pylist(), chosen["row"].to_pylist(), strict=True):
            by_shard.setdefault(shard, []).append(row)
        selection = Selection(train, by_shard)
    return selection, nominal


def recipe_for(config: FinetuneConfig, num_train: int, nominal_px: tuple[int, int]) -> TransferRecipe:
    """Return the recipe of one run: the HyperRule, shortened if the configuration says so."""
    recipe = hyperrule(num_train, *nominal_px, model=config.model, variant=config.rule)
    return shortened(recipe, **config.shortened.model_dump()) if config.shortened else recipe


def initial_model(config: FinetuneConfig, world: World, num_classes: int) -> ResNetV2:
    """Return the pretrained body (or a fresh one) with a head of zeros."""
    model = new_model(
        config.model,
        num_classes,
        config.seed,
        device=world.device,
        dropout=config.dropout,
        recomputes=config.recomputes,
    )
    if config.init != SCRATCH:
        source = open_store(config.init)
        body = {name: value for name, value in model_state(model).items() if ".head." not in f".{name[6:]}"}
        load(source, world, require_latest(source), body)
    return model


def _fit(
    job: _Job,
    selection: Selection,
    model: ResNetV2,
    recipe: TransferRecipe,
    num_classes: int,
    on_step: Callable[[int, float], None],
) -> None:
    config, world = job.config, job.world
    optimizer = MasterSGD(model, recipe.momentum, 0.0, decay_to_start=config.decay_to_start)
    order = OrderConfig(seed=config.seed, batch_size=recipe.batch_size, num_lanes=config.num_lanes)
    stream = Stream(
        selection,
        order,
        FinetuneView(recipe.resize_px, recipe.crop_px, flip=config.flip, crop=config.crop),
        rank=world.rank,
        num_ranks=world.num_ranks,
        loader=sized(config.loader, world),
    )
    module = distributed(world, model)
    module.train()
    queued = None
    try:
        for step in range(recipe.steps):
            batch = to_device(next(stream), num_classes, world.device)
            share = len(batch.images_BCHW) * world.num_ranks / recipe.batch_size
            if recipe.mixup_alpha is not None:
                weight = float(rng(config.seed, "mixup", step).beta(recipe.mixup_alpha, recipe.mixup_alpha))
                batch = mixup(batch, weight, order.samples_per_lane())
            rate = finetune_learning_rate(recipe, step) or 0.0
            following = train_step(
                module,
                optimizer,
                batch,
                LOSSES["softmax"],
                rate,
                config.microbatch_size,
                share=share,
                precision=config.precision,
            )
            if queued:
                on_step(step, queued.result().loss)
            queued = following
        if queued:
            on_step(recipe.steps, queued.result().loss)
    finally:
        stream.close()
    average_buffers(world, model)


def as_line(row: dict[str, Any]) -> str:
    """Return a reported row as one line for people."""
    if "accuracy" in row:
        return (
            f"{row['name']}: accuracy {row['accuracy']:.1%} [{row['low']:.1%}, {row['high']:.1%}] "
            f"on {row['num_test']:,} test pictures, {row['num_train']:,} for training"
        )
    return f"{row['run']}: step {row['step']:,}/{row['num_steps']:,}  loss {row['loss']:.4f}"


def mixup(batch: TensorBatch, weight: float, samples_per_lane: int) -> TensorBatch:
    """Mix each sample with its mirror place in its lane, with one weight for the whole step.

    Partners stay inside a lane, so the global batch does not depend on the number of ranks.
    """

    def mix(values: torch.Tensor) -> torch.Tensor:
        partners = values.reshape(-1, samples_per_lane, *values.shape[1:]).flip(1).reshape(values.shape)
        return values * weight + partners * (1.0 - weight)

    return TensorBatch(mix(batch.images_BCHW), mix(batch.targets_BK))


def _write(store: Store, key: str, body: bytes) -> None:
    """Write an object that an interrupted start may have left; it counts only once its result is there."""
    store.delete(key)
    store.create(key, body)


def read_results(store: Store) -> list[dict[str, Any]]:
    """Return all results of a fine-tuning folder, by name."""
    return [json.loads(store.read(entry.key)) for entry in store.list("results/")]


def subset_table(selection: Selection) -> bytes:
    """Return the chosen addresses of a view as Parquet, so that a few-shot subset can be named in a paper."""
    rows = [{"shard": shard, "row": row} for shard, row in selection.addresses or ()]
    return to_parquet(table_of(rows, pa.schema([("shard", pa.int32()), ("row", pa.int32())])))
