"""What a launch hands to every rank beside its work: the right to the folder, a wish to stop, signs of life."""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.store.lease import Lease


@dataclass(frozen=True)
class Controls:
    """The strings between a launch and a rank.

    Attributes:
        lease: The right to write checkpoints; None where the rank is to take it itself.
        wants_stop: Whether the run is to save its state and end; asked between steps, on rank 0.
        wants_save: Whether the run is to save its state soon and go on, since workers are about to end; asked between
            steps, on rank 0. True once for each wish.
        drain_deadline: When this node or that of another rank will be taken away, in seconds since 1970; None where
            none will. Every rank must call.
        on_phase: Called with what the rank does from now on: start, data, step, evaluation, store, save, or nothing.
        on_step: Called after every step with the steps done.
    """

    lease: Lease | None = None
    wants_stop: Callable[[], bool] = lambda: False
    wants_save: Callable[[], bool] = lambda: False
    drain_deadline: Callable[[], float | None] = lambda: None
    on_phase: Callable[[str], None] = lambda phase: None
    on_step: Callable[[int], None] = lambda done: None
