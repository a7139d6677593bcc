"""When a node of a run's group will be taken away, as Ray Train tells its workers."""

import time

_UNKNOWN_SECONDS = 120.0  # what Ray Train waits where a drain names no deadline


class DrainDeadline:
    """Tells when a node of this group will be taken away; every rank must call."""

    def __init__(self) -> None:
        """Begin without a drain."""
        self._unknown: float | None = None  # of a drain without a deadline, from when it was seen first

    def __call__(self) -> float | None:
        """Return the time in seconds since 1970; None where no node will."""
        import ray.train  # noqa: PLC0415 - seconds, which the tests of others need not pay

        info = ray.train.get_preemption_info()
        if info is None:
            self._unknown = None
        elif info.deadline_ms:
            return float(info.deadline_ms) / 1000
        elif self._unknown is None:
            self._unknown = time.time() + _UNKNOWN_SECONDS
        return self._unknown
