"""All that happened to a run, as lines on one time axis: starts, failures, changes, and its own events; pure."""

import time
from typing import Any, NamedTuple

from pipeline.base.quantities import quantity
from trainer.watching.facts import RunFacts


class Happening(NamedTuple):
    """Something that happened.

    Attributes:
        time: In seconds since 1970.
        kind: started, resumed, failed, saved, changed, or the kind of an event.
        step: Steps done by then; None where nothing tells.
        text: For people.
    """

    time: float
    kind: str
    step: int | None
    text: str


def happenings(facts: RunFacts) -> list[Happening]:
    """Return what happened to a run, in order of time; starts of old releases have no time, and are left out."""
    found = [_start(attempt) for attempt in facts.attempts if "time" in attempt]
    found += [
        Happening(each["time"], "failed", None, f"rank {each['rank']}: {str(each['message']).splitlines()[0]}")
        for each in facts.failures
    ]
    for change in facts.changes:
        settings = ", ".join(f"{name} {change.before.get(name)} → {value}" for name, value in change.after.items())
        found.append(Happening(change.time, "changed", change.step, settings))
    found += [Happening(each["time"], each["kind"], each["step"], _details(each)) for each in facts.events]
    return sorted(found)


def happening_line(happening: Happening) -> str:
    """Return a happening as one line, in the local time."""
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(happening.time))
    step = "" if happening.step is None else f"step {happening.step:,}: "
    return f"{clock}  {happening.kind:<8}  {step}{happening.text}"


def _start(attempt: dict[str, Any]) -> Happening:
    step, ranks = attempt["first_step"], len(attempt["ranks"])
    kind = "resumed" if step else "started"
    return Happening(attempt["time"], kind, step, f"on {quantity(ranks, 'rank')}")


def _details(event: dict[str, Any]) -> str:
    known = {name: value for name, value in event.items() if name not in ("kind", "time", "step")}
    return ", ".join(str(value) if name == "why" else f"{name} {value}" for name, value in known.items())
