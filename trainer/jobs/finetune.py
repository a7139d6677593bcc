"""Fine-tuning with the HyperRule on full or few-shot training sets; from a pretrained run or from scratch.

A sweep is a list of runs, one for each number of shots and each subset. Each has a folder of its own below `models/`,
with its checkpoints, and goes on from its newest one; it is done when its result is written.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median, stdev
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from pipeline.base.errors import CorruptShard, Interrupted, NonFinite, ResumeMismatch
from pipeline.base.records import json_bytes
from pipeline.base.seeds import rng
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.schema import table_of, to_parquet
from pipeline.image.transforms import EvaluationView, FinetuneView
from pipeline.packing.foreign_tars.open_any import open_any
from pipeline.store.base import Store, exists
from pipeline.store.lease import Lease
from pipeline.store.url import open_store
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import WeightedSelection
from trainer.checkpoint.fallback import load_newest
from trainer.checkpoint.retention import Retention, discard_old
from trainer.checkpoint.sharded import save
from trainer.checkpoint.weights import load_into
from trainer.jobs.checks import recipe_for, subset_rows, test_selection
from trainer.jobs.config import SCRATCH, FinetuneConfig
from trainer.jobs.evaluate import TestSet, details, predict
from trainer.model.build import new_model
from trainer.model.network import ResNetV2
from trainer.recipes.classes import match_classes
from trainer.recipes.data import selection_without
from trainer.recipes.hyperrule import TransferRecipe, finetune_learning_rate
from trainer.run.classes import write_classes
from trainer.run.controls import Controls
from trainer.run.fit import fit
from trainer.run.folder import begin_attempt, settled_config
from trainer.run.progress import Report, metrics_line
from trainer.run.training import TrainingRun
from trainer.scores.intervals import interval_of_runs
from trainer.scores.predictions import summary
from trainer.step.losses import LOSSES
from trainer.step.optimizer import MasterOptimizer, model_state
from trainer.step.ranks import World, broadcast
from trainer.step.tensors import TensorBatch


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
    subsets = range(config.num_subsets) if config.only_subset is None else (config.only_subset,)
    return [SweepRun(shots, subset) for shots in config.shots for subset in (subsets if shots else (0,))]


@dataclass(frozen=True)
class _Sweep:
    config: FinetuneConfig
    world: World
    store: Store
    train: Dataset
    test: TestSet
    lists: dict[str, str]
    attempt: str
    report: Report
    controls: Controls


def finetune(config: FinetuneConfig, world: World, report: Report, controls: Controls | None = None) -> None:
    """Train what is not done yet and write a result, predictions and weights for each run; every rank must call.

    Args:
        config: The sweep.
        world: This rank.
        report: Receives rows of metrics, a result for each run, and at the end the means over subsets.
        controls: Of the launch; None for none.

    Raises:
        NotFound: The pretraining run has no checkpoint, or a dataset is missing.
        ConfigError: A class has too few pictures for the shots.
        ResumeMismatch: The results folder belongs to another configuration, or a list of pictures to leave out is
            another one by now.
        NonFinite: The loss diverged; names the run, the step and the samples.
        Interrupted: The sweep was asked to stop; the state of the run is saved.
    """
    store = open_store(config.out)
    config = settled_config(store, world, config)
    train, test = open_any(config.train, config.train_version), test_selection(config)
    labels = match_classes(
        train.classes, test.dataset.classes, config.train, config.test, ignore_unknown=config.ignore_unknown_classes
    )
    controls = controls or Controls()
    if controls.lease is None and world.is_first:
        controls = replace(controls, lease=Lease.take(store))
    attempt = begin_attempt(store, world, 0)
    tests, lists = TestSet(test, train.classes, labels), _lists(config, test)
    whole = _Sweep(config, world, store, train, tests, lists, attempt, report, controls)
    for run in sweep(config):
        found = (exists(store, f"results/{run.name}.json"), controls.wants_stop()) if world.is_first else None
        is_done, wants_stop = broadcast(world, found)
        if is_done:
            result = json.loads(store.read(f"results/{run.name}.json"))
            if any(result.get(name, identity) != identity for name, identity in lists.items()):
                raise ResumeMismatch(
                    f"{config.out}: since {run.name} was done, the lists of pictures to leave out have changed "
                    f"({', '.join(filter(None, (config.exclude_train, config.exclude_test)))}); choose another OUT"
                )
            if world.is_first:
                report(result)
            continue
        if wants_stop:
            raise Interrupted(f"stopped before {run.name}; run the same command again to go on from there")
        try:
            _run_one(whole, run)
        except NonFinite as error:
            raise NonFinite(f"{run.name}: {error}") from error
    if world.is_first:
        for row in means(read_results(store)):
            report(row)


def _lists(config: FinetuneConfig, test: Selection) -> dict[str, str]:
    """Return what tells the lists of pictures to leave out from others: their content decides, not their name."""
    found = {}
    if config.exclude_test:
        found["test_selection"] = test.identity
    if config.exclude_train:
        train = selection_without(config.train, config.train_version, config.exclude_train)
        found["train_selection"] = train.identity
    return found


def means(results: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield for each number of shots with several subsets the mean accuracy, with its 95 % interval.

    Beside it the median, which the paper draws, and the standard deviation.
    """
    for shots in sorted({result["shots"] for result in results}):
        runs = [result for result in results if result["shots"] == shots]
        accuracies = [result["accuracy"] for result in runs]
        if len(runs) > 1:
            low, high = interval_of_runs(runs)
            yield {
                "shots": shots,
                "num_subsets": len(runs),
                "mean_accuracy": fmean(accuracies),
                "low": low,
                "high": high,
                "median_accuracy": median(accuracies),
                "std_accuracy": stdev(accuracies),
            }


def _run_one(whole: _Sweep, run: SweepRun) -> None:
    """Train one run, unless it is trained already, and write what it is worth."""
    config, world, store = whole.config, whole.world, whole.store
    selection, nominal_px = _training_selection(config, whole.train, run)
    recipe = recipe_for(config, selection.num_samples, nominal_px)
    num_classes = len(whole.train.classes)
    about = {
        "model": config.model,
        "num_classes": num_classes,
        "classes_sha256": whole.train.classes_sha256,
        "resolution_px": recipe.crop_px,
    }
    folder = open_store(f"{config.out.rstrip('/')}/models/{run.name}")
    model, init_step = initial_model(config, world, num_classes)
    # Before a checkpoint fills the model: L2-SP pulls towards the pretrained weights.
    optimizer = MasterOptimizer(model, recipe.momentum, 0.0, decay_to_start=config.decay_to_start)
    earlier = _earlier_result(folder, world, model)
    if world.is_first:
        write_classes(folder, whole.train.classes)
    if earlier is None:
        training = _training_run(whole, folder, selection, model, optimizer, recipe, about)
        fit(training, lambda row: whole.report({"run": run.name, **row}), whole.controls)
    if whole.controls.lease:
        whole.controls.lease.check(now=True)
    view = EvaluationView(recipe.crop_px)
    predictions = predict(model, whole.test, world, view, config.microbatch_size, probabilities=config.loss)
    figures = summary(predictions) | details(predictions, whole.train.classes)[0]
    result = {"name": run.name, "init": config.init, "init_step": init_step, "shots": run.shots, "subset": run.subset}
    result |= {"num_train": selection.num_samples} | figures | whole.lists | {"recipe": recipe.model_dump()}
    if earlier is not None:
        result = earlier | figures
    else:
        about |= {"result": result}
        save(folder, world, model_state(model), step=recipe.steps, attempt=whole.attempt, stream={}, about=about)
    if world.is_first:
        discard_old(folder, Retention(newest=1))
        if run.shots:
            _write(store, f"subsets/{run.name}.parquet", subset_table(selection))
        _write(store, f"predictions/{run.name}.parquet", to_parquet(predictions))
        store.create(f"results/{run.name}.json", json_bytes(result))
        whole.report(result)
    broadcast(world, None)


def _earlier_result(folder: Store, world: World, model: ResNetV2) -> dict[str, Any] | None:
    """Fill a model whose training ended, of a start that died before it wrote the result, and return that; or None.

    A run without a sound checkpoint is trained again.
    """
    try:
        record = load_newest(folder, world, lambda _: model_state(model), set_aside=True)
    except CorruptShard:
        return None
    result: dict[str, Any] | None = record.about.get("result") if record else None
    return result


def _training_selection(config: FinetuneConfig, train: Dataset, run: SweepRun) -> tuple[Selection, tuple[int, int]]:
    """Return the subset and the nominal (height, width) of the task: the medians of the training set."""
    samples = train.all_samples(["width", "height"])
    nominal = int(np.median(samples["height"].to_numpy())), int(np.median(samples["width"].to_numpy()))
    if run.shots == 0 and not config.exclude_train:
        return Selection(train), nominal
    rows = subset_rows(config, train, run.shots, run.subset)
    chosen = samples.select(["shard", "row"]).take(rows)
    by_shard: dict[int, list[int]] = {}
    for shard, row in zip(chosen["shard"].to_pylist(), chosen["row"].to_pylist(), strict=True):
        by_shard.setdefault(shard, []).append(row)
    return Selection(train, by_shard), nominal


def initial_model(config: FinetuneConfig, world: World, num_classes: int) -> tuple[ResNetV2, int | None]:
    """Return the pretrained body (or a fresh one) with a head of zeros, and the step of its checkpoint."""
    model = new_model(
        config.model,
        num_classes,
        config.seed,
        device=world.device,
        dropout=config.dropout,
        recomputes=config.recomputes,
    )
    if config.init == SCRATCH:
        return model, None
    body = {name: value for name, value in model_state(model).items() if not name.startswith("model/head.")}
    return model, load_into(open_store(config.init), world, config.init_step, body).step


def _training_run(
    whole: _Sweep,
    folder: Store,
    selection: Selection,
    model: ResNetV2,
    optimizer: MasterOptimizer,
    recipe: TransferRecipe,
    about: dict[str, Any],
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
        optimizer=optimizer,
        loss=LOSSES[config.loss],
        learning_rate=lambda step: finetune_learning_rate(recipe, step) or 0.0,
        num_steps=recipe.steps,
        num_classes=about["num_classes"],
        about=about,
        mix=mix if alpha else None,
        saves_last=False,  # the weights alone are saved with their result
    )


def result_line(row: dict[str, Any]) -> str:
    """Return a reported row as one line for people."""
    if "mean_accuracy" in row:
        return (
            f"{row['shots']} shots: accuracy {row['mean_accuracy']:.1%} [{row['low']:.1%}, {row['high']:.1%}], "
            f"mean of {row['num_subsets']} subsets; median {row['median_accuracy']:.1%}"
        )
    if "name" in row:
        several = row.get("macro_average_precision")
        return (
            f"{row['name']}: accuracy {row['accuracy']:.1%} [{row['low']:.1%}, {row['high']:.1%}] "
            f"on {row['num_test']:,} test pictures, {row['num_train']:,} for training"
            f"{'' if several is None else f'; mean average precision {several:.1%}'}"
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
