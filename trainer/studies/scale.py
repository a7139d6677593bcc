"""At which scale studies run: models, datasets, lengths and seeds, fixed in a TOML file before the first run."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from pipeline.base.errors import ConfigError
from pipeline.base.records import Record
from pipeline.base.toml import read_toml
from pipeline.packing.foreign_tars.open_any import absolute_pattern
from pipeline.store.any_url import join
from trainer.recipes.search import SearchSpace

SCALES = ("tiny", "mini", "mini-duplicates", "full")  # that come with the package

Share = Annotated[float, Field(gt=0, le=1)]
R = TypeVar("R", bound=Record)


class UpstreamData(Record):
    """A set to pretrain on.

    Attributes:
        train: Dataset, seen from the data folder.
        test: Dataset of the same classes.
        recipe: Of `trainer.recipes.pretrain`.
        fraction: Share of its pictures that is trained on.
        duplicates: Parquet files with `shard` and `row` of near-duplicates of the tasks' test pictures in it.
    """

    train: str
    test: str | None = None
    recipe: str = "bit-s"
    fraction: Share = 1.0
    duplicates: tuple[str, ...] = ()


class Task(Record):
    """A set to transfer to.

    Attributes:
        data: Folder with `train` and `test`, and `train800` and `val200` where the task has these splits.
        duplicates: By upstream set, Parquet files with `shard` and `row` of test pictures with near-duplicates in it.
    """

    data: str
    duplicates: dict[str, str] = Field(default_factory=dict)


class Norms(Record):
    """Of the study of norms.

    Attributes:
        upstream: Set that is pretrained on.
        model: Without the suffix of a norm; that of the scale by default.
        microbatches: Pictures over which BatchNorm takes its statistics: the large case, then the small one.
    """

    upstream: str
    model: str | None = None
    microbatches: tuple[PositiveInt, PositiveInt]


class Schedule(Record):
    """Of the study of schedules.

    Attributes:
        budgets: Lengths of pretraining, as multiples of that of the smallest set; ascending.
        model: Of all but the budgets, which take that of the scale, as these do by default.
        larger: Set that is compared with the smallest one at these budgets; the largest one by default.
        early: Share of the schedule at which the learning rate is decayed early.
        decays: Weight decays: the lower, then that of the paper.
        halfway: Share of the run after which the lower one looks better.
        adam_lr_per_256: Learning rate of a pretraining with Adam beside the recipe's; None for no such run.
    """

    budgets: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1, 3, 10)
    model: str | None = None
    larger: str | None = None
    early: Share = 0.5
    decays: tuple[PositiveFloat, PositiveFloat] = (1e-5, 1e-4)
    halfway: Share = 0.5
    adam_lr_per_256: PositiveFloat | None = None


class Search(Record):
    """Of the study of random search.

    Attributes:
        trials: Of each task.
        num_train: Pictures that a trial is trained on; of a task with the splits of VTAB that is `train800`.
        num_validation: Pictures that it is chosen by; of such a task `val200`.
        space: Where trials are drawn from.
        upstream: Set whose pretraining they start from; the largest one by default.
        init: URL of a run to start from instead.
        init_step: Of its checkpoint.
    """

    trials: PositiveInt = 40
    num_train: PositiveInt = 800
    num_validation: PositiveInt = 200
    space: SearchSpace = SearchSpace()
    upstream: str | None = None
    init: str | None = None
    init_step: int | None = None


class Scale(Record):
    """A scale.

    Attributes:
        description: For people.
        model: That most studies train.
        models: From the smallest to the largest.
        upstream: Sets to pretrain on, from the smallest to the largest.
        tasks: Sets to transfer to.
        tasks_of: Names of tasks by study; a study that is not named takes all.
        shots: Pictures a class; 0 is the whole training set.
        subsets: Few-shot subsets of each number of shots.
        seeds: Fine-tunings on whole sets are repeated with each; the first is the seed of all else.
        pretrain: Fields of a pretraining; `recipe` holds those in which its recipe differs.
        finetune: Fields of a fine-tuning.
        norms: Of the study of norms.
        schedule: Of the study of schedules.
        search: Of the study of random search.
    """

    description: str
    model: str
    models: tuple[str, ...] = ()
    upstream: dict[str, UpstreamData] = Field(default_factory=dict)
    tasks: dict[str, Task]
    tasks_of: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    shots: tuple[NonNegativeInt, ...] = (0,)
    subsets: PositiveInt = 5
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    pretrain: dict[str, Any] = Field(default_factory=dict)
    finetune: dict[str, Any] = Field(default_factory=dict)
    norms: Norms | None = None
    schedule: Schedule | None = None
    search: Search | None = None

    def tasks_for(self, study: str) -> list[str]:
        """Return the names of a study's tasks."""
        return [name for name in self.tasks if name in self.tasks_of.get(study, self.tasks)]

    @property
    def largest(self) -> str:
        """Name of the largest set to pretrain on."""
        return list(self.upstream)[-1]


def read_scale(name: str, data: str) -> Scale:
    """Return the scale of a TOML file, with absolute places.

    Args:
        name: One of SCALES, or a path.
        data: Folder from which the file's datasets are seen.

    Raises:
        NotFound: There is no such file.
        ConfigError: It is no TOML, or says what no scale has.
    """
    path = Path(str(files("trainer.studies"))) / "scales" / f"{name}.toml" if name in SCALES else Path(name)
    try:
        scale = Scale.model_validate(read_toml(path))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ConfigError(f"{path}: {problems}") from error
    if scale.norms and scale.norms.upstream not in scale.upstream:
        raise ConfigError(f"{path}: norms.upstream {scale.norms.upstream!r} is none of {', '.join(scale.upstream)}")
    if scale.search and scale.search.upstream not in (None, *scale.upstream):
        raise ConfigError(f"{path}: search.upstream {scale.search.upstream!r} is none of {', '.join(scale.upstream)}")
    larger = list(scale.upstream)[1:]
    if scale.schedule and scale.schedule.larger not in (None, *larger):
        raise ConfigError(f"{path}: schedule.larger {scale.schedule.larger!r} is none of {', '.join(larger)}")
    absent = {name for names in scale.tasks_of.values() for name in names} - set(scale.tasks)
    if absent:
        raise ConfigError(f"{path}: tasks_of names {', '.join(sorted(absent))}, which tasks does not list")
    unknown = {name for task in scale.tasks.values() for name in task.duplicates} - set(scale.upstream)
    if unknown:
        raise ConfigError(f"{path}: duplicates are of {', '.join(sorted(unknown))}, which upstream does not list")
    return _located(scale, data)


def as_begun(scale: R, begun: R) -> R:
    """Return a scale where each field that was unknown to the release that began with `begun` is as it is there."""
    changes: dict[str, Any] = {}
    for name in type(scale).model_fields:
        now, then = getattr(scale, name), getattr(begun, name)
        if name not in begun.model_fields_set:
            changes[name] = then
        elif isinstance(now, Record) and isinstance(then, Record):
            changes[name] = as_begun(now, then)
    return scale.model_copy(update=changes)


def _located(scale: Scale, data: str) -> Scale:
    def place(url: str) -> str:
        return absolute_pattern(join(data, url))

    upstream = {
        name: each.model_copy(
            update={
                "train": place(each.train),
                "test": place(each.test) if each.test else None,
                "duplicates": tuple(map(place, each.duplicates)),
            }
        )
        for name, each in scale.upstream.items()
    }
    tasks = {
        name: Task(data=place(task.data), duplicates={key: place(url) for key, url in task.duplicates.items()})
        for name, task in scale.tasks.items()
    }
    return scale.model_copy(update={"upstream": upstream, "tasks": tasks})
