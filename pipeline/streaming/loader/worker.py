"""A loader worker: renders its lanes of every batch into memory that it shares with the rank.

Runs as `python -m pipeline.streaming.loader.worker SOCKET MEMORY` with two inherited file descriptors, so that
neither the rank's main module is imported again nor anything outlives the rank: the kernel frees both when their last
holder dies.
"""

import mmap
import os
import pickle
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt

from pipeline.base.errors import ConfigError, ServiceError
from pipeline.store.block_cache import BlockCache
from pipeline.store.hedged_reads import RangeReader
from pipeline.streaming.loader.blocks import BlockReader
from pipeline.streaming.loader.lanes import Lanes, Taken
from pipeline.streaming.loader.messages import Done, Failed, Message, ReadCounts, SlotGranted, WindowSpec, Work
from pipeline.streaming.loader.read_ahead import Prefetcher

IMPORTABLE = "define a transform of your own in a module, not in a notebook or script, or use no loader processes"


def slots_of(memory: mmap.mmap, work: Work) -> npt.NDArray[np.uint8]:
    """Return the shared memory as uint8 of shape (slots, batch, side, side, 3)."""
    shape = (work.num_slots, work.batch_size, work.side_px, work.side_px, 3)
    return np.frombuffer(memory, np.uint8, int(np.prod(shape))).reshape(shape)


class _HungUp(Exception):  # noqa: N818 - reads as a fact in except clauses
    """The rank has ended, or wants no more."""


def serve(connection: Connection, memory: mmap.mmap, work: Work, on_end: Callable[[], None] = lambda: None) -> None:
    """Work until the rank closes the connection, or until an error, which is sent to the rank.

    Args:
        connection: To the rank.
        memory: For the batches.
        work: What to do.
        on_end: Called as soon as the rank has closed the connection, whatever the worker waits for.
    """
    try:
        _Worker(connection, work, slots_of(memory, work), on_end).run()
    except _HungUp:
        pass
    except BaseException as error:  # noqa: BLE001 - is raised in the rank
        with suppress(OSError):
            connection.send(Failed(_portable(error)))
    finally:
        hang_up(connection)


def _portable(error: BaseException) -> BaseException:
    """Return the error with its traceback as a note; as text where it does not survive being sent."""
    error.add_note(f"in a loader worker:\n{''.join(traceback.format_exception(error))}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever a third-party exception does when it is copied
        return ServiceError(f"a loader worker failed: {type(error).__name__}: {error}")
    return error


def hang_up(connection: Connection) -> None:
    """End a connection in both directions, also for a thread that waits for it: closing alone would not wake it."""
    with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as half:
        half.shutdown(socket.SHUT_RDWR)


class _Worker:
    def __init__(
        self, connection: Connection, work: Work, slots: npt.NDArray[np.uint8], on_end: Callable[[], None]
    ) -> None:
        self._connection = connection
        self._on_end = on_end
        self._inbox: SimpleQueue[Message | None] = SimpleQueue()
        threading.Thread(target=self._listen, name="listen", daemon=True).start()
        self._work = work
        self._slots = slots
        self._counts = ReadCounts()
        self._reported = ReadCounts()
        self._granted = deque(work.slots)
        self._cache = BlockCache(Path(work.cache[0]), work.cache[1]) if work.cache else None
        self._ranged = RangeReader()
        self._readers = [BlockReader(dataset, self._ranged, self._cache) for dataset in work.datasets]
        windows = () if work.keep_all else enumerate(work.window_bytes)
        own = {(source, lane): num_bytes for source, num_bytes in windows for lane in work.lanes}
        self._prefetcher = Prefetcher(
            lambda source, span: self._readers[source].read(span), work.budget_bytes, work.read_threads, own
        )
        self._lanes = Lanes(
            work,
            self._prefetcher,
            lambda source, span: self._readers[source].read(span),
            self._send,
            self._receive,
            self._counts,
        )

    def run(self) -> None:
        """Fill batch after batch, each when there is a slot for it."""
        step = self._work.first_step
        try:
            self._lanes.begin()
            while True:
                while not self._inbox.empty():
                    self._receive()
                while not self._granted:
                    self._receive()
                self._send(self._part(step, self._slots[self._granted.popleft()]))
                step += 1
        finally:
            self._prefetcher.close()
            self._ranged.close()

    def _listen(self) -> None:
        """Empty the connection whatever the worker does: two sides that both wait to send would wait for ever."""
        try:
            with suppress(EOFError, OSError):
                while True:
                    self._inbox.put(self._connection.recv())
        finally:
            self._inbox.put(None)
            self._on_end()

    def _send(self, message: Message) -> None:
        try:
            self._connection.send(message)
        except OSError as error:
            raise _HungUp from error

    def _receive(self) -> None:
        message = self._inbox.get()
        if message is None:
            raise _HungUp
        if isinstance(message, WindowSpec):
            self._lanes.arrived(message)
        elif isinstance(message, SlotGranted):
            self._granted.append(message.slot)

    def _part(self, step: int, slot: npt.NDArray[np.uint8]) -> Done:
        work = self._work
        taken: list[Taken] = []
        for lane in work.lanes:
            for draw in work.mixture.draws(lane, step * work.samples_per_lane, work.samples_per_lane):
                for position in range(draw.position, draw.position + draw.count):
                    out = slot[work.first_place + len(taken)]
                    taken.append(self._lanes.take(draw.source, lane, position, step, out))
        return Done(
            step=step,
            places=np.array([one.place for one in taken], np.int64),
            labels=tuple(one.labels for one in taken),
            bad=tuple(one.bad for one in taken if one.bad),
            counts=self._taken_counts(),
        )

    def _taken_counts(self) -> ReadCounts:
        """Return the counts since the last call."""
        now = replace(
            self._counts,
            bytes_read=sum(reader.bytes_read for reader in self._readers),
            reads=self._ranged.reads,
            retries=self._ranged.retries,
            hedges=self._ranged.hedges,
            read_seconds=self._ranged.seconds,
            cache_hits=self._cache.hits if self._cache else 0,
        )
        since, self._reported = now.since(self._reported), now
        return since


def main(arguments: Sequence[str]) -> None:
    """Serve on two inherited descriptors, a socket and the shared memory. The first message is the Work."""
    socket_descriptor, memory_descriptor = (int(argument) for argument in arguments)
    connection = Connection(socket_descriptor)
    try:
        work: Work = connection.recv()
    except EOFError:
        return
    except (AttributeError, ImportError) as error:
        connection.send(Failed(ConfigError(f"a loader worker cannot import what it was sent ({error}); {IMPORTABLE}")))
        return
    # At once, not when storage has answered: nobody is left to take its batches.
    serve(connection, mmap.mmap(memory_descriptor, 0), work, on_end=lambda: os._exit(0))


if __name__ == "__main__":
    main(sys.argv[1:])
