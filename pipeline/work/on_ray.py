"""Runs calls as Ray tasks. The only module of `pipeline` that imports Ray."""

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pipeline.base.errors import ServiceError
from pipeline.work.pools import Counter, WorkerLost, count_into

logger = logging.getLogger(__name__)

T = TypeVar("T")
_PROBE_SECONDS = 4.0  # for a port that does not even refuse
_RELEASE_SECONDS = 10.0  # until a job that has just ended gives its CPUs back
_LOOK_SECONDS = 0.5
_WATCH_SECONDS = 2.0  # between two looks at a cluster in use
# Without an answer. Ray gives up after 60 s, ends this process without a word, and needs 20 s to be shut down before.
_GONE_SECONDS = 20.0
_TALLY_SECONDS = 0.5  # between two reports of a task
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
    reason = _refusal(place)
    if reason:
        raise ServiceError(
            f"no Ray cluster answers at {address} ({reason}), which {source} names; start it again, or {remedy}"
        )


def _refusal(place: tuple[str, int]) -> str | None:
    """Return why nothing answers at a host and port; None if something does."""
    try:
        socket.create_connection(place, timeout=_PROBE_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__
    return None


def _address_of_this_machine() -> str:
    from ray._private.services import canonicalize_bootstrap_address  # noqa: PLC0415 - as ray.init finds it

    with suppress(ConnectionError):  # there is none
        return canonicalize_bootstrap_address("auto") or ""
    return ""


def quieten() -> None:
    """Leave Ray's own noise to its log files, unless the user set otherwise; to be called before Ray is imported."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def connect(address: str | None) -> None:
    """Connect this process to a cluster, if it is not, with nothing of Ray's on the screen; after `quieten`.

    Args:
        address: As `ray.init` takes it; None for that of RAY_ADDRESS, or a Ray of this process.

    Raises:
        ConnectionError: Nothing answers there; or as `ray.init`.
    """
    import ray  # noqa: PLC0415 - two seconds that local runs need not pay

    # Its thread prints reports of dying nodes to stdout; they are in Ray's files, and what they cost is in our log.
    setattr(ray._private.worker, "listen_error_messages", lambda worker, threads_stopped: None)  # noqa: B010
    with _native_silence():
        ray.init(address=address, log_to_driver=False, ignore_reinit_error=True, logging_level="ERROR")


def is_on_ray() -> bool:
    """Return whether this process is connected to a cluster; one that is not need not import Ray to know, a second."""
    ray = sys.modules.get("ray")
    return bool(ray and ray.is_initialized())


def create_gauges(texts: Mapping[str, str], tag_keys: tuple[str, ...]) -> dict[str, Any]:
    """Return a gauge for each name and its description; the node of this process serves them to Prometheus.

    They are to be set every few seconds: Ray exports what was set since its last export, and forgets the rest.
    """
    from ray.util.metrics import Gauge  # noqa: PLC0415 - two seconds that local runs need not pay

    return {name: Gauge(name, text, tag_keys=tag_keys) for name, text in texts.items()}


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


class _Tally:
    """An actor that adds up what tasks report."""

    def __init__(self) -> None:
        self._total = 0

    def add(self, count: int) -> None:
        self._total += count

    def total(self) -> int:
        return self._total


class OnRay:
    """The cluster that RAY_ADDRESS names, or that this job was submitted to. One CPU a call, or one CPU and one GPU."""

    may_lose_workers = True

    def __init__(self, num_slots: int | None = None, *, use_gpu: bool = False) -> None:
        """Connect to the cluster.

        Args:
            num_slots: Most calls at a time; the cluster's CPUs, or GPUs, by default.
            use_gpu: Whether each call takes a GPU, which it alone sees.

        Raises:
            ServiceError: There is no cluster, or it has no CPU, or GPU.
        """
        require_cluster()
        quieten()
        import ray  # noqa: PLC0415 - two seconds that local runs need not pay
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

        self._ray = ray
        try:
            connect(os.environ.get("RAY_ADDRESS", "auto"))  # RAY_ADDRESS, which a job has, goes before the search
        except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
            raise ServiceError(
                f"no Ray cluster answers ({str(error).splitlines()[0]}); start one with `cluster up`, set RAY_ADDRESS, "
                f"or leave out --ray"
            ) from error
        kind = "GPU" if use_gpu else "CPU"
        busy = require_capacity(1, use_gpu=use_gpu, wait=ray.cluster_resources().get(kind, 0) >= 1)
        if busy:
            logger.warning("waiting: %s", busy)
        self.num_slots = num_slots or max(1, int(ray.cluster_resources().get(kind, 1)))
        self._references: dict[Future[Any], Any] = {}
        # One remote function for all calls: Ray keeps each one it is given. Whoever submits a call decides on repeating
        # it: a lost worker is counted and logged.
        task = ray.remote(num_cpus=1, num_gpus=int(use_gpu), max_retries=0, scheduling_strategy="SPREAD")
        self._apply = task(_apply)
        context = ray.get_runtime_context()
        # Other nodes may be lost, or be kept from leaving by an actor on them. A soft affinity Ray 2.60 does not keep.
        here = NodeAffinitySchedulingStrategy(context.get_node_id(), soft=False)
        self._tally = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(_Tally).remote()
        self._num_reported, self._is_asked = 0, False
        self._lock = threading.Lock()
        self._gone: ServiceError | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._watch, args=(context.gcs_address,), name="watch-cluster", daemon=True).start()

    def _watch(self, address: str) -> None:
        """End all calls when the head has been away for too long: Ray never would."""
        host, _, port = address.rpartition(":")
        last = time.monotonic()
        while not self._closed.wait(_WATCH_SECONDS):
            if _refusal((host, int(port))) is None:
                last = time.monotonic()
            elif time.monotonic() - last > _GONE_SECONDS:
                break
        else:
            return
        error = ServiceError(
            f"the Ray cluster at {address} has not answered for {_GONE_SECONDS:.0f} s; start one again and run the "
            f"same command: what is finished stays"
        )
        with self._lock:
            self._gone = error
            waiting = list(self._references)
            self._references.clear()  # nothing can be cancelled there
        for future in waiting:
            future.set_exception(error)

    @property
    def num_reported(self) -> int:
        """See Pool.num_reported; half a second old, and never waited for."""
        if not self._is_asked and self._gone is None:
            self._is_asked = True
            self._tally.total.remote().future().add_done_callback(self._take_total)
        return self._num_reported

    def _take_total(self, done: "Future[int]") -> None:
        self._is_asked = False
        if done.exception() is None:  # else its node is gone: it begins at 0 elsewhere
            self._num_reported = max(self._num_reported, done.result())

    def submit(self, function: Callable[..., T], *arguments: Any) -> "Future[T]":
        """See Pool.submit. Raises ServiceError if the cluster is gone."""
        future: Future[T] = Future()
        with self._lock:
            if self._gone:
                raise self._gone
            reference = self._apply.remote(self._tally, function, *arguments)
            self._references[future] = reference
        reference.future().add_done_callback(lambda done: self._finish(done, future))
        return future

    def cancel(self, future: "Future[Any]") -> None:
        """See Pool.cancel."""
        with self._lock:
            reference = self._references.get(future)
        if reference is not None:
            self._ray.cancel(reference, force=False)

    def close(self) -> None:
        """See Pool.close."""
        self._closed.set()
        self._ray.shutdown()  # 18 s where the cluster is gone; leaving without it ends in a crash

    def _finish(self, done: "Future[Any]", future: "Future[Any]") -> None:
        with self._lock:
            if self._references.pop(future, None) is None:
                return  # the cluster was given up before
        error = done.exception()
        if error is None:
            future.set_result(done.result())
        elif isinstance(error, self._ray.exceptions.RayTaskError):
            future.set_exception(error.cause if isinstance(getattr(error, "cause", None), Exception) else error)
        elif isinstance(error, self._ray.exceptions.RayError):
            future.set_exception(WorkerLost(f"{type(error).__name__}: {str(error).splitlines()[0]}"))
        else:
            future.set_exception(error)


def _apply(tally: Any, function: Callable[..., T], *arguments: Any) -> T:
    with _reporting(tally):
        return function(*arguments)


@contextmanager
def _reporting(tally: Any) -> Iterator[None]:
    """Send what the call reports to an actor about twice a second."""
    counter = Counter()
    count_into(counter)
    ended = threading.Event()

    def send() -> None:
        sent = 0
        while not ended.wait(_TALLY_SECONDS):
            if counter.value > sent:
                sent, fresh = counter.value, counter.value - sent
                tally.add.remote(fresh)

    threading.Thread(target=send, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


@contextmanager
def _native_silence() -> Iterator[None]:
    """Drop what Ray's core writes to stderr by itself: it tells the level of its log, at any level."""
    before = os.dup(2)
    try:
        with open(os.devnull, "wb") as sink:
            os.dup2(sink.fileno(), 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
