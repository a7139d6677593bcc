"""Figures of runs as TensorBoard files, through tensorboardX, which Ray brings along."""

from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from trainer.watching.facts import RunFacts
from trainer.watching.scalars import scalars


def write_event_files(runs: Mapping[str, RunFacts], folder: Path) -> None:
    """Write the figures of runs by name, each into a folder of its own; what is there of the same run is replaced.

    Raises:
        OSError: The folder cannot be written.
    """
    for name, facts in runs.items():
        own = folder / name
        for old in own.glob("events.out.tfevents.*"):
            old.unlink()
        with SummaryWriter(str(own)) as writer:
            for figure in scalars(facts):
                writer.add_scalar(figure.tag, figure.value, figure.step, walltime=figure.time)
