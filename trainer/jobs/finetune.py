"""Fine-tuning with the HyperRule on full or few-shot training sets; from a pretrained run or from scratch.

A sweep is a list of runs, one for each number of shots and each subset. Each has a folder of its own below `models/`,
with its checkpoints, and goes on from its newest one; it is done when its result is written.
"""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from pipeline.base.errors import ConfigError, NonFinite
from pipeline.base.records import Record
from pipeline.base.seeds import rng
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.schema import table_of, to_parquet
from pipeline.image.transforms import FinetuneView
from pipeline.packing.foreign_tars.open_any import open_any
from pipeline.store.base import Store, exists
from pipeline.store.url import open_store
from pipeline.streaming.order import lanes_of_rank
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import WeightedSelection
from trainer.checkpoint.record import latest, require_latest
from trainer.checkpoint.retention import discard_old
from trainer.checkpoint.sharded import load, save
from trainer.jobs.evaluate import check_classes, predict
from trainer.model.architecture import parse_architecture
from trainer.model.build import new_model
from trainer.model.network import ResNetV2
from trainer.recipes.data import selection_without
from trainer.recipes.hyperrule import TransferRecipe, finetune_learning_rate, hyperrule, shortened
from trainer.run.fit import TrainingRun, fit
from trainer.run.folder import begin_attempt, require_same_config
from trainer.run.progress import Report, metrics_line
from trainer.run.settings import RunSettings
from trainer.scores.predictions import summary
from trainer.step.losses import LOSSES
from trainer.step.optimizer import MasterSGD, model_state
from trainer.step.ranks import World, broadcast
from trainer.step.tensors import TensorBatch
from trainer.tasks.few_shot import few_shot_rows

SCRATCH = "scratch"


class Shortened(Record):
    """The HyperRule's schedule at another length, batch and resolution, for work on a CPU."""

    steps: PositiveInt
    batch_size: PositiveInt
    resize_px: PositiveInt
    crop_px: PositiveInt


class FinetuneConfig(RunSettings):
    """A sweep of fine-tuning runs, one for each number of shots and each subset.

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
        flip: False for tasks whose label depends on direction.
        crop: False for tasks whose label depends on position.
        dropout: Share of the features before the head that training drops; none by the HyperRule.
        decay_to_start: Weight decay towards the initial weights (L2-SP); none by the HyperRule.
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
    flip: bool = True
    crop: bool = True
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    decay_to_start: NonNegativeFloat = 0.0


class SweepRun(NamedTuple):
    """One run of a sweep.

    Attributes:
        shots: Pictures a class; 0 for the whole training set.
        subset: Number of the few-shot subset.
    """

    shots: int
    subset: int

    @property
    def name(self) -> str:
        """Name of its files and of its folder below `models/`."""
        return f"{self.shots:04d}-shots-{self.subset}"


def sweep(config: FinetuneConfig) -> list[SweepRun]:
    """Return the runs of a sweep, in the order in which they are trained."""
    return [SweepRun(shots, subset) for shots in config.shots for subset in range(config.num_subsets if shots else 1)]


@dataclass(frozen=True)
class _Sweep:
    config: FinetuneConfig
    world: World
    store: Store
    train: Dataset
    test: Selection
    attempt: str
    report: Report


def finetune(config: FinetuneConfig, world: World, report: Report) -> None:
    """Train what is not done yet and write a result, predictions and weights for each run; every rank must call.

    Raises:
        NotFound: The pretraining run has no checkpoint, or a dataset is missing.
        ConfigError: A class has too few pictures for the shots.
        ResumeMismatch: The results folder belongs to another configuration.
        NonFinite: The loss diverged; names the run, the step and the samples.
    """
    store = open_store(config.out)
    require_same_config(store, world, config)
    train, test = open_any(config.train, config.train_version), _test_selection(config)
    whole = _Sweep(config, world, store, train, test, begin_attempt(store, world, 0), report)
    for run in sweep(config):
        if not broadcast(world, exists(store, f"results/{run.name}.json") if world.is_first else None):
            try:
                _run_one(whole, run)
            except NonFinite as error:
                raise NonFinite(f"{run.name}: {error}") from error
        elif world.is_first:
            report(json.loads(store.read(f"results/{run.name}.json")))


def check_finetune(config: FinetuneConfig, num_workers: int) -> None:
    """Refuse what could not run, before any process starts.

    Raises:
        ConfigError: Unknown model, other classes in the test set, too few pictures for the shots, or lanes that
            workers or batch do not fit.
        NotFound: A dataset is missing.
    """
    parse_architecture(config.model)
    train, test = open_any(config.train, config.train_version), _test_selection(config).dataset
    check_classes(config.train, train.classes, config.test, test.classes)
    lanes_of_rank(config.num_lanes, 0, max(1, num_workers))
    for shots in config.shots:
        rows = few_shot_rows(first_labels(train), train.version.num_classes, shots, config.seed, 0)
        recipe = recipe_for(config, len(rows), (224, 224))
        if config.order(recipe.batch_size).samples_per_lane() == 1 and recipe.mixup_alpha is not None:
            raise ConfigError(f"MixUp needs two samples a lane; lower num_lanes {config.num_lanes} below the batch")


def _test_selection(config: FinetuneConfig) -> Selection:
    return selection_without(config.test, config.test_version, config.exclude_test)


def first_labels(dataset: Dataset) -> npt.NDArray[np.int64]:
    """Return the first label of every sample, -1 without label, shape (samples,)."""
    labels = dataset.all_samples(["labels"])["labels"].to_pylist()
    return np.array([sample[0] if sample else -1 for sample in labels], np.int64)


def _run_one(whole: _Sweep, run: SweepRun) -> None:
    """Train one run, unless it is trained already, and write what it is worth."""
    config, world, store = whole.config, whole.world, whole.store
    selection, nominal_px = _training_selection(config, whole.train, run)
    recipe = recipe_for(config, selection.num_samples, nominal_px)
    num_classes = max(whole.train.version.num_classes, whole.test.dataset.version.num_classes)
    about = {
        "model": config.model,
        "num_classes": num_classes,
        "classes_sha256": whole.train.classes_sha256,
        "resolution_px": recipe.crop_px,
    }
    folder = open_store(f"{config.out.rstrip('/')}/models/{run.name}")
    trained = latest(folder)
    is_trained = trained is not None and "result" in trained.about
    model = initial_model(config, world, num_classes)
    if trained and is_trained:  # a start that died before it wrote the result
        load(folder, world, trained, model_state(model))
    else:
        training = _training_run(whole, folder, selection, model, recipe, about)
        fit(training, lambda row: whole.report({"run": run.name, **row}))
    predictions = predict(model, whole.test, world, recipe.crop_px, config.microbatch_size)
    result = {"name": run.name, "init": config.init, "shots": run.shots, "subset": run.subset}
    result |= {"num_train": selection.num_samples} | summary(predictions) | {"recipe": recipe.model_dump()}
    if not is_trained:
        about |= {"result": result}
        save(folder, world, model_state(model), step=recipe.steps, attempt=whole.attempt, stream={}, about=about)
    if world.is_first:
        discard_old(folder, 1)
        if run.shots:
            _write(store, f"subsets/{run.name}.parquet", subset_table(selection))
        _write(store, f"predictions/{run.name}.parquet", to_parquet(predictions))
        store.create(f"results/{run.name}.json", (json.dumps(result, indent=1) + "\n").encode())
        whole.report(result)
    broadcast(world, None)


def _training_selection(config: FinetuneConfig, train: Dataset, run: SweepRun) -> tuple[Selection, tuple[int, int]]:
    """Return the subset and the nominal (height, width) of the task: the medians of the training set."""
    samples = train.all_samples(["width", "height"])
    nominal = int(np.median(samples["height"].to_numpy())), int(np.median(samples["width"].to_numpy()))
    if run.shots == 0:
        return Selection(train), nominal
    rows = few_shot_rows(first_labels(train), train.version.num_classes, run.shots, config.seed, run.subset)
    chosen = samples.select(["shard", "row"]).take(rows)
    by_shard: dict[int, list[int]] = {}
    for shard, row in zip(chosen["shard"].to_pylist(), chosen["row"].to_pylist(), strict=True):
        by_shard.setdefault(shard, []).append(row)
    return Selection(train, by_shard), nominal


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


def _training_run(
    whole: _Sweep, folder: Store, selection: Selection, model: ResNetV2, recipe: TransferRecipe, about: dict[str, Any]
) -> TrainingRun:
    config, order, alpha = whole.config, whole.config.order(recipe.batch_size), recipe.mixup_alpha

    def mix(step: int, batch: TensorBatch) -> TensorBatch:
        weight = float(rng(config.seed, "mixup", step).beta(alpha, alpha)) if alpha else 1.0
        return mixup(batch, weight, order.samples_per_lane())

    return TrainingRun(
        store=folder,
        world=whole.world,
        settings=config,
        sources=[WeightedSelection(selection)],
        order=order,
        transform=FinetuneView(recipe.resize_px, recipe.crop_px, flip=config.flip, crop=config.crop),
        model=model,
        optimizer=MasterSGD(model, recipe.momentum, 0.0, decay_to_start=config.decay_to_start),
        loss=LOSSES["softmax"],
        learning_rate=lambda step: finetune_learning_rate(recipe, step) or 0.0,
        num_steps=recipe.steps,
        num_classes=about["num_classes"],
        about=about,
        mix=mix if alpha else None,
        saves_last=False,  # the weights alone are saved with their result
    )


def result_line(row: dict[str, Any]) -> str:
    """Return a reported row as one line for people."""
    if "name" in row:
        return (
            f"{row['name']}: accuracy {row['accuracy']:.1%} [{row['low']:.1%}, {row['high']:.1%}] "
            f"on {row['num_test']:,} test pictures, {row['num_train']:,} for training"
        )
    return f"{row['run']}: {metrics_line(row)}"


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
