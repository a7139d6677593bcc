"""What Ray Train's controller does before it ends a running group to start one of another size: have it save."""

import logging
import os
import time

from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ResizingState, TrainControllerState

from pipeline.base.errors import StorageError
from pipeline.store.base import Store
from pipeline.store.url import open_store
from trainer.run.board import Board
from trainer.run.events import write_event
from trainer.run.starts import has_saved_since, progress_of

logger = logging.getLogger(__name__)

RESIZE_SECONDS_VARIABLE = "BIT_RESIZE_SECONDS"
_RESIZE_SECONDS = 300.0  # a choice: a restart takes up to a minute, so growing costs a fifth of the time at most
_MOST_SECONDS = 120.0  # to wait for the save; a choice: after it the steps since the last one are made again
_LOOK_SECONDS = 0.5


def resize_seconds() -> float:
    """Return how long a group stays as it is before it may grow: five minutes, or what the user set."""
    return float(os.environ.get(RESIZE_SECONDS_VARIABLE, _RESIZE_SECONDS))


class SaveBeforeResize(ControllerCallback):  # type: ignore[misc]  # Ray has no types
    """Lets a running group save before it is ended, so that no step is made twice for growing or shrinking.

    Without it Ray Train 2.60 ends the group at once.
    """

    def __init__(self, out: str, launch_id: str, shown: logging.Formatter) -> None:
        """Look after a launch.

        Args:
            out: URL of what it writes.
            launch_id: Name of the launch.
            shown: How messages for whoever started it are written.
        """
        self._out, self._launch_id, self._shown = out, launch_id, shown

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        """See ControllerCallback; blocks the controller until the group has saved."""
        del previous_state
        if not isinstance(current_state, ResizingState):
            return
        board, store = Board.join(self._launch_id), open_store(self._out)
        num_ranks, step = len(board.lives()), max((life.step for life in board.lives()), default=0)
        num_next = current_state.scaling_decision.num_workers
        has_saved = self._has_saved(board, store, step)
        outcome = "saved" if has_saved else "NOT saved in time, so steps since the last checkpoint are made again"
        text = f"the group goes from {num_ranks} ranks to {num_next}: {outcome} after step {step:,}"
        board.say(self._shown.format(logger.makeRecord(logger.name, logging.INFO, "", 0, text, (), None)))
        try:
            write_event(store, "resized", step, ranks_before=num_ranks, ranks_after=num_next, saved=has_saved)
        except StorageError as error:  # a record is not worth a run
            logger.warning("the resize is not recorded, since the store does not answer: %s", error)

    def _has_saved(self, board: Board, store: Store, step: int) -> bool:
        """Ask the group to save, and return whether it has a state after so many steps or more."""
        deadline = time.monotonic() + _MOST_SECONDS
        try:
            before = progress_of(store)
            board.request_save()
            while time.monotonic() < deadline:
                if has_saved_since(before, progress_of(store), step):
                    return True
                time.sleep(_LOOK_SECONDS)
        except StorageError as error:
            logger.warning("the group is resized without a checkpoint, since the store does not answer: %s", error)
        return False
