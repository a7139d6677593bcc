"""Where the ranks of a launch show that they live, and read whether they are to stop: an actor on Ray."""

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from trainer.step.ranks import World

logger = logging.getLogger(__name__)

_SIGN_SECONDS = 5.0
_SILENT_SECONDS = 20.0  # four signs missed: then the rank is stopped, swapped out, or cut off
_AGAIN_SECONDS = 60.0  # between two lines on one rank
_ANSWER_SECONDS = 5.0


class Life(NamedTuple):
    """The last sign of life of a rank.

    Attributes:
        rank: Its number.
        place: Host and process.
        step: Steps done; -1 before the first one.
        silent_seconds: For how long it has given none, by the clock of the board: those of hosts may differ.
    """

    rank: int
    place: str
    step: int
    silent_seconds: float = 0.0


class _State:
    """What the actor holds."""

    def __init__(self) -> None:
        self._lives: dict[int, tuple[Life, float]] = {}
        self._wants_stop = False
        self._stopped = ""

    def sign(self, life: Life) -> bool:
        """Take a sign of life, and return whether the run is to stop."""
        self._lives[life.rank] = life, time.monotonic()
        return self._wants_stop

    def end(self, rank: int) -> None:
        """Forget a rank that has ended."""
        self._lives.pop(rank, None)

    def lives(self) -> list[Life]:
        """Return the last sign of every rank."""
        now = time.monotonic()
        return [life._replace(silent_seconds=now - came) for life, came in self._lives.values()]

    def request_stop(self) -> None:
        """Ask the ranks to stop."""
        self._wants_stop = True

    def report_stop(self, message: str) -> None:
        """Keep what the run says as it stops."""
        self._stopped = message

    def stopped(self) -> str:
        """Return what the run said as it stopped, or nothing."""
        return self._stopped


class Board:
    """The actor of a launch, seen from the driver or from a rank. Whatever it does not answer is let go."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._wants_stop = False

    @classmethod
    def start(cls, launch_id: str) -> "Board":
        """Start the actor of a launch; called by the driver."""
        import ray  # noqa: PLC0415

        state = ray.remote(num_cpus=0, max_restarts=-1)(_State)
        return cls(state.options(name=f"bit-{launch_id}").remote())

    @classmethod
    def join(cls, launch_id: str) -> "Board":
        """Find the actor of a launch; called by a rank."""
        import ray  # noqa: PLC0415

        return cls(ray.get_actor(f"bit-{launch_id}"))

    def sign(self, life: Life) -> None:
        """Give a sign of life, and learn whether the run is to stop."""
        self._wants_stop = bool(self._ask("sign", life, default=self._wants_stop))

    def end(self, rank: int) -> None:
        """Take a rank off the board."""
        self._ask("end", rank)

    def wants_stop(self) -> bool:
        """Return whether the run is to stop, as the last sign of life learned."""
        return self._wants_stop

    def lives(self) -> list[Life]:
        """Return the last sign of every rank."""
        return list(self._ask("lives", default=[]))

    def request_stop(self) -> None:
        """Ask the ranks to stop."""
        self._ask("request_stop")

    def report_stop(self, message: str) -> None:
        """Leave what the run says as it stops."""
        self._ask("report_stop", message)

    def stopped(self) -> str:
        """Return what the run said as it stopped, or nothing."""
        return str(self._ask("stopped", default=""))

    def _ask(self, name: str, *arguments: Any, default: Any = None) -> Any:
        import ray  # noqa: PLC0415

        with suppress(ray.exceptions.RayError):
            return ray.get(getattr(self._actor, name).remote(*arguments), timeout=_ANSWER_SECONDS)
        return default


@contextmanager
def sign_of_life(board: Board, world: World) -> Iterator[Callable[[int], None]]:
    """Show on the board every few seconds that this rank lives, and yield a function that takes the steps done."""
    place, step, is_over = f"{socket.gethostname()}, process {os.getpid()}", -1, threading.Event()

    def take(done: int) -> None:
        nonlocal step
        step = done

    def show() -> None:
        while True:
            board.sign(Life(world.rank, place, step))
            if is_over.wait(_SIGN_SECONDS):
                return

    thread = threading.Thread(target=show, name="sign-of-life", daemon=True)
    thread.start()
    try:
        yield take
    finally:
        is_over.set()
        thread.join(_ANSWER_SECONDS)
        board.end(world.rank)


class Watch:
    """Finds ranks that give no sign of life, and says so."""

    def __init__(self, limit_seconds: float) -> None:
        """Begin to watch.

        Args:
            limit_seconds: For how long the other ranks wait for one, for the message.
        """
        self._limit_seconds = limit_seconds
        self._said: dict[int, float] = {}

    def news(self, lives: list[Life], now: float) -> list[str]:
        """Return lines on ranks that have fallen silent, or came back."""
        lines = []
        for life in sorted(lives):
            silent = life.silent_seconds
            if silent < _SILENT_SECONDS:
                if self._said.pop(life.rank, None):
                    lines.append(f"rank {life.rank} ({life.place}) is back")
                continue
            if now - self._said.get(life.rank, -math.inf) >= _AGAIN_SECONDS:
                self._said[life.rank] = now
                lines.append(
                    f"rank {life.rank} ({life.place}) has given no sign of life for {silent:.0f} s, since step "
                    f"{max(life.step, 0):,}; the other ranks wait for it for {self._limit_seconds:.0f} s, then the "
                    f"group starts again from the last checkpoint"
                )
        return lines
