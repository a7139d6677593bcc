"""`pipeline`: pack, look at and check datasets."""

import click

from pipeline.base.console import run
from pipeline.commands.checking import gc, repair, verify
from pipeline.commands.packing import append, retry_rejects, shard
from pipeline.commands.showing import export, index, inspect, stats
from pipeline.commands.streaming import bench, peek


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bit-pretrain")
def cli() -> None:
    """Images and labels into WebDataset tars, locally or on S3. Add --debug for tracebacks."""


for command in (shard, append, retry_rejects, inspect, stats, peek, bench, verify, repair, export, index, gc):
    cli.add_command(command)


def main() -> None:
    """Entry point of the `pipeline` command."""
    run(cli)
