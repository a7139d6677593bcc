"""Every figure of a run as tag, value, step and time: what dashboards of other tools show."""

from collections.abc import Iterator
from typing import NamedTuple

from trainer.watching.facts import RunFacts

_NOT_SCALARS = ("attempt", "time", "step", "num_steps", "limiting_stage")


class Scalar(NamedTuple):
    """One figure.

    Attributes:
        tag: Such as `train/loss`.
        value: Of it.
        step: Optimizer steps done.
        time: When it was measured, in seconds since 1970; None where that was not kept.
    """

    tag: str
    value: float
    step: int
    time: float | None


def scalars(facts: RunFacts) -> Iterator[Scalar]:
    """Yield every figure of a run: its rows of metrics by step, then its measurements by step."""
    for row in facts.rows:
        for name, value in row.items():
            if name not in _NOT_SCALARS and isinstance(value, int | float):
                yield Scalar(f"train/{name}", float(value), row["step"], row.get("time"))
    for each in facts.evaluations:
        step, at = each["step"], each.get("time")
        for name in ("loss", "accuracy") if "held_out" in each else ():
            yield Scalar(f"held_out/{name}", float(each["held_out"][name]), step, at)
        for name, by_shots in each.get("few_shot", {}).items():
            for shots, found in by_shots.items():
                yield Scalar(f"few_shot/{name}/{shots}", float(found["mean"]), step, at)
