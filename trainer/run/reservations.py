"""What Ray holds free for a group of workers, and that a start gives back what one that was killed held.

Ray Train 2.60 counts what other groups have asked for as theirs, for three minutes after their controller was killed: a
driver that is started again would wait so long for the processors of its own dead workers.
"""

import logging

import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.context import TrainRunContext

from pipeline.base.errors import StorageError
from pipeline.store.base import Store
from pipeline.store.url import open_store

logger = logging.getLogger(__name__)

_FOLDER = "reservations/"
_ANSWER_SECONDS = 30.0


class RecordReservation(ControllerCallback):  # type: ignore[misc]  # Ray has no types
    """Writes down, in the folder of a run, under which name Ray holds what its group asks for."""

    def __init__(self, out: str) -> None:
        """Look after a launch that writes to the URL `out`."""
        self._out = out

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """See ControllerCallback."""
        try:
            open_store(self._out).create(f"{_FOLDER}train-{train_run_context.run_id}", b"")
        except StorageError as error:  # costs the next start three minutes at most
            logger.warning("what the group asks Ray for is not recorded, since the store does not answer: %s", error)


def give_back(store: Store) -> None:
    """Let go of what earlier launches of a run asked Ray for; they have ended, or may write no more."""
    keys = [entry.key for entry in store.list(_FOLDER)]
    if not keys:
        return
    try:
        coordinator = get_or_create_autoscaling_coordinator()
        ray.get([coordinator.cancel_request.remote(key.removeprefix(_FOLDER)) for key in keys], timeout=_ANSWER_SECONDS)
    except ray.exceptions.RayError as error:
        logger.warning("Ray does not answer, so the workers may be waited for three minutes: %s", error)
        return
    for key in keys:
        store.delete(key)
