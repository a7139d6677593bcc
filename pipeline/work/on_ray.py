"""Runs calls as Ray tasks. The only module of `pipeline` that imports Ray."""

import os
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from pipeline.base.errors import ServiceError
from pipeline.work.pools import WorkerLost

T = TypeVar("T")


class OnRay:
    """The cluster that RAY_ADDRESS names, or that this job was submitted to. One CPU a call."""

    may_lose_workers = True

    def __init__(self, num_slots: int | None = None) -> None:
        """Connect to the cluster.

        Args:
            num_slots: Most calls at a time; the cluster's CPUs by default.

        Raises:
            ServiceError: There is no cluster.
        """
        import ray  # noqa: PLC0415 - two seconds that local runs need not pay

        self._ray = ray
        try:
            # RAY_ADDRESS, which a job has, goes before the search.
            ray.init(
                address=os.environ.get("RAY_ADDRESS", "auto"),
                log_to_driver=False,
                ignore_reinit_error=True,
                logging_level="ERROR",
            )
        except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
            raise ServiceError(
                f"no Ray cluster answers ({str(error).splitlines()[0]}); start one with `cluster up`, set RAY_ADDRESS, "
                f"or leave out --ray"
            ) from error
        self.num_slots = num_slots or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._references: dict[Future[Any], Any] = {}
        # One remote function for all calls: Ray keeps each one it is given. Whoever submits a call decides on repeating
        # it: a lost worker is counted and logged.
        self._apply = ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")(_apply)

    def submit(self, function: Callable[..., T], *arguments: Any) -> "Future[T]":
        """See Pool.submit."""
        reference = self._apply.remote(function, *arguments)
        future: Future[T] = Future()
        self._references[future] = reference
        reference.future().add_done_callback(lambda done: self._finish(done, future))
        return future

    def cancel(self, future: "Future[Any]") -> None:
        """See Pool.cancel."""
        reference = self._references.pop(future, None)
        if reference is not None:
            self._ray.cancel(reference, force=False)

    def close(self) -> None:
        """See Pool.close."""
        self._ray.shutdown()

    def _finish(self, done: "Future[Any]", future: "Future[Any]") -> None:
        error = done.exception()
        self._references.pop(future, None)
        if error is None:
            future.set_result(done.result())
        elif isinstance(error, self._ray.exceptions.RayTaskError):
            future.set_exception(error.cause if isinstance(getattr(error, "cause", None), Exception) else error)
        elif isinstance(error, self._ray.exceptions.RayError):
            future.set_exception(WorkerLost(f"{type(error).__name__}: {str(error).splitlines()[0]}"))
        else:
            future.set_exception(error)


def _apply(function: Callable[..., T], *arguments: Any) -> T:
    return function(*arguments)
