"""A run in the terminal: its state, a curve of its loss, and what happened lately; redrawn until it is over."""

import itertools
import sys
import time
from collections.abc import Sequence
from typing import Any

from pipeline.base.console import echo
from pipeline.base.text import printable
from pipeline.store.base import Store
from trainer.watching.facts import RunFacts, RunReader
from trainer.watching.happenings import happening_line, happenings
from trainer.watching.state import state_lines, state_of

_NUM_HAPPENINGS = 6
_NUM_BARS = 60
_BARS = "▁▂▃▄▅▆▇█"


def watch(store: Store, *, every_seconds: float, once: bool) -> None:
    """Show a run until it is over; a terminal is redrawn, anything else gets the lines again when the step changes.

    Args:
        store: The run's folder.
        every_seconds: Between two looks.
        once: Whether to show it once and return.

    Raises:
        NotFound: There is no run.
    """
    reader = RunReader(store)
    if once or not sys.stdout.isatty():
        _print_lines(reader, every_seconds, once=once)
        return
    from rich.live import Live  # noqa: PLC0415 - 60 ms that `--help` need not pay
    from rich.text import Text  # noqa: PLC0415

    with Live(auto_refresh=False) as live:
        while True:
            facts = reader.read()
            state = state_of(facts, time.time())
            live.update(Text("\n".join(lines_of(facts))), refresh=True)
            if state.is_over:
                return
            time.sleep(every_seconds)


def _print_lines(reader: RunReader, every_seconds: float, *, once: bool) -> None:
    shown: Any = None
    while True:
        facts = reader.read()
        state = state_of(facts, time.time())
        if (state.word, state.step) != shown:
            shown = (state.word, state.step)
            echo("\n".join(lines_of(facts)))
        if once or state.is_over:
            return
        time.sleep(every_seconds)


def lines_of(facts: RunFacts) -> list[str]:
    """Return a run as lines: its state, the curve of its loss, what happened lately."""
    lines = state_lines(facts, state_of(facts, time.time()))
    losses = [row["loss"] for row in facts.rows]
    if len(losses) > 1:
        lines.append(f"loss      {bars(losses)}  {max(losses):.3g} to {min(losses):.3g}")
    lately = happenings(facts)[-_NUM_HAPPENINGS:]
    shown = [*lines, "", *(happening_line(each) for each in lately)] if lately else lines
    return [printable(line) for line in shown]


def bars(values: Sequence[float]) -> str:
    """Return numbers as a line of bars, each the mean of equally many of them."""
    width = min(_NUM_BARS, len(values))
    edges = [round(place * len(values) / width) for place in range(width + 1)]
    means = [sum(values[low:high]) / (high - low) for low, high in itertools.pairwise(edges)]
    span = (max(means) - min(means)) or 1.0
    return "".join(_BARS[round((mean - min(means)) / span * (len(_BARS) - 1))] for mean in means)
