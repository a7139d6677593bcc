"""The rank's side of its loader workers: starts them, answers them, and restarts one that died."""

import mmap
import os
import pickle
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

import numpy as np
import numpy.typing as npt

from pipeline.base.errors import ConfigError, ServiceError
from pipeline.streaming.loader.messages import Done, Failed, Message, SlotGranted, WindowRequest, WindowSpec, Work
from pipeline.streaming.loader.worker import IMPORTABLE, hang_up, serve, slots_of

# glibc keeps freed blocks of 8 MiB for itself, 17 % beyond a budget of 750 MB after 10,000 photos; so they are mapped
# one by one (5 % beyond), while the small buffers of pictures stay on a heap that is not returned each time. They are
# mapped in large pages where the system has them: small ones take longer to get than a block takes to read.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
_TUNABLES = "GLIBC_TUNABLES"
_LARGE_PAGES = "glibc.malloc.hugetlb=1"
_STARTS_WITHOUT_PROGRESS = 3  # more cannot be chance
_MOST_LENT = 2  # the batch the caller works on, and the one before it until its name is given to the next


@dataclass
class _Worker:
    """One worker as the rank sees it.

    Attributes:
        work: What it was started with.
        connection: To it.
        process: None where it is a thread of this process.
        next_step: First step it has not delivered.
        starts: Since it delivered anything.
    """

    work: Work
    connection: Connection
    process: "subprocess.Popen[bytes] | None"
    next_step: int
    starts: int = 1

    def exit_reason(self) -> str:
        """Return what is known of its end."""
        code = self.process.wait() if self.process else None
        killed = code == -9
        return f"exit code {code}" + ("; the system may be out of memory" if killed else "")


class _Lent:
    """A slot as NumPy takes it: lives until the last array or tensor of its memory is gone."""

    def __init__(self, images: npt.NDArray[np.uint8]) -> None:
        self._images = images
        self.__array_interface__ = images.__array_interface__


def _free(slot: int, lent: set[int], freed: "Connection[bytes, bytes]", pid: int) -> None:
    """Free a slot that the caller is done with. Takes no lock: the garbage collector calls it anywhere."""
    if os.getpid() == pid:  # a forked child has arrays of its own and must not speak for its parent
        lent.discard(slot)
        with suppress(OSError):  # the pool is closed
            freed.send_bytes(bytes([slot]))


class WorkerPool:
    """The loader workers of one rank. Close it. `batch` is for one thread."""

    def __init__(
        self, works: Sequence[Work], window_of: Callable[[WindowRequest], WindowSpec], in_processes: bool
    ) -> None:
        """Start the workers.

        Args:
            works: One for each worker, alike but for lanes, places and budget.
            window_of: Answers the workers; called from one thread.
            in_processes: Whether each worker is a process of its own, or a thread of this one.
        """
        self._window_of = window_of
        self._in_processes = in_processes
        first = works[0]
        descriptor = os.memfd_create("bit-batches")
        size = first.num_slots * first.batch_size * first.side_px**2 * 3
        os.ftruncate(descriptor, size)
        self._descriptor = descriptor
        self._memory = mmap.mmap(descriptor, size)
        self._slots = slots_of(self._memory, first)
        self._slot_of = {first.first_step + number: slot for number, slot in enumerate(first.slots)}
        self._next_step_to_grant = first.first_step + len(first.slots)
        self._lent: set[int] = set()
        self._freed, self._free = Pipe(duplex=False)
        self._changed = threading.Condition()
        self._replacing = threading.Lock()
        self._done: dict[int, dict[int, Done]] = {}
        self._error: BaseException | None = None
        self._closed = False
        self._workers: list[_Worker] = []
        try:
            for work in works:
                self._workers.append(self._started(work))
        except BaseException:
            self._release()
            raise
        self._thread = threading.Thread(target=self._answer, name="loader-pool", daemon=True)
        self._thread.start()

    def batch(self, step: int) -> tuple[npt.NDArray[np.uint8], list[Done]]:
        """Wait for a batch and return it: pictures, shape (samples, side, side, 3), and the parts' reports in order.

        The caller keeps the pictures as long as it likes. Those of up to two batches lie in the shared memory, where
        workers write again when the last array of them is gone; while it keeps two, further ones are copied out.

        Raises:
            BitError: What stopped a worker.
            ServiceError: A worker died again and again.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._error or len(self._done.get(step, ())) == len(self._workers))
            if self._error:
                raise self._error
            parts = self._done.pop(step)
            slot = self._slot_of.pop(step)
        images = self._slots[slot]
        freed = (slot, self._lent, self._free, os.getpid())
        if len(self._lent) < _MOST_LENT:
            self._lent.add(slot)
            lent = _Lent(images)
            weakref.finalize(lent, _free, *freed).atexit = False
            images = np.asarray(lent)
        else:
            images = images.copy()
            _free(*freed)
        return images, [parts[number] for number in sorted(parts)]

    def close(self) -> None:
        """End the workers and free their memory; that of batches which the caller keeps is freed with these."""
        self._closed = True
        with self._replacing:
            for worker in self._workers:
                hang_up(worker.connection)
        self._thread.join()
        self._release()

    def _release(self) -> None:
        for worker in self._workers:
            hang_up(worker.connection)
            worker.connection.close()
            if worker.process:
                worker.process.kill()  # it has nothing to save
                worker.process.wait()
        os.close(self._descriptor)
        self._freed.close()

    def _started(self, work: Work) -> _Worker:
        ours, theirs = socket.socketpair()
        connection = Connection(ours.detach())
        if not self._in_processes:
            arguments = (Connection(theirs.detach()), self._memory, work)
            threading.Thread(target=serve, args=arguments, name="loader", daemon=True).start()
            return _Worker(work, connection, None, work.first_step)
        # -P: the current folder may hold modules of the same names; what the rank imports from it is on its path.
        command = [
            sys.executable,
            "-P",
            "-m",
            "pipeline.streaming.loader.worker",
            str(theirs.fileno()),
            str(self._descriptor),
        ]
        # Ray and notebooks extend the path of a running process: workers import what the rank imports.
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        tunables = filter(None, [_LARGE_PAGES, os.environ.get(_TUNABLES)])  # of two the last counts: the caller's
        try:
            process = subprocess.Popen(
                command,
                pass_fds=(theirs.fileno(), self._descriptor),
                stdin=subprocess.DEVNULL,
                env={**os.environ, **_MALLOC, _TUNABLES: ":".join(tunables), "PYTHONPATH": paths},
            )
        except BaseException:
            connection.close()
            raise
        finally:
            theirs.close()
        worker = _Worker(work, connection, process, work.first_step)
        try:
            with suppress(OSError):  # a worker that died at once is handled where messages are read
                connection.send(work)
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            process.kill()
            process.wait()
            connection.close()
            raise ConfigError(f"loader processes cannot receive the transform ({error}); {IMPORTABLE}") from error
        return worker

    def _answer(self) -> None:
        """Serve all workers until the pool is closed."""
        try:
            while not self._closed and not self._error:
                by_connection = {worker.connection: number for number, worker in enumerate(self._workers)}
                for connection in wait([self._freed, *by_connection]):
                    if connection is self._freed:
                        self._grant(self._freed.recv_bytes()[0])
                        continue
                    number = by_connection[connection]  # type: ignore[index]
                    try:
                        message = self._workers[number].connection.recv()
                    except (EOFError, OSError):
                        self._restart(number)
                    else:
                        self._handle(number, message)
        except BaseException as error:  # noqa: BLE001 - is raised where batches are asked for
            self._fail(error)

    def _grant(self, slot: int) -> None:
        """Have the next batch without a slot written to this one."""
        with self._changed:
            self._slot_of[self._next_step_to_grant] = slot
            self._next_step_to_grant += 1
        for worker in self._workers:
            self._send(worker, SlotGranted(slot))

    def _handle(self, number: int, message: Message) -> None:
        worker = self._workers[number]
        if isinstance(message, WindowRequest):
            self._send(worker, self._window_of(message))
        elif isinstance(message, Failed):
            self._fail(message.error)
        elif isinstance(message, Done):
            worker.next_step, worker.starts = message.step + 1, 0
            with self._changed:
                self._done.setdefault(message.step, {})[number] = message
                self._changed.notify_all()

    def _restart(self, number: int) -> None:
        """Start a worker again at the first step it has not delivered: its batches are a function of the step."""
        worker = self._workers[number]
        if self._closed:
            return
        if worker.starts >= _STARTS_WITHOUT_PROGRESS:
            self._fail(
                ServiceError(
                    f"loader worker {number} died {worker.starts} times without a batch ({worker.exit_reason()}); "
                    f"lower the number of loader workers or their memory budget"
                )
            )
            return
        with self._changed:
            slots = tuple(self._slot_of[step] for step in range(worker.next_step, self._next_step_to_grant))
        again = self._started(replace(worker.work, first_step=worker.next_step, slots=slots))
        again.starts = worker.starts + 1
        with self._replacing:
            worker.connection.close()
            self._workers[number] = again

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _send(self, worker: _Worker, message: Message) -> None:
        # One that has died is handled where messages are read.
        with suppress(OSError):
            worker.connection.send(message)
