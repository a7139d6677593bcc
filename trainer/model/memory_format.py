"""The order of a tensor's values in memory."""

import torch
from torch import Tensor


def memory_format_of(tensor: Tensor) -> torch.memory_format:
    """Return channels-last where a tensor of four axes is so, else the contiguous one."""
    is_last = tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format
