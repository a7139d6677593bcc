"""Signals that ask a run to stop: the first one lets it save its state, the second one ends it."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Take SIGINT and SIGTERM inside, and yield a function that says whether one came.

    A second one raises KeyboardInterrupt. Outside the main thread, which alone may take signals, none are taken.
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return

    def take(number: int, frame: FrameType | None) -> None:
        if came.is_set():
            raise KeyboardInterrupt
        came.set()
        os.write(2, b"stopping; a second Ctrl-C ends it at once\n")  # print() may be what was interrupted

    before = {number: signal.signal(number, take) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
