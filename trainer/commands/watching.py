"""Watch runs in a terminal, as a page, and in TensorBoard."""

from contextlib import suppress

import click

from pipeline.base.console import examples


@click.command(
    epilog=examples(
        "trainer watch s3://bucket/runs/m              # until it is over; Ctrl-C leaves the run alone",
        "trainer watch runs/tiny --once",
        "trainer watch runs/tiny --every 60 | tee log  # lines, where no terminal is redrawn",
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
def watch(run: str, once: bool, every_seconds: float) -> None:
    """Show how RUN stands: step, rate, what is left, loss, held-out accuracy, goodput, saves and what happened lately.

    It reads the run's folder, and needs neither Ray nor a machine of the run.
    """
    from pipeline.store.url import open_store  # noqa: PLC0415
    from trainer.watching.terminal import watch as show  # noqa: PLC0415

    with suppress(KeyboardInterrupt):  # whoever looks away ends nothing
        show(open_store(run), every_seconds=every_seconds, once=once)
