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
        on_step: Called after every step with the steps done.
    """

    lease: Lease | None = None
    wants_stop: Callable[[], bool] = lambda: False
    on_step: Callable[[int], None] = lambda done: None
