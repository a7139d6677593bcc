"""Preparing pictures that may kill the decoder, or keep it busy for ever.

A worker dies with a picture that takes too long, as it does with one that crashes the decoder. After two such deaths
the shard is packed carefully: each picture in a child process with a time-out, and the culprit is rejected.
"""

import multiprocessing
import signal
from contextlib import suppress
from multiprocessing.connection import Connection

from pipeline.base.errors import BadImage
from pipeline.image.policy import ImagePolicy, Prepared, prepare

PICTURE_SECONDS = 60.0  # 88 MP in ten scans take 1.1 s on one core of docs/benchmarks/README.md; limits allow 100 scans
_START_SECONDS = 60.0  # of a child on a busy machine


def prepare_or_die(data: bytes, policy: ImagePolicy) -> Prepared:
    """Do as `prepare`, in a process that may be lost: SIGALRM ends it after PICTURE_SECONDS."""
    signal.setitimer(signal.ITIMER_REAL, PICTURE_SECONDS)
    try:
        return prepare(data, policy)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class Isolated:
    """Prepares pictures in a child process, which is replaced when it dies. For one thread; close it in the end."""

    def __init__(self, picture_seconds: float = PICTURE_SECONDS) -> None:
        self._picture_seconds = picture_seconds
        self._child: tuple[multiprocessing.process.BaseProcess, Connection] | None = None

    def __call__(self, data: bytes, policy: ImagePolicy) -> Prepared:
        """Do as `prepare`. A picture gets a second child before it counts as the cause of a death.

        Raises:
            BadImage: As prepare; and with reason `crashed` or `timeout`.
        """
        try:
            return self._once(data, policy)
        except BadImage as error:
            if error.reason not in ("crashed", "timeout"):
                raise
            return self._once(data, policy)

    def _once(self, data: bytes, policy: ImagePolicy) -> Prepared:
        _, connection = self._child = self._child or _start()
        try:
            connection.send((data, policy))
            if not connection.poll(self._picture_seconds):
                self.close()
                raise BadImage("timeout", f"not decoded within {self._picture_seconds:g} s")
            answer = connection.recv()
        except (EOFError, OSError) as error:
            self.close()
            raise BadImage("crashed", "it killed the process that decoded it") from error
        if isinstance(answer, Prepared):
            return answer
        raise BadImage(*answer)

    def close(self) -> None:
        """End the child."""
        if self._child:
            process, connection = self._child
            process.kill()
            process.join()
            connection.close()
            self._child = None


def _start() -> tuple[multiprocessing.process.BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    ours.poll(_START_SECONDS)
    ours.recv()  # its start does not count as the first picture's time
    return process, ours


def _serve(connection: Connection) -> None:
    connection.send("ready")
    with suppress(EOFError):  # the worker is gone
        while True:
            data, policy = connection.recv()
            try:
                connection.send(prepare(data, policy))
            except BadImage as error:
                connection.send((error.reason, error.detail))
