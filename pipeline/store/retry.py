"""Repeating what may pass: a few attempts with growing, jittered pauses."""

from collections.abc import Callable
from typing import TypeVar

import tenacity

ATTEMPTS = 5
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0
T = TypeVar("T")


def retried(is_passing: Callable[[BaseException], bool], attempt: Callable[[], T]) -> T:
    """Return attempt(), repeated up to 5 times in about 6 seconds while it fails with an error that may pass.

    Raises:
        BaseException: What the last attempt raised, or the first error that does not pass.
    """
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_random_exponential(multiplier=_FIRST_PAUSE_SECONDS, max=_LONGEST_PAUSE_SECONDS),
        retry=tenacity.retry_if_exception(is_passing),
        reraise=True,
    )
    return retrying(attempt)
