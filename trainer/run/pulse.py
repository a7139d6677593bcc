"""Signs of life of a rank, given by a thread of its own; and its end, with all its stacks, when the run is stuck."""

import faulthandler
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from statistics import median

from pipeline.base.errors import StorageError
from pipeline.store.base import Store
from trainer.run.board import Wishes
from trainer.run.events import write_event
from trainer.run.lives import Life

logger = logging.getLogger(__name__)

STUCK_EXIT_CODE = 70  # of a rank that ends itself since the run is stuck [sysexits.h: internal software error]
_SIGN_SECONDS = 5.0
_STOPPED_SECONDS = 3 * _SIGN_SECONDS  # between two signs: the whole process was stopped, as by Ctrl-Z, and not stuck
_WRITE_SECONDS = 10.0  # for the stacks: the store may be what hangs
_STEPS = 50  # whose median is the time of a step


class Pulse:
    """What a rank does now, as its thread shows it."""

    def __init__(self, rank: int, group: int = 0) -> None:
        """Begin before the first step, in no phase.

        Args:
            rank: Of the run.
            group: See Life.
        """
        self._group = group
        self._rank, self._place = rank, f"{socket.gethostname()}, process {os.getpid()}"
        self._step, self._phase, self._since = -1, "", time.monotonic()
        self._stepped = 0.0
        self._seconds: deque[float] = deque(maxlen=_STEPS)

    def on_step(self, done: int) -> None:
        """Take the number of steps done."""
        now = time.monotonic()
        if self._stepped:
            self._seconds.append(now - self._stepped)
        self._step, self._stepped, self._since = done, now, now

    @property
    def step(self) -> int:
        """Steps done; -1 before the first one."""
        return self._step

    def on_phase(self, phase: str) -> None:
        """Take what the rank does from now on; the same once more is a sign of progress."""
        self._phase, self._since = phase, time.monotonic()

    def renew(self) -> None:
        """Let the phase count from now on."""
        self._since = time.monotonic()

    def life(self) -> Life:
        """Return the sign of life of this moment."""
        seconds = median(self._seconds) if self._seconds else 0.0
        return Life(
            self._rank, self._place, self._step, self._phase, time.monotonic() - self._since, seconds, self._group
        )


@contextmanager
def beating(pulse: Pulse, sign: Callable[[Life], Wishes], store: Store) -> Iterator[None]:
    """Give a sign of life every few seconds, and end this process when the answer is that the run is stuck.

    Args:
        pulse: What is shown.
        sign: Takes a sign of life, and returns what the rank is asked for.
        store: Of the run; the stacks of all threads go to `stalls/` there, and to stderr.
    """
    is_over = threading.Event()

    def show() -> None:
        shown = time.monotonic()
        while True:
            now = time.monotonic()
            if now - shown > _STOPPED_SECONDS:
                pulse.renew()
            shown = now
            wishes = sign(pulse.life())
            if wishes.stuck and not is_over.is_set():
                _end_stuck(pulse.life(), wishes.stuck, store)
            if is_over.wait(_SIGN_SECONDS):
                return

    thread = threading.Thread(target=show, name="signs-of-life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(_SIGN_SECONDS)


def _end_stuck(life: Life, why: str, store: Store) -> None:
    """Keep the stacks of all threads, and end the process: the group starts again from the last checkpoint."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        stacks = file.read().decode(errors="replace")
    text = f"{why}\nrank {life.rank} ({life.place}), phase {life.phase}, step {life.step}\n\n{stacks}"
    key = f"stalls/{time.time_ns()}-rank{life.rank}.txt"
    sys.stderr.write(
        f"the run is stuck: {why}; ending rank {life.rank}, whose stacks are at {store.url}/{key}\n{stacks}\n"
    )
    sys.stderr.flush()

    def write() -> None:
        with suppress(StorageError):  # stderr has them, too
            store.create(key, text.encode())
            write_event(store, "stalled", max(life.step, 0), rank=life.rank, why=why, stacks=key)

    writer = threading.Thread(target=write, name="stacks", daemon=True)
    writer.start()
    writer.join(_WRITE_SECONDS)
    os._exit(STUCK_EXIT_CODE)
