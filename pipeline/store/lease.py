"""One run at a time on a destination: the newest. An older one notices and stops.

Each run creates the lease with the next free number; a run is fenced when a higher one exists. No clock and no
heartbeat: after a crash the next run starts at once. Workers of a fenced run do no harm, since all they write is
created if absent and the same from everyone; only publishing is left to the newest.
"""

import os
import socket
import time

from pipeline.base.errors import Fenced
from pipeline.base.parsing import parse_record
from pipeline.base.records import Record
from pipeline.store.base import Store

_CHECK_SECONDS = 2.0
PREFIX = "leases/"


class _LeaseRecord(Record):
    host: str
    pid: int
    started: float


class Lease:
    """The right to publish; take it with `take`. May be pickled."""

    def __init__(self, store: Store, number: int) -> None:
        """Hold a right that was taken, here or in another process."""
        self._store = store
        self._checked = time.monotonic()
        self.number = number

    @classmethod
    def take(cls, store: Store) -> "Lease":
        """Take the right from whoever has it. Raises StorageError as the destination."""
        body = _LeaseRecord(host=socket.gethostname(), pid=os.getpid(), started=time.time()).to_json()
        number = max(_numbers(store), default=0) + 1
        while not store.create(_key(number), body):
            number += 1
        return cls(store, number)

    def check(self, *, now: bool = False) -> None:
        """Ask the store, every two seconds or at once, whether this run still has the right.

        Raises:
            Fenced: A newer run has started.
        """
        if not now and time.monotonic() - self._checked < _CHECK_SECONDS:
            return
        self._checked = time.monotonic()
        newest = max(_numbers(self._store), default=0)  # those in between may have been removed by `pipeline gc`
        if newest > self.number:
            key = _key(newest)
            taker = parse_record(_LeaseRecord, self._store.read(key), f"{self._store.url}/{key}")
            raise Fenced(
                f"{self._store.url}: a newer run (host {taker.host}, process {taker.pid}) has taken over, and this one "
                f"stops. If both do the same, that one uses what this one stored; if not, run this one again later"
            )


def _numbers(store: Store) -> list[int]:
    return [int(entry.key[len(PREFIX) :].partition(".")[0]) for entry in store.list(PREFIX)]


def _key(number: int) -> str:
    return f"{PREFIX}{number:06d}.json"
