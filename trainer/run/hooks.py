"""What happens between the steps of every run: metrics, measurements, checkpoints, an early end."""

import logging
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from pipeline.base.errors import Interrupted, StorageError
from pipeline.store.lease import Lease
from pipeline.streaming.stream import Stream
from trainer.checkpoint.background import BackgroundSaver
from trainer.checkpoint.interval import seconds_between_failures, seconds_between_saves
from trainer.checkpoint.record import steps
from trainer.checkpoint.retention import Retention
from trainer.run.averages import Averages
from trainer.run.controls import Controls
from trainer.run.efficiency import Efficiency
from trainer.run.evaluations import best_of, read_evaluations, write_evaluation
from trainer.run.events import attempts, write_event
from trainer.run.folder import write_quarantine
from trainer.run.held_out import measure
from trainer.run.lives import ALL_PHASES, STEADY_PHASES, collective_seconds, least_step_seconds
from trainer.run.metrics import MetricsWriter
from trainer.run.progress import Meter, Report
from trainer.run.telemetry import Quarantine, Telemetry
from trainer.run.training import TrainingRun
from trainer.step.loop import Hook, every
from trainer.step.ranks import average_buffers, broadcast, limit_collectives
from trainer.step.step import StepResult

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_CHECKS = 5.0  # of what several ranks have to agree on; a choice: the loop rests for each
_SAVES_BEFORE_DRAIN = 2.0  # the last save begins when twice the time of the one before it is left
_DRAIN_MARGIN_SECONDS = 2 * _SECONDS_BETWEEN_CHECKS
_SECONDS_BETWEEN_LINES = 5.0  # of progress where rows of metrics are further apart


class Start(NamedTuple):
    """What a start of a run works with on one rank."""

    stream: Stream
    quarantine: Quarantine
    telemetry: Telemetry
    attempt: str
    averages: Averages


class Hooks:
    """What happens between the steps of every run."""

    def __init__(
        self,
        run: TrainingRun,
        start: Start,
        report: Report,
        controls: Controls,
        first_step: int,
    ) -> None:
        """Take up a run.

        Args:
            run: The run.
            start: This start of it.
            report: Receives rows of metrics, on rank 0.
            controls: Of the launch.
            first_step: Steps done already.
        """
        self._run, self._start, self._report, self._controls = run, start, report, controls
        self._meter = Meter(first_step, run.num_steps, run.order.batch_size, run.num_samples, run.steps_ahead)
        self._rows = MetricsWriter(run.store, start.attempt)
        self._lease = controls.lease or (Lease.take(run.store) if run.world.is_first else None)
        retention = Retention(newest=run.settings.keep_checkpoints, every_steps=run.settings.keep_every_steps)
        self._saver = BackgroundSaver(run.store, run.world, start.attempt, self._lease, retention)
        self._first_step, self._saved_step = first_step, first_step
        self._next_check = first_step + 1
        self._evaluation_seconds = 0.0
        self._evaluations: dict[int, dict[str, Any]] = {}
        self._best: int | None = None
        self._start_times: list[float] = []
        self._efficiency = Efficiency(run, start.attempt) if run.world.is_first else None
        if run.world.is_first:
            self._evaluations = {row["step"]: row for row in read_evaluations(run.store)}
            self._best = best_of(list(self._evaluations.values()), steps(run.store))
            self._start_times = [each["time"] for each in attempts(run.store) if "time" in each]
        self._stall_seconds = self._write_seconds = 0.0
        self._drain_saves: list[float] = []
        self._began = self._last_line = self._last_save = time.monotonic()

    def in_order(self) -> list[Hook]:
        """Return the hooks: a measurement and the row of a step come before its checkpoint, and an end after all."""
        run, settings, evaluation = self._run, self._run.settings, self._run.evaluation
        is_evaluation = every(evaluation.every_steps, run.num_steps) if evaluation else lambda done: False
        is_interval = every(settings.checkpoint_every_steps or run.num_steps, run.num_steps)
        is_kept = every(settings.keep_every_steps or run.num_steps, run.num_steps)

        def is_checkpoint(done: int) -> bool:
            """Return whether to save: what was measured may be the best, and is there to be used."""
            is_due = is_interval(done) or is_kept(done) or is_evaluation(done)
            return is_due and (run.saves_last or done < run.num_steps)

        return [
            Hook(is_evaluation, self._evaluate),
            Hook(every(settings.log_every_steps, run.num_steps), self._log),
            Hook(is_checkpoint, self._checkpoint),
            Hook(self._is_check, self._do_what_is_wanted),
        ]

    def on_result(self, result: StepResult, num_samples: int) -> None:
        """Take the figures of a step."""
        self._start.averages.add(result, num_samples)
        self._start.telemetry.on_result(result.loss)

    def after_step(self, done: int, batch: Any) -> None:
        """Count a step, and show that it was made."""
        self._start.telemetry.after_step(done, batch)
        self._controls.on_step(done)
        now = time.monotonic()
        if self._run.world.is_first and (
            now - self._last_line >= _SECONDS_BETWEEN_LINES or done == self._first_step + 1
        ):
            self._last_line = now
            seconds = self._seconds_per_step(done)
            left = f"{seconds * (self._run.num_steps - done):,.0f}"
            logger.info("step %s/%s  %.2f s a step  %s s left", f"{done:,}", f"{self._run.num_steps:,}", seconds, left)

    def abandon(self) -> None:
        """Let the checkpoint that is being written become whole, if the other ranks live, whatever ends the run."""
        self._saver.abandon()
        with suppress(StorageError):  # what ends the run is the error to report
            self._rows.close()

    def end(self, done: int) -> None:
        """Keep what is left after the last step."""
        run = self._run
        self._begin_long("save", done)
        self._saver.wait()
        average_buffers(run.world, run.model)
        if run.world.is_first:
            self._rows.close()
        if done < run.num_steps:
            raise Interrupted(
                f"stopped after step {done:,} of {run.num_steps:,}; its state is saved at {run.store.url}: run the "
                f"same command again to go on from there"
            )

    def _begin_long(self, phase: str, done: int) -> None:
        """Show a phase that ranks end at different times, and give the others time to wait for the slowest one."""
        self._limit_collectives(ALL_PHASES, done)
        self._controls.on_phase(phase)

    def _limit_collectives(self, phases: Sequence[str], done: int) -> None:
        seconds = collective_seconds(phases, self._seconds_per_step(done), least_step_seconds())
        limit_collectives(self._run.world, seconds)

    def _seconds_per_step(self, done: int) -> float:
        return (time.monotonic() - self._began) / max(1, done - self._first_step)

    def _evaluate(self, done: int, _: StepResult) -> bool:
        """Measure the network as it is, on all ranks."""
        run, began = self._run, time.monotonic()
        if not run.evaluation:
            return True
        self._begin_long("evaluation", done)
        average_buffers(run.world, run.model)
        with run.optimizer.averaged():  # what is exported
            figures = measure(
                run.model, run.evaluation, run.world, run.loss, lambda: self._controls.on_phase("evaluation")
            )
        seconds = time.monotonic() - began
        self._evaluation_seconds += seconds
        if run.world.is_first:
            self._controls.on_phase("store")
            row = {"step": done, "time": round(time.time(), 3), "seconds": round(seconds, 3), **figures}
            write_evaluation(run.store, row)
            self._evaluations[done] = row
            self._best = best_of(list(self._evaluations.values()), {*steps(run.store), done})
            logger.info("%s", evaluation_line(row, is_best=self._best == done))
        self._controls.on_phase("step")
        return True

    def _log(self, done: int, _: StepResult) -> bool:
        lap = self._start.telemetry.lap()
        figures = self._start.averages.take(self._run.world, lap.wait_fraction)
        self._limit_collectives(STEADY_PHASES, done)  # every rank is here: none loads, measures or saves any more
        if self._run.world.is_first and "loss" in figures:  # else all of its steps were left out
            rate = self._run.learning_rate(done - 1)
            saves = self._saver.take_figures()
            self._stall_seconds = max(self._stall_seconds / 2, saves["checkpoint_stall_seconds"])
            self._write_seconds = saves.get("checkpoint_seconds", self._write_seconds)
            figures |= saves
            if self._evaluation_seconds:
                figures["evaluation_seconds"] = round(self._evaluation_seconds, 4)
            row = self._meter.row(done, lap, learning_rate=rate, **figures)
            row = {"attempt": self._start.attempt, "time": round(time.time(), 3)} | row
            row |= self._efficiency.figures(row) if self._efficiency else {}
            self._start.telemetry.on_row(row)
            self._controls.on_phase("store")
            self._rows.add(row)
            self._report(row)
            self._evaluation_seconds = 0.0
            self._last_line = time.monotonic()
            if self._lease:
                self._lease.check()
            self._controls.on_phase("step")
        return True

    def _checkpoint(self, done: int, _: StepResult) -> bool:
        run, world = self._run, self._run.world
        self._begin_long("save", done)
        if world.is_first:
            self._rows.flush()
        write_quarantine(run.store, done, world.rank, self._start.quarantine.take_rows())
        average_buffers(world, run.model)
        stream = self._start.stream.state_dict()
        best = () if self._best is None else (self._best,)
        self._saver.start(
            run.optimizer.state(),
            step=done,
            stream=stream,
            about=run.about,
            unreported=self._start.averages.unreported(world),
            best=best,
            is_final=done >= run.num_steps,
        )
        self._controls.on_phase("step")
        self._saved_step, self._last_save = done, time.monotonic()
        return True

    def _is_check(self, done: int) -> bool:
        """Return whether the ranks agree now on what is wanted; a single one need not wait for a common step."""
        if self._run.world.num_ranks == 1 and self._controls.wants_stop():
            return True
        return done >= self._next_check

    def _do_what_is_wanted(self, done: int, result: StepResult) -> bool:
        """Save, or end after a checkpoint, if rank 0 is asked to; the ranks agree on when they look again."""
        world = self._run.world
        deadline = self._controls.drain_deadline()
        wish = None
        if world.is_first:
            is_due = self._is_time_to_save(done, deadline)
            left = self._seconds_until_save()
            rest = left if 0 < left < _SECONDS_BETWEEN_CHECKS else _SECONDS_BETWEEN_CHECKS
            pause = max(1, round(rest / max(self._seconds_per_step(done), 1e-3)))
            wish = self._controls.wants_stop(), is_due, pause
        wants_stop, wants_save, pause = broadcast(world, wish)
        self._next_check = done + pause
        if done >= self._run.num_steps:
            return True
        if (wants_stop or wants_save) and self._saved_step != done:
            self._checkpoint(done, result)
        if wants_stop and world.is_first:
            write_event(self._run.store, "stopping", done, why="the run was asked to stop")
        return not wants_stop

    def _is_time_to_save(self, done: int, drain_deadline: float | None) -> bool:
        """Return whether a save is asked for, or due by the interval that loses least or before a node goes."""
        if self._controls.wants_save():
            return True
        if drain_deadline is not None and self._is_last_chance(done, drain_deadline):
            return True
        return self._saver.has_failed or self._seconds_until_save() <= 0

    def _seconds_until_save(self) -> float:
        """Return when a save is due by the interval that loses least, in seconds from now."""
        if self._run.settings.checkpoint_every_steps is not None:
            return math.inf
        failures = seconds_between_failures(self._start_times, time.time())
        interval = seconds_between_saves(self._stall_seconds, self._write_seconds, failures)
        return self._last_save + interval - time.monotonic()

    def _is_last_chance(self, done: int, drain_deadline: float) -> bool:
        """Return whether to save before a node is taken away: at once, and again as late as a save allows.

        The training goes on meanwhile: a group that ends by itself counts as finished.
        """
        left = drain_deadline - time.time()
        is_news = not self._drain_saves
        is_late = (
            len(self._drain_saves) == 1 and left < _SAVES_BEFORE_DRAIN * self._write_seconds + _DRAIN_MARGIN_SECONDS
        )
        if is_news:
            logger.warning("a node is taken away in %.0f s: saving, and going on until then", left)
            write_event(self._run.store, "stopping", done, why=f"a node is taken away in {left:.0f} s")
        if is_news or is_late:
            self._drain_saves.append(time.time())
        return is_news or is_late


def evaluation_line(row: dict[str, Any], *, is_best: bool = False) -> str:
    """Return a measurement as one line for people."""
    parts = [f"step {row['step']:,}: measured in {row['seconds']:,.1f} s"]
    if "held_out" in row:
        found = row["held_out"]
        parts.append(
            f"held out: loss {found['loss']:.4f}, accuracy {found['accuracy']:.1%} [{found['low']:.1%}, "
            f"{found['high']:.1%}] of {found['num_test']:,}{', the best so far' if is_best else ''}"
        )
    for name, by_shots in row.get("few_shot", {}).items():
        shots = ", ".join(f"{number}-shot {found['mean']:.1%}" for number, found in by_shots.items())
        parts.append(f"{name}: {shots}")
    return "; ".join(parts)
