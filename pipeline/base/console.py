"""What the three command lines share: one-sentence errors, progress, a machine-readable log."""

import json
import logging
import shutil
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pipeline.base.errors import BitError, ClusterLost, ConfigError, Interrupted
from pipeline.base.logs import show_messages
from pipeline.base.quantities import human_bytes
from pipeline.base.text import printable, printable_log

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_LOST = 75  # EX_TEMPFAIL of sysexits.h: started again, it may go on
EXIT_INTERRUPTED = 130
_MOST_COLUMNS = 100  # longer lines are hard to read
_SECONDS_TO_FIRST_LINE = 1.0
_SECONDS_BETWEEN_LINES = 5.0  # progress where no terminal redraws a bar


def run(group: click.Group) -> None:
    """Run a command group: a user's error is one sentence on stderr; `--debug` anywhere adds the traceback."""
    arguments = sys.argv[1:]
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments  # the rest is a job's command line
    debug = "--debug" in own
    if debug:
        arguments.remove("--debug")
    try:
        show_messages(logging.DEBUG if debug else logging.WARNING)
        code = group.main(args=arguments, standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_USAGE)
    except (click.Abort, KeyboardInterrupt):
        say("stopped; run the same command again to go on", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except Interrupted as stop:
        say(str(stop), err=True)
        sys.exit(EXIT_INTERRUPTED)
    except (BitError, OSError) as error:
        if debug:
            traceback.print_exc()
        say(f"error: {error}", err=True)
        sys.exit(_exit_code(error))
    except Exception as error:  # noqa: BLE001 - the outermost handler: whatever comes is reported in one sentence
        if debug:
            traceback.print_exc()
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        say(f"error: internal error ({message}); run again with --debug and report the traceback", err=True)
        sys.exit(EXIT_FAILED)
    sys.exit(code if isinstance(code, int) else 0)


def _exit_code(error: Exception) -> int:
    if isinstance(error, ConfigError):
        return EXIT_USAGE
    return EXIT_LOST if isinstance(error, ClusterLost) else EXIT_FAILED


def examples(*lines: str) -> str:
    """Return an epilog of example commands that click leaves as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def say(line: str, *, err: bool = False) -> None:
    """Print a line for the user; on a terminal, one that is too wide is folded at its blanks, and its rest indented."""
    line = printable(line)  # whose names it holds may not begin another one
    if (sys.stderr if err else sys.stdout).isatty():
        line = folded(line, min(_MOST_COLUMNS, shutil.get_terminal_size().columns))
    echo(line, err=err)


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print text as it is, but for what would move the cursor or turn text around; colours stay.

    Everything that a command prints goes through here. A name that may hold line ends is escaped by whoever shows it.
    """
    # Not the streams as click remembers them: a bar puts lines above itself.
    click.echo(printable_log(text), file=sys.stderr if err else sys.stdout, nl=nl)


def folded(line: str, num_columns: int) -> str:
    """Return a line in lines of at most `num_columns`, but for single words that are longer."""
    indent = line[: len(line) - len(line.lstrip())] + "    "
    return textwrap.fill(line, num_columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


class EventLog:
    """Appends events as JSON lines to a file; without a path it drops them."""

    def __init__(self, path: str | None) -> None:
        self._file = Path(path).open("a", encoding="utf-8") if path else None  # noqa: SIM115 - open for the run

    def write(self, event: str, **values: Any) -> None:
        """Append {"time", "event", **values}."""
        if self._file:
            line = {"time": round(time.time(), 3), "event": event} | values
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()


Advance = Callable[[int, int], None]  # done since the last call: units, bytes


@contextmanager
def silent(what: str, total: int | None, unit: str) -> Iterator[Advance]:
    """Do as `progress` does, but show nothing."""
    yield lambda count, num_bytes: None


@contextmanager
def progress(what: str, total: int | None, unit: str) -> Iterator[Advance]:
    """Show done/total, rate, MB/s where bytes are reported, and ETA on stderr; return the function that advances it.

    A terminal gets a bar, anything else a line every few seconds. `total` is None where it is not known.
    """
    with (_bar if sys.stderr.isatty() else _lines)(what, total, unit) as advance:
        yield advance


@dataclass(frozen=True)
class Reporting:
    """Where a job reports how far it is.

    Attributes:
        progress: Context of a progress display of (what, total or None, unit); yields a function of (count, bytes).
        event: Is called with the name and the values of each event.
        say: Is called with a line for the user.
    """

    progress: Callable[[str, int | None, str], Any] = silent
    event: Callable[..., None] = lambda name, **values: None
    say: Callable[[str], None] = lambda line: None


class _Meter:
    """Counts what is done; as text, the count with its rate and ETA."""

    def __init__(self, total: int | None, unit: str) -> None:
        self._total, self._unit = total, unit
        self._started = time.monotonic()
        self.done = self._num_bytes = 0

    def add(self, count: int, num_bytes: int) -> None:
        self.done += count
        self._num_bytes += num_bytes

    @property
    def is_full(self) -> bool:
        return self._total is not None and self.done >= self._total

    def __str__(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = self.done / seconds
        total = f"/{self._total:,}" if self._total is not None else ""
        text = f"{self.done:,}{total} {self._unit}, {rate:,.0f}/s"
        if self._num_bytes:
            text += f", {human_bytes(self._num_bytes / seconds)}/s"
        if self._total is not None and rate:
            text += f", {(self._total - self.done) / rate:,.0f} s left"
        return text


@contextmanager
def _lines(what: str, total: int | None, unit: str) -> Iterator[Advance]:
    meter = _Meter(total, unit)
    last = time.monotonic() - _SECONDS_BETWEEN_LINES + _SECONDS_TO_FIRST_LINE

    def advance(count: int, num_bytes: int) -> None:
        nonlocal last
        meter.add(count, num_bytes)
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES or meter.is_full:
            last = time.monotonic()
            echo(f"{what}: {meter}", err=True)

    yield advance


@contextmanager
def _bar(what: str, total: int | None, unit: str) -> Iterator[Advance]:
    from rich.console import Console  # noqa: PLC0415 - 60 ms that `--help` need not pay
    from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415

    meter = _Meter(total, unit)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}", style="dim"))
    # What goes to a file or a pipe must not be shown above the bar instead.
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task(what, total=total, detail="")

        def advance(count: int, num_bytes: int) -> None:
            meter.add(count, num_bytes)
            bar.update(task, completed=meter.done, detail=str(meter))

        yield advance
