"""What could not run, or would train nothing, is found before any process starts; without torch."""

import math
import shutil
import uuid
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from pipeline.base.errors import ConfigError, StorageFull
from pipeline.base.quantities import human_bytes
from pipeline.dataset.dataset import Dataset
from pipeline.packing.foreign_tars.open_any import open_any
from pipeline.store.url import open_store
from pipeline.streaming.choose import listed_rows
from pipeline.streaming.selection import Selection
from trainer.checkpoint.record import chosen, steps
from trainer.jobs.config import Branch, FinetuneConfig, PretrainConfig
from trainer.jobs.forecast import checkpoint_bytes
from trainer.model.architecture import parse_architecture
from trainer.model.cost import layers
from trainer.recipes.classes import match_classes
from trainer.recipes.data import held_out_selection, selection_without, training_sources
from trainer.recipes.hyperrule import TransferRecipe, hyperrule, rescaled, shortened
from trainer.recipes.pretrain import pretrain_learning_rate, schedule_offset, total_steps
from trainer.run.classes import stored_classes
from trainer.run.history import Change, current_config, has_learned, order_change
from trainer.run.settings import RunSettings
from trainer.tasks.few_shot import few_shot_rows

_NUM_SHARDS_JUDGED = 32  # a choice: all of a set for transfer, and few reads of one of 100,000 shards


def check_pretrain(config: PretrainConfig, num_workers: int) -> None:
    """Refuse what could not run.

    Raises:
        NotFound: A dataset or a list of samples is not there.
        ConfigError: Unknown model, fewer lanes than workers, a batch that the lanes do not divide, other classes,
            shards for a single process, BatchNorm over single pictures, weights and a branch to start from, a start
            from another model, or pictures to be measured on whose classes are not learned.
    """
    if config.sharded and num_workers == 0:
        raise ConfigError("sharded=true spreads the model over Ray workers; give --workers 2 or more, or leave it out")
    if config.ranks_per_replica and (not config.sharded or num_workers % config.ranks_per_replica):
        raise ConfigError(
            f"ranks_per_replica={config.ranks_per_replica} lets so many of the {num_workers} workers share a copy of "
            f"the model: it needs sharded=true, and has to divide their number"
        )
    if config.init and config.branch:
        raise ConfigError("a run starts from --init or from --branch, not from both; leave one out")
    left = current_config(open_store(config.branch.run), PretrainConfig, config.branch.step) if config.branch else None
    if left and left.recipe.optimizer != config.recipe.optimizer:
        raise ConfigError(
            f"{left.out} was trained with {left.recipe.optimizer}, whose momentum does not fit recipe.optimizer="
            f"{config.recipe.optimizer}; leave that, or begin with the weights alone: --init {left.out}"
        )
    _check_batch(config, config.model, config.recipe.batch_size, num_workers)
    classes, store = training_sources(config)[0].selection.dataset.classes, open_store(config.out)
    learned = stored_classes(store) if has_learned(store) else None
    if learned not in (None, classes):
        raise ConfigError(
            f"{config.data} version {config.data_version} has other classes than those that {config.out} has learned; "
            f"start a run with another OUT, with --init {config.out} for its weights"
        )
    if learned is None:
        _check_start(config, training_sources(config)[0].selection.dataset)
    _check_measured(config, classes)


def _check_start(config: PretrainConfig, dataset: Dataset) -> None:
    """Refuse to start from a run of another model, or to go on with one of other classes."""
    starts: list[tuple[str, str, int]] = []
    if config.init is not None and config.init_step is not None:  # a file tells its model when it is read
        starts.append(("--init", config.init, config.init_step))
    if config.branch:
        starts.append(("--branch", config.branch.run, config.branch.step))
    for option, url, step in starts:
        about = chosen(open_store(url), step).about
        if about["model"] != config.model:
            raise ConfigError(
                f"{option} {url} holds {about['model']}, the run is of {config.model}; give --model {about['model']}"
            )
        if option == "--branch" and about["classes_sha256"] != dataset.classes_sha256:
            raise ConfigError(
                f"--branch {url} has learned other classes than those of {config.data}; begin with its weights alone: "
                f"--init {url}"
            )


def _check_measured(config: PretrainConfig, classes: Sequence[str]) -> None:
    """Refuse to measure on pictures whose classes nobody learns."""
    held_out = held_out_selection(config)
    if held_out is not None:
        match_classes(classes, held_out.dataset.classes, config.data, held_out.dataset.store.url)
    for probe in config.probes:
        train, test = open_any(probe.train, probe.train_version), open_any(probe.test, probe.test_version)
        match_classes(train.classes, test.classes, probe.train, probe.test)


def check_out(config: PretrainConfig) -> None:
    """Refuse an OUT that cannot be written, or where the next checkpoint would not fit, before any worker starts.

    Raises:
        StorageError: Says which, and what is missing.
    """
    store = open_store(config.out)
    probe = f"failures/probe-{uuid.uuid4().hex}"  # where a run writes first
    store.create(probe, b"")
    store.delete(probe)
    if "://" in config.out:
        return
    classes = training_sources(config)[0].selection.dataset.version.num_classes
    found = layers(parse_architecture(config.model), classes, config.recipe.resolution_px)
    size = checkpoint_bytes(sum(layer.num_parameters for layer in found), config.num_moments)
    # The newest ones and the best one, and a new one that is written before an old one goes.
    most = config.keep_checkpoints + 1 + (config.held_out is not None)
    free, needed = shutil.disk_usage(config.out).free, size * max(1, most - len(steps(store)))
    if free < needed:
        raise StorageFull(
            f"{config.out} has {human_bytes(free)} free and the run needs {human_bytes(needed)}: a checkpoint takes "
            f"{human_bytes(size)}, and there will be {most} of them at a time; free some, give another OUT, or keep "
            f"fewer with --set keep_checkpoints=1"
        )


def pretrain_warnings(config: PretrainConfig) -> Iterator[str]:
    """Yield a sentence for each setting with which little or nothing would be learned."""
    recipe, sources = config.recipe, training_sources(config)
    num_samples = sum(source.selection.num_samples for source in sources)
    last = total_steps(recipe, num_samples)
    if num_samples < recipe.batch_size:
        yield (
            f"an epoch ({num_samples:,} pictures) is shorter than a batch ({recipe.batch_size:,}): a batch holds "
            f"pictures several times; set a smaller recipe.batch_size"
        )
    if recipe.warmup_steps >= last:
        highest = max(pretrain_learning_rate(recipe, step, num_samples) for step in {0, last - 1})
        yield (
            f"the warm-up ({recipe.warmup_steps:,} steps) is longer than the run ({last:,} steps): the learning "
            f"rate gets to {highest:.2g} of {recipe.base_lr:.2g}; set a smaller recipe.warmup_steps"
        )
    late = [epoch for epoch in recipe.decay_epochs if epoch >= recipe.epochs]
    if late:
        yield (
            f"the run ends after {recipe.epochs:g} epochs, before the learning rate is divided by ten at epoch "
            f"{', '.join(f'{epoch:g}' for epoch in late)}; set recipe.decay_epochs to earlier ones"
        )
    if recipe.loss == "softmax" and any(is_multi_label(source.selection.dataset) for source in sources):
        yield (
            "pictures of the training set have several labels: softmax shares the target among them; "
            "set recipe.loss=sigmoid to learn each label by itself"
        )


def header(config: PretrainConfig) -> str:
    """Return what is about to be trained, in two lines for people."""
    recipe, sources = config.recipe, training_sources(config)
    dataset = sources[0].selection.dataset
    num_samples = sum(source.selection.num_samples for source in sources)
    num_classes = dataset.version.num_classes
    found = layers(parse_architecture(config.model), num_classes, recipe.resolution_px)
    num_parameters, steps = sum(layer.num_parameters for layer in found), num_steps(config, num_samples)
    mixed = f" and {len(config.mix)} more" if config.mix else ""
    return (
        f"{config.model}, {num_parameters:,} parameters, {recipe.resolution_px} px, {config.precision}; "
        f"{config.data} version {config.data_version}{mixed}: {num_samples:,} pictures, {num_classes:,} classes\n"
        f"{steps:,} steps of {recipe.batch_size:,} pictures, {recipe.epochs:g} epochs; at {config.out}"
    )


def num_steps(config: PretrainConfig, num_samples: int) -> int:
    """Return the steps of a run from its beginning to its end, as its schedule and its changes have it."""
    return total_steps(config.recipe, num_samples) - steps_ahead(config, num_samples)


def epochs_done(config: PretrainConfig, step: int, until: float = math.inf) -> float:
    """Return the passes over the data after `step` optimizer steps of a run, by its changes until a step."""
    num_samples = _num_samples(config)
    return (step + steps_ahead(config, num_samples, until)) * config.recipe.batch_size / num_samples


def order_began(config: PretrainConfig, until: float = math.inf) -> Change | Branch | None:
    """Return with what the order of samples began: a change, or the branch; None where it is as old as the run."""
    return order_change(open_store(config.out), until) or config.branch


def steps_ahead(config: PretrainConfig, num_samples: int, until: float = math.inf) -> int:
    """Return by how many steps the schedule is ahead of the steps done, since batch or data were changed; or 0."""
    began = order_began(config, until)
    batch_size = config.recipe.batch_size
    return schedule_offset(began.step, began.epochs_done, num_samples, batch_size) if began else 0


def _num_samples(config: PretrainConfig) -> int:
    return sum(source.selection.num_samples for source in training_sources(config))


def check_finetune(config: FinetuneConfig, num_workers: int) -> None:
    """Refuse what could not run.

    Raises:
        ConfigError: Unknown model, classes of the test set that the training set lacks, the training set as test set,
            too few pictures for the shots, or lanes that workers or batch do not fit.
        NotFound: A dataset is missing.
    """
    train, test = open_any(config.train, config.train_version), test_selection(config).dataset
    if (config.train, config.train_version) == (config.test, config.test_version) and not config.allow_test_on_train:
        raise ConfigError(
            f"{config.train} is training set and test set: its accuracy says nothing of other pictures; give another "
            f"TEST, or --set allow_test_on_train=true if that is meant"
        )
    match_classes(train.classes, test.classes, config.train, config.test, ignore_unknown=config.ignore_unknown_classes)
    if config.shortened and (config.batch_size or config.steps):
        raise ConfigError("shortened says batch and steps already; leave --batch-size and --steps out")
    if config.recipe and (config.shortened or config.batch_size or config.steps):
        raise ConfigError("recipe says all of it already; leave shortened, --batch-size and --steps out")
    for shots in config.shots:
        recipe = recipe_for(config, len(subset_rows(config, train, shots, 0)), (224, 224))
        _check_batch(config, config.model, recipe.batch_size, num_workers)
        if config.order(recipe.batch_size).samples_per_lane() == 1 and recipe.mixup_alpha is not None:
            raise ConfigError(f"MixUp needs two samples a lane; lower num_lanes {config.num_lanes} below the batch")


def finetune_warnings(config: FinetuneConfig) -> Iterator[str]:
    """Yield a sentence for each setting whose figures would not mean what one may think."""
    train, test = open_any(config.train, config.train_version), test_selection(config).dataset
    for url, dataset in ((config.train, train), (config.test, test)):
        if config.loss == "softmax" and is_multi_label(dataset):
            yield (
                f"pictures of {url} have several labels: the softmax of fine-tuning shares the target among them, and "
                f"a prediction is counted as right if it is one of them"
            )
    num_unlabelled = sum(not labels for labels in test.all_samples(["labels"])["labels"].to_pylist())
    if num_unlabelled:
        yield f"{num_unlabelled:,} pictures of {config.test} have no label: they are predicted, and not counted"


def test_selection(config: FinetuneConfig) -> Selection:
    """Return the pictures to test on."""
    return selection_without(config.test, config.test_version, config.exclude_test)


def recipe_for(config: FinetuneConfig, num_train: int, nominal_px: tuple[int, int]) -> TransferRecipe:
    """Return the recipe of one run: the HyperRule, rescaled or shortened, or another, if the configuration says so."""
    if config.recipe:
        return config.recipe
    recipe = hyperrule(num_train, *nominal_px, model=config.model, variant=config.rule)
    recipe = rescaled(recipe, config.batch_size, config.steps)
    return shortened(recipe, **config.shortened.model_dump()) if config.shortened else recipe


def subset_rows(config: FinetuneConfig, train: Dataset, shots: int, subset: int) -> npt.NDArray[np.int64]:
    """Return the indices of a subset's samples in the training set, without those that are excluded.

    Raises:
        ConfigError: Classes have fewer samples than shots, or no sample is left.
    """
    kept, allow_fewer = _kept_rows(config, train), config.allow_fewer_shots
    labels = train.all_samples(["labels"])["labels"].take(kept).to_pylist()
    return kept[few_shot_rows(labels, train.classes, shots, config.seed, subset, allow_fewer=allow_fewer)]


def _kept_rows(config: FinetuneConfig, train: Dataset) -> npt.NDArray[np.int64]:
    """Return the indices of the samples of the training set that are not excluded, ascending."""
    samples = train.all_samples([])
    kept = np.ones(samples.num_rows, bool)
    if config.exclude_train:
        shards, rows = (samples[name].to_numpy() for name in ("shard", "row"))
        for shard, excluded in listed_rows(config.exclude_train, train).items():
            kept[(shards == shard) & np.isin(rows, excluded)] = False
    if not kept.any():
        raise ConfigError(f"{config.exclude_train} leaves no sample of {config.train}; give another list")
    return np.flatnonzero(kept)


def is_multi_label(dataset: Dataset) -> bool:
    """Return whether a sample has several labels; a set of very many shards is judged by some of them."""
    shards = np.unique(np.linspace(0, len(dataset.shards) - 1, _NUM_SHARDS_JUDGED).astype(int))
    counts = (pc.list_value_length(dataset.samples(shard)["labels"]) for shard in shards.tolist())
    return any((pc.max(count).as_py() or 0) > 1 for count in counts)


def _check_batch(settings: RunSettings, model: str, batch_size: int, num_workers: int) -> None:
    num_ranks = max(1, num_workers)
    norm, num_parts = parse_architecture(model).norm, settings.num_microbatches(batch_size, num_ranks)
    if norm == "group":
        return
    if settings.recomputes:
        raise ConfigError(
            f"recomputes=true counts statistics of {model} twice a step; set recomputes=false, or take GN"
        )
    for num_samples in settings.samples_by_rank(batch_size, num_ranks):
        if norm == "batch" and not getattr(settings, "sharded", False):  # ranks need not wait for each other
            num_parts = math.ceil(num_samples / settings.microbatch_size)
        if num_samples // num_parts == 1:
            raise ConfigError(
                f"{model} normalises over the pictures of a micro-batch, and one would hold a single picture "
                f"({num_samples} a rank in {num_parts} micro-batches); change microbatch_size"
            )
