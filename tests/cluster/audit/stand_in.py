"""A stand-in for an embedding, which needs no weights."""

from pathlib import Path

import torch


def pixel_model(folder: Path, nearness: str) -> str:
    """Write a stand-in for an embedding: pixels of small pictures and their parts; return the path to its description.

    Args:
        folder: Receives the model.
        nearness: Lines of the table `nearness`.
    """
    pixels = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(10), torch.nn.Flatten())
    torch.jit.trace(pixels, torch.zeros(1, 3, 224, 224)).save(str(folder / "pixels.pt"))
    (folder / "model.toml").write_text(f'model = "pixels.pt"\ncrops = true\n[nearness]\n{nearness}\n')
    return str(folder / "model.toml")
