"""From numpy batches to tensors on the device."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
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
    """Move a batch to the device."""
    targets = torch.from_numpy(label_matrix([list(labels) for labels in batch.labels], num_classes))
    if device.type == "cuda":
        targets = targets.pin_memory()
    return TensorBatch(images_to_device(batch, device), targets.to(device, non_blocking=True))


def images_to_device(batch: Batch, device: torch.device) -> Tensor:
    """Return the pictures of a batch as `pixels_to_device` does."""
    return pixels_to_device(batch.images, device)


def pixels_to_device(images_BHWC: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    """Move uint8 pictures to the device and normalise them there: a quarter of the bytes cross the bus.

    Returns:
        float32 in [-1, 1], shape (B, C, H, W).
    """
    images = torch.from_numpy(images_BHWC)
    if device.type == "cuda":  # from pinned memory a copy runs beside the computation
        images = images.pin_memory()
    return images.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
