"""One run at a time on a destination: the newest. An older one notices and stops.

Each run creates the lease with the next free number; a run is fenced when a higher one exists. No clock and no
heartbeat: after a crash the next run starts at once. Workers of a fenced run do no harm, since all they write is
created if absent and the same from everyone; only publishing is left to the newest.
"""

import os
import socket
import time

from pipeline.base.errors import Fenced
from pipeline.base.records import Record
from pipeline.store.base import Store, exists

_CHECK_SECONDS = 2.0
PREFIX = "leases/"


class _LeaseRecord(Record):
    host: str
    pid: int
    started: float


class Lease:
    """The right to publish."""

    def __init__(self, store: Store) -> None:
        """Take the right from whoever has it. Raises StorageError as the destination."""
        self._store = store
        self._checked = time.monotonic()
        body = _LeaseRecord(host=socket.gethostname(), pid=os.getpid(), started=time.time()).to_json()
        numbers = [int(entry.key[len(PREFIX) :].partition(".")[0]) for entry in store.list(PREFIX)]
        self.number = max(numbers, default=0) + 1
        while not store.create(_key(self.number), body):
            self.number += 1

    def check(self, *, now: bool = False) -> None:
        """Ask the store, every two seconds or at once, whether this run still has the right.

        Raises:
            Fenced: A newer run has started.
        """
        if not now and time.monotonic() - self._checked < _CHECK_SECONDS:
            return
        self._checked = time.monotonic()
        if exists(self._store, _key(self.number + 1)):
            taker = _LeaseRecord.model_validate_json(self._store.read(_key(self.number + 1)))
            raise Fenced(
                f"{self._store.url}: a newer run (host {taker.host}, process {taker.pid}) has taken over, and this one "
                f"stops. If both pack the same, that one uses what this one packed; if not, run this one again later"
            )


def _key(number: int) -> str:
    return f"{PREFIX}{number:06d}.json"
