"""Seconds and memory of what runs in this process and below it; standard library only, for peers' environments."""

import itertools
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path


def timed(units: Iterable[object], warm: int, count: int) -> float:
    """Return the seconds that `count` units take after `warm` ones."""
    iterator = iter(units)
    for _ in itertools.islice(iterator, warm):
        pass
    started = time.perf_counter()
    for _ in itertools.islice(iterator, count):
        pass
    return time.perf_counter() - started


def proportional_bytes() -> int:
    """Return the proportional set size of this process and all below it."""
    total, waiting = 0, [os.getpid()]
    while waiting:
        pid = waiting.pop()
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
        except (OSError, StopIteration):  # it has ended
            continue
    return total


class Peak(threading.Thread):
    """The highest growth of the memory of all processes from now on, looked at every so often."""

    def __init__(self, every_seconds: float = 0.05) -> None:
        super().__init__(daemon=True)
        self._every_seconds = every_seconds
        self._before = proportional_bytes()
        self.growth = 0
        self.start()

    def run(self) -> None:
        """Look."""
        while True:
            self.growth = max(self.growth, proportional_bytes() - self._before)
            time.sleep(self._every_seconds)
