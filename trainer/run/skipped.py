"""Steps that a run leaves out since their loss or gradient was not finite: so many and no more, whoever starts it."""

import logging

from pipeline.base.records import json_bytes
from pipeline.store.base import Store
from trainer.run.events import write_event
from trainer.step.ranks import World, broadcast

logger = logging.getLogger(__name__)

_FOLDER = "skipped/"


class SkippedSteps:
    """The steps that a run has left out, the same on every rank."""

    def __init__(self, store: Store, world: World, most: int) -> None:
        """Read what earlier starts left out; every rank must call.

        Args:
            store: The run's folder.
            world: This rank.
            most: Steps that the whole run may leave out.
        """
        self._store, self._world, self._most = store, world, most
        self._steps: set[int] = broadcast(world, _read(store) if world.is_first else None)

    def passes_over(self, step: int, why: str) -> bool:
        """Return whether a step is left out, and record it; a step that is made again counts once.

        Args:
            step: Its number, counted from 0.
            why: What is known of it.
        """
        if step not in self._steps and len(self._steps) >= self._most:
            return False
        self._steps.add(step)
        body = json_bytes({"step": step, "rank": self._world.rank, "why": why})
        self._store.create(f"{_FOLDER}{step:09d}-rank{self._world.rank}.json", body)
        if self._world.is_first:
            write_event(self._store, "skipped", step, why=why)
            logger.warning("left out (%d of %d that may be): %s", len(self._steps), self._most, why)
        return True


def _read(store: Store) -> set[int]:
    names = (entry.key.removeprefix(_FOLDER) for entry in store.list(_FOLDER))
    return {int(name.partition("-")[0]) for name in names}
