"""Runs independent calls on Ray, or in this process: the same results in the same order."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
# Calls in flight per CPU of the cluster: one running, one waiting behind it.
_CALLS_PER_CPU = 2


def map_tasks(function: Callable[..., T], calls: Sequence[tuple[Any, ...]], *, on_ray: bool) -> Iterator[T]:
    """Gives function(*call) for every call, in order.

    Args:
        function: Importable; its results must not depend on where it runs, since Ray repeats lost calls.
        calls: Arguments of each call; large shared ones should be Ray object references made by `share`.
        on_ray: Whether to use the Ray cluster this process is connected to, or starts.
    """
    if not on_ray:
        for call in calls:
            yield function(*call)
        return
    import ray  # noqa: PLC0415 - two seconds that `--help` need not pay

    remote = ray.remote(num_cpus=1, max_retries=5)(function)
    width = max(1, int(_CALLS_PER_CPU * ray.cluster_resources().get("CPU", 1)))
    running = [remote.remote(*call) for call in calls[:width]]
    for following in range(width, len(calls) + width):
        if not running:
            return
        yield ray.get(running.pop(0))
        if following < len(calls):
            running.append(remote.remote(*calls[following]))


def share(value: T, *, on_ray: bool) -> T:
    """Puts a large argument where all tasks can read it."""
    if not on_ray:
        return value
    import ray  # noqa: PLC0415

    reference: T = ray.put(value)
    return reference
