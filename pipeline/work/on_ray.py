"""Runs calls as Ray tasks. The only module of `pipeline` that imports Ray."""

import logging
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pipeline.base.errors import ServiceError
from pipeline.work.pools import WorkerLost

logger = logging.getLogger(__name__)

T = TypeVar("T")
_PROBE_SECONDS = 4.0  # for a port that does not even refuse
_RELEASE_SECONDS = 10.0  # until a job that has just ended gives its CPUs back
_LOOK_SECONDS = 0.5
# What a shell keeps of a cluster.
_VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
_QUIET = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # the core's loops of "Failed to connect to GCS"; Ray's files have them
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a FutureWarning at every start
}


def require_cluster() -> None:
    """Check within five seconds that the cluster which Ray would take answers; without one to take, do nothing.

    Ray takes the cluster of RAY_ADDRESS, or one of this machine, and tries for minutes where it is gone.

    Raises:
        ServiceError: Nothing answers at its address.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "auto"):
        address, source = _address_of_this_machine(), "the last `ray start` on this machine"
        remedy = "run `ray stop`, or remove the file ray_current_cluster from Ray's folder"
    else:
        source = "RAY_ADDRESS"
        remedy = f"forget it with `unset {' '.join(name for name in _VARIABLES if name in os.environ)}`"
    if address in ("", "local"):
        return
    try:
        parts = urlsplit(address if "://" in address else f"ray://{address}")
        place = (parts.hostname or "", parts.port or 0)
    except ValueError as error:
        raise ServiceError(f"{source} names {address!r}, which is no HOST:PORT; {remedy}") from error
    try:
        socket.create_connection(place, timeout=_PROBE_SECONDS).close()
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise ServiceError(
            f"no Ray cluster answers at {address} ({reason}), which {source} names; start it again, or {remedy}"
        ) from error


def _address_of_this_machine() -> str:
    from ray._private.services import canonicalize_bootstrap_address  # noqa: PLC0415 - as ray.init finds it

    with suppress(ConnectionError):  # there is none
        return canonicalize_bootstrap_address("auto") or ""
    return ""


def quieten() -> None:
    """Leave Ray's own noise to its log files, unless the user set otherwise; to be called before Ray is imported."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def require_capacity(num_workers: int, *, use_gpu: bool, wait: bool) -> str | None:
    """Check that the cluster, to which this process is connected, can start a group of workers at once.

    Args:
        num_workers: Workers of one CPU each, or of one GPU each.
        use_gpu: Whether a worker takes a GPU.
        wait: Return what is missing instead of raising it.

    Returns:
        What the cluster has and what is missing, in one sentence; None if nothing is.

    Raises:
        ServiceError: Something is missing, and nobody wants to wait for it.
    """
    import ray  # noqa: PLC0415 - two seconds that local runs need not pay

    kind = "GPU" if use_gpu else "CPU"
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    has = {name: sum(int(node.get(name, 0)) for node in nodes) for name in ("CPU", "GPU")}
    needs = f"{_count(num_workers, 'worker')} {'takes' if num_workers == 1 else 'take'} {_count(num_workers, kind)}"
    holds = (
        f"the cluster has {_count(has['CPU'], 'CPU')} and {_count(has['GPU'], 'GPU')} on {_count(len(nodes), 'node')}"
    )
    if has[kind] < num_workers:
        missing = f"{needs}, but {holds}: add {_count(num_workers - has[kind], kind)}"
        if has[kind]:
            missing += f", or give --workers {has[kind]}"
        elif use_gpu:
            missing += ", or leave out --gpu"
    else:
        deadline = time.monotonic() + _RELEASE_SECONDS
        while (free := int(ray.available_resources().get(kind, 0))) < num_workers:
            if wait or time.monotonic() > deadline:
                break
            time.sleep(_LOOK_SECONDS)
        if free >= num_workers:
            return None
        missing = (
            f"{needs}; of the cluster's {_count(has[kind], kind)} {free} are free: `cluster status` lists its jobs"
        )
    if not wait:
        raise ServiceError(missing)
    return missing


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}{'' if number == 1 else 's'}"


class OnRay:
    """The cluster that RAY_ADDRESS names, or that this job was submitted to. One CPU a call."""

    may_lose_workers = True
    num_reported = 0  # what a task counts stays on its node

    def __init__(self, num_slots: int | None = None) -> None:
        """Connect to the cluster.

        Args:
            num_slots: Most calls at a time; the cluster's CPUs by default.

        Raises:
            ServiceError: There is no cluster, or it has no CPU.
        """
        require_cluster()
        quieten()
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
        busy = require_capacity(1, use_gpu=False, wait=ray.cluster_resources().get("CPU", 0) >= 1)
        if busy:
            logger.warning("waiting: %s", busy)
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
