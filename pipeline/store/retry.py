"""Repeating what may pass, with the figures of all repetition."""

import random
from collections.abc import Callable
from typing import TypeVar

import tenacity

ATTEMPTS = 5  # at a request to storage
CLIENT_ATTEMPTS = 6  # of botocore at one request, for the errors that it repeats by itself
READS_BEFORE_DAMAGE = 3  # what is wrong once may be the network; what is wrong three times is the object
OUTAGE_SECONDS = 300.0  # a store that does not answer is asked for so long: a failover takes a minute or two
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0  # a choice: that an outage of minutes is over is noticed within seconds
T = TypeVar("T")


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
