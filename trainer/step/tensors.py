"""From numpy batches to tensors on the device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.dataset.dataset import label_matrix
from pipeline.streaming.stream import Batch


@dataclass(frozen=True)
class TensorBatch:
    """A rank's batch on its device.

    Attributes:
        images_BCHW: float32 in [-1, 1].
        targets_BK: float32 multi-hot.
    """

    images_BCHW: Tensor
    targets_BK: Tensor


def to_device(batch: Batch, num_classes: int, device: torch.device) -> TensorBatch:
    """Move uint8 pictures to the device and normalises them there: a quarter of the bytes cross the bus."""
    images = torch.from_numpy(batch.images)
    targets = torch.from_numpy(label_matrix([list(labels) for labels in batch.labels], num_classes))
    if device.type == "cuda":  # from pinned memory a copy runs beside the computation
        images, targets = images.pin_memory(), targets.pin_memory()
    images = images.to(device, non_blocking=True)
    return TensorBatch(
        images_BCHW=images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0),
        targets_BK=targets.to(device, non_blocking=True),
    )
