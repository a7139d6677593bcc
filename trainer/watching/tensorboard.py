"""Rows of metrics and measurements as TensorBoard files, through tensorboardX, which Ray brings along."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from trainer.watching.facts import RunFacts

_NOT_SCALARS = ("attempt", "time", "step", "num_steps", "limiting_stage")


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
            for tag, value, step, at in scalars(facts):
                writer.add_scalar(tag, value, step, walltime=at)


def scalars(facts: RunFacts) -> Iterator[tuple[str, float, int, float | None]]:
    """Yield tag, value, step and time of every figure of a run; None for the time where it was not kept."""
    for row in facts.rows:
        for name, value in row.items():
            if name not in _NOT_SCALARS and isinstance(value, int | float):
                yield f"train/{name}", float(value), row["step"], row.get("time")
    for each in facts.evaluations:
        step, at = each["step"], each.get("time")
        for name in ("loss", "accuracy") if "held_out" in each else ():
            yield f"held_out/{name}", float(each["held_out"][name]), step, at
        for name, by_shots in each.get("few_shot", {}).items():
            for shots, found in by_shots.items():
                yield f"few_shot/{name}/{shots}", float(found["mean"]), step, at
