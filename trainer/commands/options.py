"""Options that several commands share, and what they stand for."""

from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    from pipeline.work.pools import Pool


class Workers(NamedTuple):
    """How many Ray Train workers a job runs on: as many as there is room for, from the least to the most."""

    least: int
    most: int


class _WorkersType(click.ParamType):  # type: ignore[type-arg]
    name = "N|MIN:MAX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Workers:
        """Return the numbers of N or MIN:MAX."""
        if isinstance(value, Workers):
            return value
        least, colon, most = str(value).partition(":")
        if not least.isdigit() or (colon and not most.isdigit()):
            self.fail(f"{value!r}: write a number, or MIN:MAX such as 2:8", param, ctx)
        workers = Workers(int(least), int(most) if colon else int(least))
        if colon and not 0 < workers.least <= workers.most:
            self.fail(f"{value!r}: MIN is at least 1 and at most MAX", param, ctx)
        return workers


def cluster_options(command: Any) -> Any:
    """Add the options of every command that is launched."""
    for option in (
        click.option(
            "--workers",
            default="1",
            show_default=True,
            type=_WorkersType(),
            help="Ray Train workers; with MIN:MAX as many of them as there is room for, at any time. 0 runs in this "
            "process, without Ray.",
        ),
        click.option("--gpu/--cpu", "use_gpu", default=False, help="One GPU a worker, or one CPU.", show_default=True),
        click.option(
            "--max-failures", default=-1, show_default=True, help="Restarts after a worker died; -1 no limit."
        ),
        click.option("--wait", is_flag=True, help="Wait until the cluster has the workers free, instead of failing."),
        click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Any field of the configuration."),
    ):
        command = option(command)
    return command


def json_option(command: Any) -> Any:
    """Add the option for machines."""
    return click.option("--json", "as_json", is_flag=True, help="Print results as JSON lines.")(command)


def newest_step(run: str) -> int:
    """Return the step of a run's newest checkpoint.

    Raises:
        NotFound: It has none.
    """
    from pipeline.store.url import open_store  # noqa: PLC0415
    from trainer.checkpoint.record import require_latest  # noqa: PLC0415

    return require_latest(open_store(run)).step


def model_of(run: str, step: int | None = None) -> str:
    """Return the model of a run's checkpoint, the newest one by default.

    Raises:
        NotFound: There is no such checkpoint.
    """
    from pipeline.store.url import open_store  # noqa: PLC0415
    from trainer.checkpoint.record import chosen  # noqa: PLC0415

    return str(chosen(open_store(run), step).about["model"])


def probabilities_of(run: str) -> str:
    """Return how a model's logits become probabilities: as its loss takes them; softmax where that is not known.

    Args:
        run: A pretraining run, or a model of a fine-tuning.
    """
    from pipeline.store.url import open_store  # noqa: PLC0415
    from trainer.run.history import config_of_model  # noqa: PLC0415

    config = config_of_model(open_store(run))
    losses = (config.get("loss"), (config.get("recipe") or {}).get("loss"))  # of a fine-tuning, and of a pretraining
    return "sigmoid" if "sigmoid" in losses else "softmax"


def side_by_side_options(command: Any) -> Any:
    """Add the options of where runs are side by side; see `pool_of_runs`."""
    for option in (
        click.option("--gpu/--cpu", "use_gpu", default=False, show_default=True, help="On Ray: one GPU a run."),
        click.option("--ray", "on_ray", is_flag=True, help="Run on the Ray cluster of RAY_ADDRESS, one CPU a run."),
        click.option(
            "--workers", type=click.IntRange(1), help="Runs at a time; by default 1, or on Ray all its CPUs or GPUs."
        ),
    ):
        command = option(command)
    return command


def require_ray_for_gpu(use_gpu: bool, on_ray: bool) -> None:
    """Refuse `--gpu` without Ray, before anything is written.

    Raises:
        ConfigError: A GPU is asked for without Ray.
    """
    from pipeline.base.errors import ConfigError  # noqa: PLC0415

    if use_gpu and not on_ray:
        raise ConfigError("--gpu gives each run a GPU of a Ray cluster; add --ray")


def pool_of_runs(workers: int | None, on_ray: bool, use_gpu: bool) -> "Pool":
    """Return the pool that `side_by_side_options` ask for."""
    from pipeline.work.on_ray import OnRay  # noqa: PLC0415
    from pipeline.work.pools import Processes  # noqa: PLC0415

    return OnRay(workers, use_gpu=use_gpu) if on_ray else Processes(workers or 1)


def require_free_folder(out: str, what: str, marks: tuple[str, ...]) -> None:
    """Refuse an OUT that holds other things than a `what`.

    Raises:
        ConfigError: With some of what is there.
    """
    from pipeline.store.destination import require_free  # noqa: PLC0415
    from pipeline.store.url import open_store  # noqa: PLC0415

    require_free(open_store(out), what, marks)


RUN_MARKS = ("run.json", "failures/")  # one of them is written first, with and without Ray
RESULT_MARKS = ("result.json", "predictions.parquet", "failures/")
