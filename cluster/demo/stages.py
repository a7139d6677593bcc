"""The stages of the demonstration: commands as a user would type them, run with visible progress."""

import os
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import psutil

from cluster.stack.jobs import ACTOR_PREFIX
from cluster.stack.processes import commands_first
from pipeline.base.console import echo
from pipeline.base.errors import ServiceError

_SAMPLE_SECONDS = 2.0
# The lines of a job's output that are shown; the log holds everything.
_SHOWN = re.compile(r"^(step |\d{4}-shots|plan |published|packing|joining|verifying|searching|error:|\d+ of )")


@dataclass(frozen=True)
class Stage:
    """One finished command.

    Attributes:
        name: As shown.
        command: As typed.
        seconds: Wall time.
    """

    name: str
    command: str
    seconds: float


def run_stage(name: str, command: Sequence[str], log: Path) -> Stage:
    """Run a command, show its progress lines, and write all output to `log`.

    Raises:
        ServiceError: The command failed; the message holds its last error.
    """
    click.secho(f"\n{name}", bold=True)
    click.secho(f"$ {shlex.join(command)}", dim=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PATH": commands_first()}
    started = time.monotonic()
    last = ""
    with (
        log.open("w") as sink,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
        ) as process,
    ):
        for line in process.stdout or ():
            sink.write(line)
            text = ACTOR_PREFIX.sub("", line.rstrip())
            if _SHOWN.match(text):
                echo(f"  {text}")
                last = text
    if process.returncode:
        reason = last if last.startswith("error:") else "no reason given"
        raise ServiceError(
            f"{name} failed with exit code {process.returncode} ({reason}); see {log}, or start over with --fresh"
        )
    return Stage(name, shlex.join(command), time.monotonic() - started)


class MemoryWatch:
    """Samples the memory of this process and all its descendants: the sum of their proportional set sizes."""

    def __init__(self) -> None:
        self.peak_bytes = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Sample while a block of code runs."""
        ended = threading.Event()
        thread = threading.Thread(target=self._sample, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _sample(self, ended: threading.Event) -> None:
        while not ended.wait(_SAMPLE_SECONDS):
            family = [psutil.Process(), *psutil.Process().children(recursive=True)]
            self.peak_bytes = max(self.peak_bytes, sum(_proportional_bytes(process) for process in family))


def _proportional_bytes(process: psutil.Process) -> int:
    """Return the proportional set size of a process as the kernel reports it; 0 if the process has ended."""
    try:
        with open(f"/proc/{process.pid}/smaps_rollup", encoding="ascii") as summary:
            return next(int(line.split()[1]) * 1024 for line in summary if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0


def num_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0))
