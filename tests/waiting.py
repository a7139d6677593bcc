"""Waiting for the thing itself, so that tests pass on a busy machine as they do on a quiet one."""

import time
from collections.abc import Callable

WAIT_SECONDS = 120.0  # far more than anything took with 20 busy processes on 2 CPUs; less than a test's time-out
STORE_POLL_SECONDS = 0.2  # for conditions that ask a store, which costs others their CPU


def wait_until(
    condition: Callable[[], object], what: str, timeout_seconds: float = WAIT_SECONDS, poll_seconds: float = 0.01
) -> None:
    """Return as soon as a condition holds.

    Raises:
        AssertionError: It did not hold in time; the message names `what` was waited for.
    """
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_seconds:g} s in vain for {what}"
        time.sleep(poll_seconds)
