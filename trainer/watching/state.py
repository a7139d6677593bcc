"""How a run stands, from what its folder tells: pure."""

from dataclasses import dataclass
from statistics import median
from typing import Any

from pipeline.base.quantities import human_bytes, human_seconds, quantity
from trainer.run.evaluations import best_of
from trainer.run.goodput import TimeClasses
from trainer.watching.facts import RunFacts

SILENT_SECONDS = 600.0  # without a sign, before a run counts as silent; rows are written every half minute
_STOPPED_SECONDS = 60.0  # after the wish to stop: a run on a node that is taken away goes on for so long
_NUM_ROWS = 9  # whose median is the present rate
LOST = {
    "data_wait": "waiting for data",
    "rework": "steps made twice",
    "saving": "saves",
    "evaluation": "evaluation",
    "startup": "start-up",
    "down": "down",
}


@dataclass(frozen=True)
class RunState:
    """How a run stands.

    Attributes:
        word: finished, training, starting, stopping, stopped, failed or silent.
        why: Of a run that stops, stopped or failed; else nothing.
        step: Steps done.
        num_steps: Of the whole run; 0 before the first row.
        row: The last row of metrics; None before the first one.
        images_per_second: Median of the last rows.
        eta_seconds: To the last step at the present rate.
        silent_seconds: Since the last sign of life.
        times: Where the time went.
        num_restarts: Starts after the first one.
        held_out: The last held-out figures with their step.
        best: Those with the highest accuracy.
        checkpoint: Step of the newest checkpoint, and seconds since.
    """

    word: str
    why: str
    step: int
    num_steps: int
    row: dict[str, Any] | None
    images_per_second: float
    eta_seconds: float
    silent_seconds: float
    times: TimeClasses
    num_restarts: int
    held_out: dict[str, Any] | None
    best: dict[str, Any] | None
    checkpoint: tuple[int, float] | None

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be expected unless somebody starts the run again."""
        return self.word in ("finished", "failed", "stopped")


def state_of(facts: RunFacts, now: float) -> RunState:
    """Return how a run stands; `now` is in seconds since 1970."""
    rows = facts.rows
    last = rows[-1] if rows else None
    lately = [row for row in rows[-_NUM_ROWS:] if last and row.get("attempt") == last.get("attempt")]
    step, num_steps = (last["step"], last["num_steps"]) if last else (0, 0)
    seconds_a_step = median([row["eta_seconds"] / max(1, num_steps - row["step"]) for row in lately] or [0.0])
    silent = now - facts.last_sign if facts.last_sign else 0.0
    word, why = _word(facts, silent)
    measured = [each for each in facts.evaluations if "held_out" in each]
    best = best_of(measured, {each["step"] for each in measured})
    newest = facts.checkpoints[-1] if facts.checkpoints else None
    return RunState(
        word=word,
        why=why,
        step=step,
        num_steps=num_steps,
        row=last,
        images_per_second=median([row["images_per_second"] for row in lately] or [0.0]),
        eta_seconds=seconds_a_step * (num_steps - step),
        silent_seconds=silent,
        times=facts.times(now if word in ("silent", "failed") else None),
        num_restarts=max(0, len(facts.attempts) - 1),
        held_out=measured[-1] if measured else None,
        best=next((each for each in measured if each["step"] == best), None),
        checkpoint=(newest[0], now - newest[1]) if newest else None,
    )


def _word(facts: RunFacts, silent_seconds: float) -> tuple[str, str]:
    rows = facts.rows
    if rows and rows[-1]["step"] >= rows[-1]["num_steps"]:
        return "finished", ""
    signs = [(each["time"], "failed", each["message"]) for each in facts.failures if each.get("final")]
    signs += [
        (each["time"], "stopping", str(each.get("why", ""))) for each in facts.events if each["kind"] == "stopping"
    ]
    signs += [(each["time"], "starting", "") for each in facts.attempts if "time" in each]
    signs += [(row["time"], "training", "") for row in facts.all_rows[-1:] if "time" in row]
    if not signs:
        return ("silent" if rows else "starting"), ""
    _, word, why = max(signs)
    if word in ("training", "starting") and silent_seconds > SILENT_SECONDS:
        return "silent", ""
    if word == "stopping" and silent_seconds > _STOPPED_SECONDS:
        return "stopped", why
    return word, why


def state_lines(facts: RunFacts, state: RunState) -> list[str]:
    """Return how a run stands as lines for people."""
    lines = [f"{facts.config.get('model', 'run')} at {facts.url}{_where(facts)}", _first_line(state)]
    row = state.row
    if row:
        wait, limits = row["data_wait_fraction"], row["limiting_stage"]
        rate = f"{state.images_per_second:,.0f} images/s, {wait:.0%} of the time waiting for data ({limits} limits)"
        loss, accuracy = f"loss {row['loss']:.4f}", f"accuracy {row['accuracy']:.1%}"
        lines.append(f"rate      {rate}{_mfu(row)}")
        lines.append(f"training  {loss}, {accuracy}, learning rate {row['learning_rate']:.3g}")
    if state.held_out and state.best:
        lines.append(f"held out  {_measured(state.held_out)}; best {_measured(state.best)}")
    if state.times.wall:
        lines.append(f"goodput   {goodput_text(state)}")
    if state.checkpoint:
        step, age = state.checkpoint
        lines.append(f"saved     step {step:,}, {human_seconds(age)} ago{_save_figures(facts)}")
    return lines


def goodput_text(state: RunState) -> str:
    """Return the goodput, and what the rest of the time was lost to."""
    times = state.times
    lost = {text: getattr(times, name) / times.wall for name, text in LOST.items()}
    parts = ", ".join(f"{text} {share:.1%}" for text, share in lost.items() if share >= 0.0005)
    restarts = f", {quantity(state.num_restarts, 'restart')}" if state.num_restarts else ""
    return f"{times.goodput:.1%} of {human_seconds(times.wall)}{restarts}" + (f" ({parts})" if parts else "")


def _first_line(state: RunState) -> str:
    of = f" of {state.num_steps:,} ({state.step / state.num_steps:.1%})" if state.num_steps else ""
    epoch = f", epoch {state.row['epoch']:.2f}" if state.row else ""
    text = f"{state.word}: step {state.step:,}{of}{epoch}"
    if state.word == "training":
        text += f", {human_seconds(state.eta_seconds)} left"
    if state.word == "silent":
        text += f"; no sign of life for {human_seconds(state.silent_seconds)}"
    return f"{text}; {state.why}" if state.why else text


def _where(facts: RunFacts) -> str:
    ranks = facts.attempts[-1].get("ranks", []) if facts.attempts else []
    if not ranks:
        return ""
    kinds = sorted({rank.get("gpu") or rank.get("device", "") for rank in ranks})
    hosts = {rank.get("host") for rank in ranks}
    return f", {quantity(len(ranks), 'rank')} on {quantity(len(hosts), 'host')} ({', '.join(kinds)})"


def _mfu(row: dict[str, Any]) -> str:
    return f", MFU {row['mfu']:.1%}" if "mfu" in row else ""


def _measured(evaluation: dict[str, Any]) -> str:
    found = evaluation["held_out"]
    return (
        f"{found['accuracy']:.1%} [{found['low']:.1%}, {found['high']:.1%}], loss {found['loss']:.4f} at step "
        f"{evaluation['step']:,}"
    )


def _save_figures(facts: RunFacts) -> str:
    row = next((row for row in reversed(facts.all_rows) if "checkpoint_bytes" in row), None)
    if row is None:
        return ""
    return (
        f"; {human_bytes(row['checkpoint_bytes'])} in {row.get('checkpoint_seconds', 0.0):,.1f} s, the loop waited "
        f"{row.get('checkpoint_stall_seconds', 0.0):,.2f} s"
    )
