"""The configurations of the jobs, without torch: a wrong setting is refused before it is imported."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from pipeline.base.records import Record
from trainer.recipes.data import TrainingData
from trainer.recipes.held_out import ProbeSet
from trainer.recipes.hyperrule import TransferRecipe
from trainer.recipes.pretrain import PretrainRecipe
from trainer.run.settings import RunSettings

SCRATCH = "scratch"


class Branch(Record):
    """Where a run leaves another one: it goes on from a checkpoint of it, in a folder of its own.

    Attributes:
        run: URL of the other run.
        step: Of its checkpoint.
        epochs_done: Passes over the data by then.
        skip_steps: Batches of the stream that are left out after it, such as those at which the other run diverged.
    """

    run: str
    step: NonNegativeInt
    epochs_done: NonNegativeFloat
    skip_steps: NonNegativeInt = 0


class PretrainConfig(TrainingData, RunSettings):
    """A pretraining run; together with the dataset it decides every weight.

    Attributes:
        out: URL of the run folder.
        model: Such as R50x1.
        recipe: Schedule and augmentation.
        sharded: Whether the ranks share parameters, gradients and momentum instead of each holding all.
        ranks_per_replica: Ranks that share a copy where sharded, such as the GPUs of a node; None for all ranks.
        init: URL of a run or of a file of weights to start from; None for new weights.
        init_step: Of the run's checkpoint; None with a file.
        branch: The run that this one goes on from, with its momentum and its place in the data; None for none.
        average_decay: Share of the moving average of the weights that each step keeps, such as 0.9999; the average is
            what is measured, evaluated, exported and fine-tuned. None for none, as in the paper.
        evaluate_every_steps: Steps between two measurements on what is held out, and on the probe's sets.
        probes: Labelled sets for the linear few-shot probe.
    """

    out: str
    model: str
    recipe: PretrainRecipe
    sharded: bool = False
    ranks_per_replica: PositiveInt | None = None
    init: str | None = None
    init_step: int | None = None
    branch: Branch | None = None
    average_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    evaluate_every_steps: PositiveInt = 1000
    probes: tuple[ProbeSet, ...] = ()

    @property
    def num_moments(self) -> int:
        """Numbers that training keeps for each parameter: those of the optimizer, and the average."""
        return self.recipe.num_moments + (self.average_decay is not None)


class Shortened(Record):
    """The HyperRule's schedule at another length, batch and resolution, for work on a CPU.

    Attributes:
        base_lr: Learning rate; None for the rule's, at which few steps may learn little.
    """

    steps: PositiveInt
    batch_size: PositiveInt
    resize_px: PositiveInt
    crop_px: PositiveInt
    base_lr: PositiveFloat | None = None


class FinetuneConfig(RunSettings):
    """A sweep of fine-tuning runs, one for each number of shots and each subset.

    Attributes:
        init: URL of a pretraining run, or `scratch`.
        init_step: Of the run's checkpoint; None from scratch, or for the newest one.
        model: Such as R50x1; that of the run unless from scratch.
        train: URL of the training set.
        train_version: Its manifest version.
        test: URL of the test set.
        test_version: Its manifest version.
        exclude_train: URL of a Parquet file with `shard` and `row` of training samples to leave out.
        exclude_test: URL of a Parquet file with `shard` and `row` of test samples to leave out, such as an audit's.
        out: URL of the results.
        shots: Pictures a class; 0 means the whole training set.
        num_subsets: Few-shot subsets for each number of shots [paper 4.1: five].
        only_subset: The one of the subsets that is trained on; None for all.
        rule: Variant of the HyperRule.
        shortened: Another length of the schedule, or None for the rule itself.
        batch_size: Global batch other than the rule's; learning rate and steps change to match. None for the rule's.
        steps: Optimizer steps other than the rule's, with its schedule at that length; None for the rule's.
        recipe: All that the rule says, said otherwise; None for the rule.
        loss: Softmax, or sigmoid for pictures with several labels.
        allow_fewer_shots: Whether a class with fewer pictures than shots gives all it has, instead of an error.
        allow_test_on_train: Whether the training set may be the test set.
        ignore_unknown_classes: Whether test pictures of classes that the training set lacks are left out, instead of an
            error. Classes are matched by name.
        flip: False for tasks whose label depends on direction.
        crop: False for tasks whose label depends on position.
        dropout: Share of the features before the head that training drops; none by the HyperRule.
        decay_to_start: Weight decay towards the initial weights (L2-SP); none by the HyperRule.
    """

    init: str
    init_step: int | None = None
    model: str
    train: str
    train_version: int
    test: str
    test_version: int
    exclude_train: str | None = None
    exclude_test: str | None = None
    out: str
    shots: tuple[NonNegativeInt, ...] = (0,)
    num_subsets: PositiveInt = 5
    only_subset: NonNegativeInt | None = None
    rule: Literal["paper", "code"] = "paper"
    shortened: Shortened | None = None
    batch_size: PositiveInt | None = None
    steps: PositiveInt | None = None
    recipe: TransferRecipe | None = None
    loss: Literal["softmax", "sigmoid"] = "softmax"
    allow_fewer_shots: bool = False
    allow_test_on_train: bool = False
    ignore_unknown_classes: bool = False
    flip: bool = True
    crop: bool = True
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    decay_to_start: NonNegativeFloat = 0.0


# Fields of a fine-tuning that sweeps and studies set for each of their runs.
OF_EACH_RUN = (
    "init", "init_step", "model", "train", "train_version", "test", "test_version", "out", "shots", "num_subsets",
    "only_subset", "seed",
)  # fmt: skip


class EvaluateConfig(Record):
    """An evaluation.

    Attributes:
        run: URL of a training run.
        step: Of its checkpoint; None for the newest one.
        data: URL of the test set.
        data_version: Its manifest version.
        exclude: URL of a Parquet file with `shard` and `row` of samples to leave out, such as an audit's.
        ignore_unknown_classes: Whether pictures of classes that the model does not know are left out, instead of an
            error. Classes are matched by name.
        probabilities: Softmax over classes, or the sigmoid of each class, for models with several labels a picture.
        out: URL of the results.
        resolution_px: Side of the input; 0 for that of the run.
        shorter_side_px: To which pictures are resized before the input is cut out of their centre, as for ObjectNet;
            None: the whole picture is resized to the input.
        batch_size: Pictures in one forward pass.
    """

    run: str
    step: int | None = None
    data: str
    data_version: int
    exclude: str | None = None
    ignore_unknown_classes: bool = False
    probabilities: Literal["softmax", "sigmoid"] = "softmax"
    out: str
    resolution_px: NonNegativeInt = 0
    shorter_side_px: PositiveInt | None = None
    batch_size: PositiveInt = 64


PREDICTIONS, EMBEDDINGS = "predictions", "embeddings"


class InferenceConfig(Record):
    """Predictions or embeddings of pictures.

    Attributes:
        run: URL of a training run.
        step: Of its checkpoint; None for the newest one.
        sources: URLs of one dataset, or of pictures, folders, tables and tars.
        data_version: Manifest version of the dataset; None where the sources are something else.
        image_column: Of tables: paths, URLs or image bytes.
        out: URL of the results.
        output: What is written of each picture.
        top: Most probable classes that are listed.
        probabilities: Softmax over classes, or the sigmoid of each class, for models with several labels a picture.
        resolution_px: Side of the input; 0 for that of the run.
        batch_size: Pictures in one forward pass.
        part_size: About how many pictures a file of the results holds; what a start ends in between is done again.
    """

    run: str
    step: int | None = None
    sources: tuple[str, ...]
    data_version: int | None = None
    image_column: str = "image"
    out: str
    output: Literal["predictions", "embeddings"]
    top: PositiveInt = 5
    probabilities: Literal["softmax", "sigmoid"] = "softmax"
    resolution_px: NonNegativeInt = 0
    batch_size: PositiveInt = 64
    part_size: PositiveInt = 1024
