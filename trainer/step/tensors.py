"""From numpy batches to tensors on the device."""

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.streaming.stream import Batch


@dataclass(frozen=True)
class TensorBatch:
    """A rank's batch on its device.

    Attributes:
        images_BCHW: uint8, or floats in [-1, 1].
        targets_BK: float32 multi-hot.
    """

    images_BCHW: Tensor
    targets_BK: Tensor


def to_device(batch: Batch, num_classes: int, device: torch.device) -> TensorBatch:
    """Take a batch to the device; on a CPU the pictures stay where they are.

    Of labels, only the positions of the ones go: with 21,843 classes, a batch of 256 would be 22 MB of zeros.
    """
    rows = torch.tensor([row for row, labels in enumerate(batch.labels) for _ in labels], dtype=torch.int64)
    classes = torch.tensor([label for labels in batch.labels for label in labels], dtype=torch.int64)
    images, rows, classes = _moved([torch.from_numpy(batch.images), rows, classes], device)
    targets = torch.zeros(len(batch.labels), num_classes, device=device)
    targets[rows, classes] = 1.0
    return TensorBatch(images.permute(0, 3, 1, 2), targets)


def images_to_device(batch: Batch, device: torch.device) -> Tensor:
    """Return the pictures of a batch as `pixels_to_device` does."""
    return pixels_to_device(batch.images, device)


def pixels_to_device(images_BHWC: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    """Take pictures to the device; on a CPU they stay where they are.

    Returns:
        uint8, shape (B, C, H, W), channels last.
    """
    return _moved([torch.from_numpy(images_BHWC)], device)[0].permute(0, 3, 1, 2)


def _moved(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """Take tensors to the device: from pinned memory, on a stream of its own, beside the steps that are queued there.

    What is queued from now on waits for them. They may be changed here at once.
    """
    if device.type == "cpu":
        return tensors
    copies = _copies(device)
    with copies:
        moved = [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
    steps = torch.accelerator.current_stream(device)
    steps.wait_stream(copies)
    for tensor in moved:
        tensor.record_stream(steps)  # its memory is not given to another copy before the step is done
    return moved


@functools.cache
def _copies(device: torch.device) -> torch.Stream:
    return torch.Stream(device)
