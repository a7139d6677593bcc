"""Where the ranks of a launch show that they live, and read what they are asked for: an actor on Ray."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from trainer.run.lives import Life, stuck

_ANSWER_SECONDS = 5.0
_LINES = 1000  # that wait for the driver; a choice


class Wishes(NamedTuple):
    """What a rank learns when it gives a sign of life.

    Attributes:
        wants_stop: Whether the run is to stop.
        num_saves: How often the run was asked to save and go on.
        stuck: Why the run cannot go on, so that the rank is to end itself; nothing where it can.
    """

    wants_stop: bool = False
    num_saves: int = 0
    stuck: str = ""


class Line(NamedTuple):
    """What a rank has to say to whoever started the run."""

    text: str
    is_row: bool  # a row of figures, for stdout


class BoardState:
    """What the actor holds; in a run of a single process, all that there is."""

    def __init__(self, least_seconds: float) -> None:
        """Begin without ranks; `least_seconds` as for `trainer.run.lives.limit_seconds`."""
        self._least_seconds = least_seconds
        self._group = 0
        self._lives: dict[int, tuple[Life, float]] = {}
        self._wants_stop = False
        self._num_saves = 0
        self._stopped = ""
        self._lines: deque[Line] = deque(maxlen=_LINES)
        self._controller: Any = None

    def sign(self, life: Life) -> Wishes:
        """Take a sign of life, and return what the rank is asked for.

        The first sign of a later group forgets the ranks of the one before it, of which some were killed.
        """
        if life.group < self._group:
            return Wishes(self._wants_stop, self._num_saves)
        if life.group > self._group:
            self._group = life.group
            self._lives.clear()
        self._lives[life.rank] = life, time.monotonic()
        return Wishes(self._wants_stop, self._num_saves, stuck(self.lives(), self._least_seconds))

    def end(self, rank: int, group: int = 0) -> None:
        """Forget a rank that has ended."""
        if group == self._group:
            self._lives.pop(rank, None)

    def lives(self) -> list[Life]:
        """Return the last sign of every rank."""
        now = time.monotonic()
        return [life._replace(silent_seconds=now - came) for life, came in self._lives.values()]

    def request_stop(self) -> None:
        """Ask the ranks to stop."""
        self._wants_stop = True

    def request_save(self) -> None:
        """Ask the ranks to save, and to go on."""
        self._num_saves += 1

    def say(self, line: Line) -> None:
        """Keep a line for the driver; the oldest go where it does not come for them."""
        self._lines.append(line)

    def take_lines(self) -> list[Line]:
        """Return the lines since the last call."""
        lines = list(self._lines)
        self._lines.clear()
        return lines

    def report_stop(self, message: str) -> None:
        """Keep what the run says as it stops."""
        self._stopped = message

    def stopped(self) -> str:
        """Return what the run said as it stopped, or nothing."""
        return self._stopped

    def show_controller(self, controller: Any) -> None:
        """Keep Ray Train's controller, an actor."""
        self._controller = controller

    def controller(self) -> Any:
        """Return Ray Train's controller, or None before it has begun."""
        return self._controller


class Board:
    """The actor of a launch, seen from the driver or from a rank. Whatever it does not answer is let go."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._wishes = Wishes()
        self._num_saves_taken: int | None = None  # None before the first sign: what was asked for earlier is done

    @classmethod
    def start(cls, launch_id: str, least_seconds: float) -> "Board":
        """Start the actor of a launch; called by the driver.

        Args:
            launch_id: Name of the launch.
            least_seconds: See `trainer.run.lives.limit_seconds`.
        """
        import ray  # noqa: PLC0415
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

        # Beside the driver, which looks at it: other nodes may be lost, and a node that is to go stays as long as an
        # actor is on it. A soft affinity Ray 2.60 does not keep.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        state = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(BoardState)
        return cls(state.options(name=f"bit-{launch_id}").remote(least_seconds))

    @classmethod
    def join(cls, launch_id: str) -> "Board":
        """Find the actor of a launch; called by a rank."""
        import ray  # noqa: PLC0415

        return cls(ray.get_actor(f"bit-{launch_id}"))

    def sign(self, life: Life) -> Wishes:
        """Give a sign of life, and learn what the rank is asked for."""
        self._wishes = self._ask("sign", life, default=self._wishes._replace(stuck=""))
        if self._num_saves_taken is None:
            self._num_saves_taken = self._wishes.num_saves
        return self._wishes

    @contextmanager
    def leaving(self, rank: int, group: int) -> Iterator[None]:
        """Take a rank off the board in the end."""
        try:
            yield
        finally:
            self._ask("end", rank, group)

    def wants_stop(self) -> bool:
        """Return whether the run is to stop, as the last sign of life learned."""
        return self._wishes.wants_stop

    def wants_save(self) -> bool:
        """Return whether a save was asked for since the last call, as the last sign of life learned."""
        is_new = self._num_saves_taken is not None and self._wishes.num_saves > self._num_saves_taken
        self._num_saves_taken = self._wishes.num_saves
        return is_new

    def lives(self) -> list[Life]:
        """Return the last sign of every rank."""
        return list(self._ask("lives", default=[]))

    def request_stop(self) -> None:
        """Ask the ranks to stop."""
        self._ask("request_stop")

    def request_save(self) -> None:
        """Ask the ranks to save, and to go on."""
        self._ask("request_save")

    def say(self, text: str, *, is_row: bool = False) -> None:
        """Leave a line for whoever started the run."""
        self._ask("say", Line(text, is_row))

    def take_lines(self) -> list[Line]:
        """Return the lines of all ranks since the last call."""
        return list(self._ask("take_lines", default=[]))

    def report_stop(self, message: str) -> None:
        """Leave what the run says as it stops."""
        self._ask("report_stop", message)

    def stopped(self) -> str:
        """Return what the run said as it stopped, or nothing."""
        return str(self._ask("stopped", default=""))

    def show_controller(self, controller: Any) -> None:
        """Leave Ray Train's controller, an actor."""
        self._ask("show_controller", controller)

    def controller(self) -> Any:
        """Return Ray Train's controller, or None before it has begun."""
        return self._ask("controller")

    def _ask(self, name: str, *arguments: Any, default: Any = None) -> Any:
        import ray  # noqa: PLC0415

        with suppress(ray.exceptions.RayError):
            return ray.get(getattr(self._actor, name).remote(*arguments), timeout=_ANSWER_SECONDS)
        return default
