"""Watch runs in a terminal, as a page, in TensorBoard, MLflow and Weights & Biases."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.base.console import echo, examples
from pipeline.base.errors import BitError, ConfigError

if TYPE_CHECKING:
    from pipeline.store.base import Store


@click.command(
    epilog=examples(
        "trainer watch s3://bucket/runs/m              # until it is over; Ctrl-C leaves the run alone",
        "trainer watch runs/tiny --once",
        "trainer watch runs/tiny --every 60 | tee log  # lines, where no terminal is redrawn",
        "trainer watch s3://bucket/runs/m --mlflow http://127.0.0.1:5000   # sends the figures on, until it is over",
        "trainer watch s3://bucket/runs/m --wandb my-project",
    )
)
@click.argument("run")
@click.option("--once", is_flag=True, help="Show it once, and return.")
@click.option(
    "--every",
    "every_seconds",
    default=5.0,
    show_default=True,
    type=click.FloatRange(0.1),
    help="Seconds between looks.",
)
@click.option("--mlflow", "mlflow_uri", metavar="URI", help="Send the figures to this MLflow server instead.")
@click.option("--wandb", "wandb_project", metavar="PROJECT", help="Send the figures to Weights & Biases instead.")
def watch(run: str, once: bool, every_seconds: float, mlflow_uri: str | None, wandb_project: str | None) -> None:
    """Show how RUN stands: step, rate, what is left, loss, held-out accuracy, goodput, saves and what happened lately.

    It reads the run's folder, and needs neither Ray nor a machine of the run. With --mlflow or --wandb it sends every
    figure there as it comes, and what was sent before is not sent again.
    """
    from pipeline.store.url import open_store  # noqa: PLC0415
    from trainer.watching.terminal import watch as show  # noqa: PLC0415

    if mlflow_uri and wandb_project:
        raise ConfigError("--mlflow and --wandb are two trackers; send to each by a command of its own")
    store = open_store(run)
    with suppress(KeyboardInterrupt):  # whoever looks away ends nothing
        if not mlflow_uri and not wandb_project:
            show(store, every_seconds=every_seconds, once=once)
            return
        from trainer.watching.trackers import relay, to_mlflow, to_wandb  # noqa: PLC0415

        name = run.rstrip("/").rpartition("/")[2]
        send, sent_until = (
            to_mlflow(mlflow_uri, store.url, name) if mlflow_uri else to_wandb(str(wandb_project), store.url, name)
        )
        relay(store, send, sent_until, every_seconds=every_seconds, once=once)


@click.command(
    epilog=examples(
        "trainer report runs/tiny --out tiny.html",
        "trainer report s3://bucket/runs/a s3://bucket/runs/b --out both.html   # side by side",
        "trainer report runs/tiny --tensorboard logs                            # then: tensorboard --logdir logs",
    )
)
@click.argument("runs", nargs=-1, required=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="HTML file to write; replaced if there.")
@click.option("--tensorboard", type=click.Path(file_okay=False, path_type=Path), help="Folder of event files to write.")
@click.option(
    "--pictures",
    "num_pictures",
    default=24,
    show_default=True,
    type=click.IntRange(0),
    help="Training pictures to show.",
)
def report(runs: tuple[str, ...], out: Path | None, tensorboard: Path | None, num_pictures: int) -> None:
    """Write an HTML page that opens offline, or TensorBoard files, of RUNs.

    The page has what came out in a sentence, curves, where the time went, and every failure, restart, resize and change
    on one time axis.
    """
    from pipeline.store.url import open_store  # noqa: PLC0415
    from trainer.watching.facts import RunReader  # noqa: PLC0415

    if not out and not tensorboard:
        raise ConfigError("nothing to write; give --out FILE.html, or --tensorboard FOLDER")
    stores = {name: open_store(run) for name, run in short_names(runs).items()}
    facts = {name: RunReader(store).read() for name, store in stores.items()}
    if out:
        from trainer.watching.report import report_page  # noqa: PLC0415

        pictures = {name: _pictures(store, num_pictures) for name, store in stores.items()}
        out.write_bytes(report_page({name: (facts[name], pictures[name]) for name in facts}, time.time()))
        echo(f"wrote {out}")
    if tensorboard:
        from trainer.watching.tensorboard import write_event_files  # noqa: PLC0415

        write_event_files(facts, tensorboard)
        echo(f"wrote {tensorboard}; look at it with: tensorboard --logdir {tensorboard}")


def _pictures(store: "Store", num_pictures: int) -> list[str]:
    from trainer.watching.samples import sample_pictures  # noqa: PLC0415

    if not num_pictures:
        return []
    try:
        return sample_pictures(store, num_pictures)
    except BitError as error:  # a page without pictures is a page
        echo(f"no pictures of {store.url}: {error}", err=True)
        return []


def short_names(runs: Sequence[str]) -> dict[str, str]:
    """Return runs by the last part of their URLs, or by as many parts as tell them apart."""
    parts = [run.rstrip("/").split("/") for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(runs):
            return dict(zip(names, runs, strict=True))
    raise ConfigError("a run is named twice; give each once")
