"""`trainer`: the commands that make, describe and move models."""

import click

from pipeline.base.console import run
from trainer.commands import gallery, inference, models, pretraining, studies, sweeps, tasks, transfer, watching


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bit-pretrain")
def cli() -> None:
    """Pretrain BiT models, fine-tune them with the HyperRule, evaluate, use, describe, import and export them.

    Add --debug for tracebacks.
    """


for command in (
    pretraining.pretrain,
    transfer.finetune,
    sweeps.sweep,
    studies.search,
    studies.study,
    transfer.evaluate,
    gallery.gallery,
    gallery.review,
    inference.predict,
    inference.embed,
    tasks.task,
    watching.watch,
    watching.report,
    models.describe,
    models.import_file,
    models.export_file,
):
    cli.add_command(command)


def main() -> None:
    """Entry point of the `trainer` command."""
    run(cli)
