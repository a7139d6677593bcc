"""The entry point of a submitted run: starts its driver again when that is killed, as long as the run gets on.

It is a small process beside the driver, without Ray and torch: what kills a driver (its memory, most of all) leaves it
alone. A driver that could say why it ends has its way: done, stopped, or an error that would come again.

    python -P -m cluster.submission.supervise OUT COMMAND [ARGUMENT...]
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from types import FrameType

from pipeline.base.console import EXIT_INTERRUPTED, EXIT_LOST, echo
from pipeline.base.errors import StorageError, Unreachable
from pipeline.store.url import open_store
from trainer.run.starts import STARTS_WITHOUT_PROGRESS, progress_of

_PAUSE_SECONDS = 5.0  # a choice: what a dead driver held is free again after seconds
_OUTAGE_PAUSE_SECONDS = 30.0  # between two looks at a store that does not answer; a choice
# `trainer` of this very code, wherever the node's own command comes from.
_DRIVER = (sys.executable, "-P", "-c", "from cluster.submission.supervise import drive; drive()")
# Is added to the code that a driver ends with on purpose: libraries that give up end it with codes of their own.
_ON_PURPOSE = 64


class Next(Enum):
    """What follows the end of a driver."""

    END = "end"
    AGAIN = "again"
    IN_VAIN = "in vain"


def drive() -> None:
    """Run the trainer's command of argv, and exit with a code that tells its own ends from those of libraries."""
    from trainer.cli import main  # noqa: PLC0415

    # Ray has workers import from the driver's folder first, and that of the node may hold other code.
    os.chdir(Path(__file__).parents[2])
    sys.argv[0] = "trainer"
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else bool(end.code)
        sys.exit(code and code + _ON_PURPOSE)


def what_next(
    exit_code: int | None, *, stopped: bool, progress: Sequence[frozenset[str]], is_outage: bool = False
) -> Next:
    """Decide what follows the end of a driver.

    Args:
        exit_code: What it ended with on purpose; None if it was killed, or a library gave up.
        stopped: Whether the job was asked to stop.
        progress: What was finished at each start so far, and now: checkpoints and results.
        is_outage: Whether the store does not answer now, so that it may be what ended the driver.
    """
    if stopped or exit_code == 0:
        return Next.END
    if is_outage:
        return Next.AGAIN
    if exit_code not in (None, EXIT_LOST):
        return Next.END
    last = progress[-(STARTS_WITHOUT_PROGRESS + 1) :]
    if len(last) > STARTS_WITHOUT_PROGRESS and all(finished == last[0] for finished in last):
        return Next.IN_VAIN
    return Next.AGAIN


def main() -> None:
    """Run the driver of argv until it ends by itself, and exit with its code."""
    out, *command = sys.argv[1:]
    sys.exit(Supervisor(out, command).run())


class Supervisor:
    """Keeps the driver of a run up.

    Args:
        out: URL of what the run writes.
        command: Of the trainer, with its arguments.
    """

    def __init__(self, out: str, command: Sequence[str]) -> None:
        self._out = out
        self._command = command
        self._stopped = False

    def run(self) -> int:
        """Return the exit code, once the driver has ended for good."""
        # `cluster stop` sends the signal to the driver, too; so does a terminal. It saves, and this one waits.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        progress = [found for found in [self._finished()] if found is not None]
        command = [*_DRIVER, *self._command]
        while not self._stopped:
            code = subprocess.Popen(command).wait()
            said, found = _said(code), self._finished()
            if found is not None:
                progress.append(found)
            match what_next(said, stopped=self._stopped, progress=progress, is_outage=found is None):
                case Next.END:
                    return EXIT_INTERRUPTED if said is None else said
                case Next.IN_VAIN:
                    echo(
                        f"error: {STARTS_WITHOUT_PROGRESS} drivers in a row ended ({_reason(code)}) without a new "
                        f"checkpoint at {self._out}; look for what kills them, such as the memory of the head",
                        err=True,
                    )
                    return 1
            echo(f"the driver has ended ({_reason(code)}); starting it again", err=True)
            self._pause()
            while not self._stopped and self._finished() is None:  # each look says that the store does not answer
                self._pause(_OUTAGE_PAUSE_SECONDS)
            command = [*_DRIVER, *self._command, "--wait"]  # until what the dead one held is free
        return EXIT_INTERRUPTED

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopped = True

    def _pause(self, seconds: float = _PAUSE_SECONDS) -> None:
        end = time.monotonic() + seconds
        while not self._stopped and time.monotonic() < end:
            time.sleep(0.1)

    def _finished(self) -> frozenset[str] | None:
        """Return the names of all that was finished; None of a store that does not answer."""
        try:
            return frozenset(progress_of(open_store(self._out)))
        except Unreachable as error:
            echo(f"what {self._out} holds cannot be told: {error}", err=True)
            return None
        except StorageError as error:
            echo(f"what {self._out} holds cannot be told: {error}", err=True)
            return frozenset()


def _said(code: int) -> int | None:
    """Return the code that a driver ended with on purpose; None if it did not."""
    if code == 0:
        return code
    return code - _ON_PURPOSE if code > _ON_PURPOSE else None


def _reason(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return "the cluster lost what it needs" if _said(code) == EXIT_LOST else f"code {code}"


if __name__ == "__main__":
    main()
