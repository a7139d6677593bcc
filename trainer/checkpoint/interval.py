"""How often to save: what a save costs against what a failure loses [Young 1974; Daly 2006]."""

import math
from collections.abc import Sequence

_WINDOW_SECONDS = 86_400.0  # of the past from which the failure rate is taken; a choice: a day
_EXPECTED_SECONDS = 4 * 3600.0  # between failures, before any was seen: a spot machine's, of which hours are reported
# As how many failures that counts; a choice. The first keeps a calm run from trusting its luck, the second lets one
# whose first hour has several soon save for what it sees; to save too often costs little.
_EXPECTED_WEIGHTS = (1.0, 0.25)
_RESTART_SECONDS = 60.0  # from a failure to the next step
_LEAST_COST_SECONDS = 0.05  # a copy of the state, however small, rests the loop
_LEAST_SECONDS, _MOST_SECONDS = 5.0, 3600.0
_WRITES_PER_INTERVAL = 2.0  # the store works on saves half of the time at most


def seconds_between_failures(start_times: Sequence[float], now: float) -> float:
    """Return the mean time between failures that the starts of a run suggest, in seconds.

    Args:
        start_times: When each start of the run began, in seconds since 1970; all but the first were restarts.
        now: In seconds since 1970.
    """
    since = max(now - _WINDOW_SECONDS, min(start_times, default=now))
    num_failures = sum(time > since for time in start_times)
    seen = max(0.0, now - since)
    return min((seen + weight * _EXPECTED_SECONDS) / (num_failures + weight) for weight in _EXPECTED_WEIGHTS)


def seconds_between_saves(stall_seconds: float, write_seconds: float, failure_seconds: float) -> float:
    """Return the interval that loses least: sqrt(2 x cost of a save x (time between failures + restart)).

    Args:
        stall_seconds: For how long a save holds the loop up.
        write_seconds: From its copy to its commit.
        failure_seconds: Mean time between failures.
    """
    cost = max(_LEAST_COST_SECONDS, stall_seconds)
    best = math.sqrt(2 * cost * (failure_seconds + _RESTART_SECONDS))
    return min(max(best, _WRITES_PER_INTERVAL * write_seconds, _LEAST_SECONDS), _MOST_SECONDS)
