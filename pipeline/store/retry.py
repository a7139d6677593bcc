"""Repeating what may pass, with the figures of all repetition."""

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import tenacity

from pipeline.base.errors import Unreachable

logger = logging.getLogger(__name__)

ATTEMPTS = 5  # at a request to storage
CLIENT_ATTEMPTS = 6  # of botocore at one request, for the errors that it repeats by itself
READS_BEFORE_DAMAGE = 3  # what is wrong once may be the network; what is wrong three times is the object
OUTAGE_SECONDS = 300.0  # a store that does not answer is asked for so long: a failover takes a minute or two
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0  # a choice: that an outage of minutes is over is noticed within seconds
T = TypeVar("T")
_patience_seconds = 0.0  # of this process


def pause_seconds(num_failures: int) -> float:
    """Return a random pause after `num_failures` (1..) in a row: at most 0.2 s, doubled with each, never above 10 s."""
    return random.uniform(0.0, min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(num_failures - 1, 10)))


def retried(is_transient: Callable[[BaseException], bool], attempt: Callable[[], T]) -> T:
    """Return attempt(), repeated up to 5 times with 3 seconds of pauses at most while it fails with a transient error.

    Raises:
        BaseException: What the last attempt raised, or the first error that is not transient.
    """
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=lambda state: pause_seconds(state.attempt_number),
        retry=tenacity.retry_if_exception(is_transient),
        reraise=True,
    )
    return retrying(attempt)


@contextmanager
def waiting_for_outages(seconds: float = OUTAGE_SECONDS) -> Iterator[None]:
    """Have this process wait for a store that does not answer, each request for so long.

    For work that is worth the wait, and has begun: whoever has just typed a command wants to know at once.
    """
    global _patience_seconds  # noqa: PLW0603 - of the process, whatever thread writes
    before, _patience_seconds = _patience_seconds, seconds
    try:
        yield
    finally:
        _patience_seconds = before


def through_outages(attempt: Callable[[], T]) -> T:
    """Return attempt(), repeated while the store does not answer, for as long as this process waits for that.

    Raises:
        Unreachable: What the last attempt raised.
    """
    began, num_failures = time.monotonic(), 0
    while True:
        try:
            return attempt()
        except Unreachable as error:
            if time.monotonic() - began >= _patience_seconds:
                raise
            if not num_failures:
                logger.warning("%s; trying for up to %.0f s", error, _patience_seconds)
            num_failures += 1
            time.sleep(pause_seconds(num_failures))
