"""How well a run uses its time and its GPUs, as figures of its rows."""

import torch

from trainer.model.architecture import parse_architecture
from trainer.model.cost import layers
from trainer.model.peak import peak_flops, utilisation
from trainer.run.events import attempts
from trainer.run.metrics import Row
from trainer.run.running_goodput import RunningGoodput
from trainer.run.training import TrainingRun


class Efficiency:
    """Goodput, restarts and, where the peak of the GPUs is known, MFU; of rank 0."""

    def __init__(self, run: TrainingRun, attempt: str) -> None:
        """Begin with a start of a run that is recorded already."""
        self._goodput = RunningGoodput(run.store, attempt)
        self._num_restarts = len(attempts(run.store)) - 1
        self._num_ranks = run.world.num_ranks
        device = run.world.device
        self._peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self._macs = _macs(run) if self._peak else None

    def figures(self, row: Row) -> dict[str, float]:
        """Return the figures of a row of this start."""
        figures: dict[str, float] = {"restarts": self._num_restarts}
        goodput = self._goodput.add(row)
        if goodput is not None:
            figures["goodput"] = round(goodput, 4)
        if self._peak and self._macs:
            figures["mfu"] = round(utilisation(row["images_per_second"], self._macs, self._num_ranks, self._peak), 4)
        return figures


def _macs(run: TrainingRun) -> int | None:
    """Return the multiply-accumulates of a forward pass of one picture; None where its size is not told."""
    model, side = run.about.get("model"), run.about.get("resolution_px")
    if model is None or side is None:
        return None
    return sum(layer.num_macs for layer in layers(parse_architecture(model), run.num_classes, side))
