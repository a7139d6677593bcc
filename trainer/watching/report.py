"""Runs as one HTML page that opens offline: what came out, the curves, where the time went, and what happened when."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pipeline.base.charts import Series, line_chart
from pipeline.base.html import render_page
from pipeline.base.quantities import human_seconds, quantity
from trainer.run.metrics import Row
from trainer.watching.facts import RunFacts
from trainer.watching.happenings import Happening, happenings
from trainer.watching.state import LOST, RunState, state_of
from trainer.watching.timeline import timeline

_MOST_POINTS = 400  # of a line: more are not seen
_MOST_HAPPENINGS = 300  # in the table; the newest
_MOST_STARTS = 50
# Figures of a row that become charts of their own: title, label of the axis, factor.
_FURTHER = {
    "learning_rate": ("Learning rate", "learning rate", 1.0),
    "images_per_second": ("Throughput", "images/s", 1.0),
    "data_wait_fraction": ("Waiting for data", "% of the time", 100.0),
    "gradient_norm": ("Gradient norm", "norm", 1.0),
    "goodput": ("Goodput so far", "% of the time", 100.0),
    "mfu": ("Model FLOPs utilisation", "% of the peak", 100.0),
}


@dataclass(frozen=True)
class Shown:
    """A run on the page.

    Attributes:
        name: In legends.
        facts: All that its folder tells.
        state: How it stands.
        pictures: Of its training, as URLs of data; empty where there are none to show.
    """

    name: str
    facts: RunFacts
    state: RunState
    pictures: Sequence[str] = ()

    @property
    def verdict(self) -> str:
        """What came out, in a sentence or two."""
        return verdict(self.facts, self.state)

    @property
    def timeline(self) -> Markup:
        """When it did what."""
        return timeline(self.facts)

    @property
    def happenings(self) -> list[Happening]:
        """What happened to it, the newest last."""
        return happenings(self.facts)[-_MOST_HAPPENINGS:]

    @property
    def starts(self) -> list[dict[str, Any]]:
        """The newest of its starts."""
        return self.facts.attempts[-_MOST_STARTS:]

    @property
    def spent(self) -> list[tuple[str, float]]:
        """Where its time went, in words."""
        times = self.state.times
        return [("steps that were kept", times.steps), *((text, getattr(times, name)) for name, text in LOST.items())]

    @property
    def versions(self) -> dict[str, Any]:
        """Packages and code of its newest start."""
        newest = self.facts.attempts[-1] if self.facts.attempts else {}
        found = newest.get("packages", {}) | {"wheel": newest.get("code", {}).get("wheel_sha256")}
        return {name: value for name, value in found.items() if value is not None}


def report_page(folders: Mapping[str, tuple[RunFacts, Sequence[str]]], now: float) -> bytes:
    """Return the page of one run, or of several side by side.

    Args:
        folders: By name what each run folder tells, and its pictures.
        now: In seconds since 1970.
    """
    runs = [Shown(name, facts, state_of(facts, now), pictures) for name, (facts, pictures) in folders.items()]
    return render_page(
        "trainer.watching",
        "report.html.j2",
        title="Training run" if len(runs) == 1 else f"{len(runs)} training runs",
        runs=runs,
        charts=[(title, chart) for title, chart in _charts(runs) if chart],
        settings=_settings(runs),
        made=_clock(now),
        clock=_clock,
        seconds=human_seconds,
    )


def verdict(facts: RunFacts, state: RunState) -> str:
    """Return what came out of a run, in a sentence or two."""
    of = f" of {state.num_steps:,}" if state.num_steps else ""
    stands = {
        "finished": f"finished all {state.num_steps:,} steps",
        "training": f"is at step {state.step:,}{of}, with {human_seconds(state.eta_seconds)} left",
        "starting": f"is starting at step {state.step:,}{of}",
        "stopping": f"is stopping at step {state.step:,}{of} ({state.why})",
        "stopped": f"was stopped at step {state.step:,}{of} ({state.why})",
        "failed": f"failed at step {state.step:,}{of}: {state.why}",
        "silent": f"gave no sign of life for {human_seconds(state.silent_seconds)} after step {state.step:,}{of}",
    }[state.word]
    text = f"{facts.config.get('model', 'The run')} {stands}"
    if state.best:
        found = state.best["held_out"]
        text += (
            f"; its best held-out accuracy is {found['accuracy']:.1%} [{found['low']:.1%}, {found['high']:.1%}] of "
            f"{quantity(found['num_test'], 'picture')}, after step {state.best['step']:,}"
        )
    elif state.row:
        text += f"; training loss {state.row['loss']:.3f}, accuracy {state.row['accuracy']:.1%}"
    times = state.times
    if times.wall:
        restarts = f", over {quantity(state.num_restarts, 'restart')}" if state.num_restarts else ""
        text += f". {times.goodput:.1%} of {human_seconds(times.wall)} went into steps that were kept{restarts}"
    return f"{text}."


def _charts(runs: Sequence[Shown]) -> Iterator[tuple[str, Markup]]:
    if len(runs) == 1:
        run = runs[0]
        yield _together("Loss", "loss", _line(run, "training", "loss"), _held_out(run, "held out", "loss"))
        yield _together(
            "Accuracy",
            "accuracy in %",
            _line(run, "training", "accuracy", 100.0),
            _held_out(run, "held out", "accuracy", 100.0),
        )
    else:
        yield _together("Training loss", "loss", *(_line(run, run.name, "loss") for run in runs))
        yield _together("Held-out loss", "loss", *(_held_out(run, run.name, "loss") for run in runs))
        yield _together("Training accuracy", "%", *(_line(run, run.name, "accuracy", 100.0) for run in runs))
        yield _together("Held-out accuracy", "%", *(_held_out(run, run.name, "accuracy", 100.0) for run in runs))
    for key, (title, label, factor) in _FURTHER.items():
        yield _together(title, label, *(_line(run, run.name, key, factor) for run in runs))
    yield from _probes(runs)


def _probes(runs: Sequence[Shown]) -> Iterator[tuple[str, Markup]]:
    """Yield a chart of each set of the few-shot probe, with a line for each number of shots of each run."""
    names = {name for run in runs for each in run.facts.evaluations for name in each.get("few_shot", {})}
    for name in sorted(names):
        lines = []
        for run in runs:
            found = [each for each in run.facts.evaluations if name in each.get("few_shot", {})]
            for shots in found[-1]["few_shot"][name] if found else ():
                points = [(each["step"], 100 * each["few_shot"][name][shots]["mean"]) for each in found]
                prefix = f"{run.name}: " if len(runs) > 1 else ""
                lines.append(Series(f"{prefix}{quantity(int(shots), 'shot')}", points, has_dots=True))
        yield _together(f"Linear probe on {name}", "accuracy in %", *lines)


def _together(title: str, label: str, *lines: Series) -> tuple[str, Markup]:
    return title, line_chart([line for line in lines if line.points], title, "optimizer step", label)


def _line(run: Shown, name: str, key: str, factor: float = 1.0) -> Series:
    return Series(name, _thinned([row for row in run.facts.rows if key in row], key, factor))


def _held_out(run: Shown, name: str, key: str, factor: float = 1.0) -> Series:
    points = [(each["step"], factor * each["held_out"][key]) for each in run.facts.evaluations if "held_out" in each]
    return Series(name, points, has_dots=True)


def _thinned(rows: Sequence[Row], key: str, factor: float) -> list[tuple[float, float]]:
    """Return (step, mean of equally many rows), few enough to draw."""
    size = -(-len(rows) // _MOST_POINTS) or 1
    groups = [rows[first : first + size] for first in range(0, len(rows), size)]
    return [(group[-1]["step"], factor * sum(row[key] for row in group) / len(group)) for group in groups]


def _settings(runs: Sequence[Shown]) -> list[tuple[str, list[Any], bool]]:
    """Return every setting with its value in each run, those in which runs differ first."""
    leaves = [dict(_leaves(run.facts.config)) for run in runs]
    names = list(dict.fromkeys(name for each in leaves for name in each))
    rows = [(name, [each.get(name) for each in leaves]) for name in names]
    marked = [(name, values, any(value != values[0] for value in values)) for name, values in rows]
    return sorted(marked, key=lambda row: not row[2])


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
