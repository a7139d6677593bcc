"""How the driver ends a group that waits for workers: by Ray's controller of it, which Ray Train shows to nobody."""

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.context import TrainRunContext

from trainer.run.board import Board


class ShowController(ControllerCallback):  # type: ignore[misc]  # Ray has no types
    """Leaves the controller of a group on the launch's board."""

    def __init__(self, launch_id: str) -> None:
        """Look after a launch of that name."""
        self._launch_id = launch_id

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """See ControllerCallback."""
        del train_run_context
        Board.join(self._launch_id).show_controller(ray.get_runtime_context().current_actor)


def end_controller(board: Board) -> None:
    """Kill the controller of a group, and with it what it has asked Ray for; nothing where none has begun.

    Whoever waits in `fit` then learns of its death. Ending the connection to Ray instead would end the process: a
    thread that asks Ray for anything afterwards is answered by `_exit(1)`, in Ray 2.60.
    """
    controller = board.controller()
    if controller is not None:
        ray.kill(controller)
