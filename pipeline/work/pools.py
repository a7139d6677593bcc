"""Where calls run: in this process, or in processes of this machine. All pools give the same results."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
_counter: Any = None  # of this worker; its run reads it
_START_SECONDS = 30.0  # of a process on a busy machine


class WorkerLost(Exception):  # noqa: N818
    """The process or the machine that ran a call is gone; the call may have done some or all of its work."""


class Pool(Protocol):
    """Runs calls of functions that may be repeated."""

    num_slots: int
    may_lose_workers: bool

    @property
    def num_reported(self) -> int:
        """What all calls reported so far with `report_done`; 0 where reports do not come through."""

    def submit(self, function: Callable[..., T], *arguments: Any) -> "Future[T]":
        """Start a call. Its future raises what the call raised, or WorkerLost."""

    def cancel(self, future: "Future[Any]") -> None:
        """Ask that a call whose result is no longer wanted ends; it may go on."""

    def close(self) -> None:
        """End all workers."""


class Counter:
    """A number that one thread writes and another reads."""

    value = 0


def count_into(counter: Any) -> None:
    """Make `report_done` of this process add to the `value` of a counter."""
    global _counter  # noqa: PLW0603 - once a process, or a call
    _counter = counter


def report_done(count: int) -> None:
    """Report from inside a call that a part of it is done, for progress."""
    if _counter is not None:
        _counter.value += count  # no lock, which a killed worker would keep: it is the only one that writes


class InProcess:
    """Runs each call at once in this process: for tests, notebooks and tiny sets."""

    num_slots = 1
    may_lose_workers = False
    num_reported = 0

    def submit(self, function: Callable[..., T], *arguments: Any) -> "Future[T]":
        """See Pool.submit."""
        future: Future[T] = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:  # noqa: BLE001 - handed to whoever asks for the result
            future.set_exception(error)
        return future

    def cancel(self, future: "Future[Any]") -> None:
        """See Pool.cancel."""

    def close(self) -> None:
        """See Pool.close."""


class Processes:
    """Worker processes of this machine, each in an executor of its own, so that the death of one breaks no other's."""

    may_lose_workers = True

    def __init__(self, num_workers: int) -> None:
        self.num_slots = num_workers
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._counters: list[Any] = []  # of all workers, dead ones too
        self._lock = threading.Lock()

    @property
    def num_reported(self) -> int:
        """See Pool.num_reported."""
        with self._lock:
            return sum(counter.value for counter in self._counters)

    def submit(self, function: Callable[..., T], *arguments: Any) -> "Future[T]":
        """See Pool.submit. The caller keeps at most `num_slots` calls running."""
        future: Future[T] = Future()
        worker, running = self._start(function, *arguments)

        def finish(done: "Future[T]") -> None:
            if done.cancelled():  # by close, before it began
                future.cancel()
                return
            error = done.exception()
            with self._lock:
                self._busy.discard(worker)
                if not isinstance(error, BrokenProcessPool):
                    self._idle.append(worker)
            if isinstance(error, BrokenProcessPool):
                worker.executor.shutdown(wait=False)
                future.set_exception(WorkerLost("a worker process was killed"))
            elif error:
                future.set_exception(error)
            else:
                future.set_result(done.result())

        running.add_done_callback(finish)
        return future

    def _start(self, function: Callable[..., T], *arguments: Any) -> "tuple[_Worker, Future[T]]":
        while True:
            with self._lock:
                worker = self._idle.pop() if self._idle else self._new_worker()
                self._busy.add(worker)
            try:
                return worker, worker.executor.submit(function, *arguments)
            except BrokenProcessPool:  # it died while it had nothing to do
                with self._lock:
                    self._busy.discard(worker)
                worker.executor.shutdown(wait=False)

    def _new_worker(self) -> "_Worker":
        worker = _Worker()
        self._counters.append(worker.counter)
        return worker

    def cancel(self, future: "Future[Any]") -> None:
        """See Pool.cancel. A running call of a local process is left to its end."""

    def close(self) -> None:
        """See Pool.close. All are killed: nobody wants what still runs, and it may be a read that hangs."""
        with self._lock:
            workers = [*self._busy, *self._idle]
            self._idle.clear()
        for worker in workers:
            worker.kill()
            worker.executor.shutdown(cancel_futures=True)


class _Worker:
    """One process, in an executor of its own."""

    def __init__(self) -> None:
        # Inherited, as Ray does it for its workers: threads of several of them would wait for each other's cores.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        # spawn: forking a process that has threads or an S3 client is not safe.
        context = multiprocessing.get_context("spawn")
        self.counter = context.RawValue("q", 0)
        self.executor = ProcessPoolExecutor(1, context, initializer=_begin, initargs=(self.counter,))
        self._pid = self.executor.submit(os.getpid)

    def kill(self) -> None:
        """End the process at once, if it has begun."""
        with suppress(BrokenProcessPool, ProcessLookupError, FutureTimeoutError):
            os.kill(self._pid.result(_START_SECONDS), signal.SIGKILL)


def _begin(counter: Any) -> None:
    """Make a worker end when the run is killed, and leave Ctrl-C, which reaches the whole group, to the run."""
    count_into(counter)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """Make this process, which multiprocessing started, end when the one that started it does, be it by SIGKILL."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent:
            wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
