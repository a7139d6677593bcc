"""Pretraining: the upstream recipe over the stream; the same function with and without Ray."""

from pipeline.base.errors import ConfigError
from pipeline.image.transforms import PretrainView
from pipeline.store.url import open_store
from pipeline.streaming.order import lanes_of_rank
from trainer.model.architecture import parse_architecture
from trainer.model.build import new_model
from trainer.recipes.data import TrainingData, training_sources
from trainer.recipes.pretrain import PretrainRecipe, pretrain_learning_rate, total_steps
from trainer.run.fit import TrainingRun, fit
from trainer.run.folder import require_same_config
from trainer.run.progress import Report
from trainer.run.settings import RunSettings
from trainer.step.losses import LOSSES
from trainer.step.optimizer import MasterSGD
from trainer.step.ranks import World


class PretrainConfig(TrainingData, RunSettings):
    """A pretraining run; together with the dataset it decides every weight.

    Attributes:
        out: URL of the run folder.
        model: Such as R50x1.
        recipe: Schedule and augmentation.
        sharded: Whether the ranks share parameters, gradients and momentum instead of each holding all.
    """

    out: str
    model: str
    recipe: PretrainRecipe
    sharded: bool = False


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
    config.order(config.recipe.batch_size).samples_per_lane()
    lanes_of_rank(config.num_lanes, 0, max(1, num_workers))
    training_sources(config)


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
    store, recipe = open_store(config.out), config.recipe
    require_same_config(store, world, config)
    sources = training_sources(config)
    dataset = sources[0].selection.dataset
    num_classes = dataset.version.num_classes
    num_samples = sum(source.selection.num_samples for source in sources)
    model = new_model(
        config.model,
        num_classes,
        config.seed,
        device=world.device,
        recomputes=config.recomputes,
        sharded=config.sharded,
    )
    run = TrainingRun(
        store=store,
        world=world,
        settings=config,
        sources=sources,
        order=config.order(recipe.batch_size),
        transform=PretrainView(recipe.resolution_px, flip=recipe.flip),
        model=model,
        optimizer=MasterSGD(model, recipe.momentum, recipe.weight_decay),
        loss=LOSSES[recipe.loss],
        learning_rate=lambda step: pretrain_learning_rate(recipe, step, num_samples),
        num_steps=total_steps(recipe, num_samples),
        num_classes=num_classes,
        about={
            "model": config.model,
            "num_classes": num_classes,
            "classes_sha256": dataset.classes_sha256,
            "data": config.data,
            "data_version": config.data_version,
            "resolution_px": recipe.resolution_px,
        },
    )
    fit(run, report)
