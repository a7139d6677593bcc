"""The runs that studies are made of, by name: a run that two studies ask for is one run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from pipeline.base.errors import ConfigError
from pipeline.base.records import Record
from trainer.jobs.config import SCRATCH, EvaluateConfig, FinetuneConfig, PretrainConfig
from trainer.recipes.pretrain import PretrainRecipe, named_recipe, total_steps, with_epochs
from trainer.studies.scale import Scale

R = TypeVar("R", bound=Record)
SPLITS_OF_SEARCH = ("train800", "val200")  # of tasks of VTAB
SearchPart = Literal["train", "validation", "both"]
_OF_TASKS = ("loss", "flip", "crop")


class DatasetFacts(Record):
    """What is known of a dataset before anything runs.

    Attributes:
        version: Of its manifest.
        num_samples: Pictures.
        is_multi_label: Whether pictures have several labels.
        augmentation: Fields of fine-tuning that its task sets.
        nominal_px: Medians of height and width.
    """

    version: int
    num_samples: int
    is_multi_label: bool = False
    augmentation: dict[str, bool] = Field(default_factory=dict)
    nominal_px: tuple[int, int] = (224, 224)


@dataclass(frozen=True)
class Run:
    """One job of a study.

    Attributes:
        name: Of its folder below `runs/`, and of its result.
        job: Of `trainer.jobs.table`.
        config: In JSON.
        needs: Name of the run that it starts from; None for none.
    """

    name: str
    job: str
    config: str
    needs: str | None = None


@dataclass(frozen=True)
class Grid:
    """All that decides the runs of studies.

    Attributes:
        scale: The scale, with absolute places.
        datasets: Facts by place.
        out: URL of the folder of the studies.
        shares_equal: Whether pretrainings that compute the same are one run; not so in folders of earlier releases.
    """

    scale: Scale
    datasets: Mapping[str, DatasetFacts]
    out: str
    shares_equal: bool = True

    def num_upstream(self, upstream: str) -> int:
        """Return how many pictures of an upstream set are trained on."""
        data = self.scale.upstream[upstream]
        return max(1, round(self.datasets[data.train].num_samples * data.fraction))

    def recipe(self, upstream: str, **changes: Any) -> PretrainRecipe:
        """Return the recipe of an upstream set at this scale; other epochs keep the places of its decays.

        Raises:
            ConfigError: A field of `pretrain.recipe` is wrong.
        """
        recipe = named_recipe(self.scale.upstream[upstream].recipe)
        for fields in (self.scale.pretrain.get("recipe", {}), changes):
            if "epochs" in fields:
                recipe = with_epochs(recipe, fields["epochs"])
            recipe = _validated(PretrainRecipe, recipe.model_dump() | fields, "pretrain.recipe")
        return recipe

    def pretraining(
        self,
        upstream: str,
        *,
        model: str | None = None,
        variant: str = "",
        deduplicated: bool = False,
        recipe: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> Run:
        """Return a pretraining; where its arguments change nothing it is the plain one, which other studies have, too.

        Args:
            upstream: Name of the set.
            model: By default that of the scale.
            variant: What its name says of further arguments; empty where there are none.
            deduplicated: Whether near-duplicates of the tasks' test pictures are left out.
            recipe: Fields in which its recipe differs.
            fields: Further fields of PretrainConfig.

        Raises:
            ConfigError: A field of `pretrain` is wrong.
        """
        model = model or self.scale.model
        plain_fields = {}
        if self.shares_equal and not deduplicated and (upstream, model) == self._looked_at_halfway():
            plain_fields = {"keep_every_steps": self.halfway_step()}
        plain = self._pretraining(upstream, model, "", {}, plain_fields, deduplicated=deduplicated)
        if not variant:
            return plain
        varied = self._pretraining(upstream, model, variant, recipe or {}, fields, deduplicated=deduplicated)
        return plain if self.shares_equal and _computed_alike(plain) == _computed_alike(varied) else varied

    def _looked_at_halfway(self) -> tuple[str, str] | None:
        schedule = self.scale.schedule
        return (self.scale.largest, schedule.model or self.scale.model) if schedule and self.scale.upstream else None

    def halfway_step(self) -> int:
        """Return the step at which the study of schedules looks at pretrainings on the largest set on their way.

        Raises:
            ConfigError: The scale has no `schedule`.
        """
        if self.scale.schedule is None:
            raise ConfigError("the scale has no [schedule]")
        steps = total_steps(self.recipe(self.scale.largest), self.num_upstream(self.scale.largest))
        return max(1, round(self.scale.schedule.halfway * steps))

    def _pretraining(
        self,
        upstream: str,
        model: str,
        variant: str,
        recipe: Mapping[str, Any],
        fields: Mapping[str, Any],
        *,
        deduplicated: bool,
    ) -> Run:
        data = self.scale.upstream[upstream]
        name = "-".join(part for part in (upstream, "deduplicated" if deduplicated else "", model, variant) if part)
        given = {
            "seed": self.scale.seeds[0],
            **{key: value for key, value in self.scale.pretrain.items() if key != "recipe"},
            **fields,
            "data": data.train,
            "data_version": self.datasets[data.train].version,
            "exclude": list_url(self.out, upstream, deduplicated=deduplicated)
            if deduplicated or data.fraction < 1
            else None,
            "model": model,
            "recipe": self.recipe(upstream, **recipe),
            "out": self._folder(f"pretrain/{name}"),
        }
        return Run(f"pretrain/{name}", "pretrain", _validated(PretrainConfig, given, "pretrain").model_dump_json())

    def upstream_test(self, start: Run, upstream: str, *, step: int | None = None) -> Run:
        """Return the test of a pretraining on the test set of an upstream set.

        Args:
            start: The pretraining.
            upstream: Name of the set.
            step: Of its checkpoint; None for its last one.
        """
        test = str(self.scale.upstream[upstream].test)
        at = f"-step-{step}" if step is not None else ""
        name = f"upstream/{start.name.removeprefix('pretrain/')}{at}"
        config = EvaluateConfig(
            run=self._folder(start.name),
            step=step,
            data=test,
            data_version=self.datasets[test].version,
            probabilities=self.recipe(upstream).loss,
            out=self._folder(name),
        )
        return Run(name, "evaluate", config.model_dump_json(), start.name)

    def transfers(
        self, start: Run | None, shots: int, *, model: str | None = None, tasks: Sequence[str] = (), **fields: Any
    ) -> dict[str, list[Run]]:
        """Return the fine-tunings on each task, by task: subsets of few shots, or seeds on whole sets.

        Args:
            start: The pretraining; None from scratch.
            shots: Pictures a class; 0 for whole sets.
            model: By default that of the scale; matters from scratch.
            tasks: Names; by default all.
            fields: Further fields of FinetuneConfig.
        """
        places = (
            [(subset, self.scale.seeds[0]) for subset in range(self.scale.subsets)]
            if shots
            else [(0, seed) for seed in self.scale.seeds]
        )
        return {
            task: [self._transfer(start, task, (shots, *place), model=model, fields=fields) for place in places]
            for task in tasks or self.scale.tasks
        }

    def whole_set_transfers(self, study: str, start: Run) -> dict[str, list[Run]]:
        """Return the fine-tunings on the whole training sets of a study's tasks, by task."""
        return self.transfers(start, 0, tasks=self.scale.tasks_for(study))

    def _transfer(
        self, start: Run | None, task: str, place: tuple[int, int, int], *, model: str | None, fields: Mapping[str, Any]
    ) -> Run:
        shots, subset, seed = place
        model = PretrainConfig.model_validate_json(start.config).model if start else model or self.scale.model
        begins = start.name.removeprefix("pretrain/") if start else f"{SCRATCH}-{model}"
        name = f"finetune/{begins}/{task}/{shots:04d}-shots-{subset}-seed-{seed}"
        given = {
            "init": self._folder(start.name) if start else SCRATCH,
            "model": model,
            "shots": (shots,),
            "num_subsets": self.scale.subsets,
            "only_subset": subset,
            "seed": seed,
            **self.task_fields(task),
            **fields,
        }
        return self.fine_tuning(name, given, start.name if start else None)

    def task_fields(self, task: str) -> dict[str, Any]:
        """Return the fields of FinetuneConfig that a task decides, but for what the scale says otherwise."""
        train, test = (f"{self.scale.tasks[task].data}/{split}" for split in ("train", "test"))
        facts = self.datasets[train]
        return {
            "train": train,
            "train_version": facts.version,
            "test": test,
            "test_version": self.datasets[test].version,
            "loss": "sigmoid" if facts.is_multi_label else "softmax",
            **facts.augmentation,
            **{name: self.scale.finetune[name] for name in _OF_TASKS if name in self.scale.finetune},
        }

    def has_splits_of_search(self, task: str) -> bool:
        """Return whether a task has splits of its own for random search, as VTAB's have."""
        return all(f"{self.scale.tasks[task].data}/{split}" in self.datasets for split in SPLITS_OF_SEARCH)

    def fine_tuning(self, name: str, fields: Mapping[str, Any], needs: str | None) -> Run:
        """Return a fine-tuning with the scale's settings and these fields.

        Raises:
            ConfigError: A field of `finetune` is wrong.
        """
        given = {**self.scale.finetune, **fields, "out": self._folder(name)}
        return Run(name, "finetune", _validated(FinetuneConfig, given, "finetune").model_dump_json(), needs)

    def test_of(self, transfer: Run, name: str, test: str, exclude: str | None = None) -> Run:
        """Return a further test of a fine-tuned model.

        Args:
            transfer: The fine-tuning.
            name: Of the test.
            test: Place of the test set.
            exclude: URL of a list of its pictures that are left out; None for none.
        """
        config = FinetuneConfig.model_validate_json(transfer.config)
        given = EvaluateConfig(
            run=f"{config.out}/models/{config.shots[0]:04d}-shots-{config.only_subset or 0}",
            data=test,
            data_version=self.datasets[test].version,
            exclude=exclude,
            probabilities=config.loss,
            ignore_unknown_classes=config.ignore_unknown_classes,
            out=self._folder(name),
        )
        return Run(name, "evaluate", given.model_dump_json(), transfer.name)

    def _folder(self, name: str) -> str:
        return f"{self.out}/runs/{name}"


def _computed_alike(run: Run) -> PretrainConfig:
    """Return all that decides what a pretraining computes, without where it lies and which checkpoints stay."""
    return PretrainConfig.model_validate_json(run.config).model_copy(update={"out": "", "keep_every_steps": None})


def all_runs(by_task: Mapping[str, Sequence[Run]]) -> list[Run]:
    """Return the runs of all tasks."""
    return [run for runs in by_task.values() for run in runs]


def across_tasks(by_task: Mapping[str, Sequence[Run]]) -> list[list[str]]:
    """Return the replicates of a mean over tasks: the names of the first runs of all tasks, of the second ones, ..."""
    return [[run.name for run in runs] for runs in zip(*by_task.values(), strict=True)]


def list_url(out: str, upstream: str, *, deduplicated: bool) -> str:
    """Return where the list of pictures lies that pretraining on a set leaves out."""
    return f"{out}/lists/{upstream}{'-deduplicated' if deduplicated else ''}.parquet"


def test_list_url(out: str, task: str, upstream: str) -> str:
    """Return where the list of a task's test pictures lies that have a duplicate in an upstream set."""
    return f"{out}/lists/test/{task}-{upstream}.parquet"


def search_list_url(out: str, task: str, part: SearchPart) -> str:
    """Return where the list of training pictures of a task lies that are not in a part of the search's."""
    return f"{out}/lists/search/{task}-{part}.parquet"


def _validated(kind: type[R], given: Mapping[str, Any], where: str) -> R:
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ConfigError(
            f"{where}.{'.'.join(map(str, problem['loc']))} of the scale: {problem['msg']} (got {problem['input']!r})"
        ) from error
