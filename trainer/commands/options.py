"""Options that several commands share, and what they stand for."""

from typing import Any

import click


def cluster_options(command: Any) -> Any:
    """Add the options of every command that is launched."""
    for option in (
        click.option(
            "--workers",
            default=1,
            show_default=True,
            type=click.IntRange(0),
            help="Ray Train workers; 0 runs in this process, without Ray.",
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


def run_and_step(text: str) -> tuple[str, int | None]:
    """Return the URL and the step of RUN or RUN@STEP."""
    from pipeline.store.url import absolute_url  # noqa: PLC0415

    place, at, step = text.rpartition("@")
    if at and step.isdigit():
        return absolute_url(place), int(step)
    return absolute_url(text), None


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
