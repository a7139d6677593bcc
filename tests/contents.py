"""What a dataset holds, sample by sample, and what stands in the way."""

from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.dataset.dataset import Address, Dataset
from pipeline.upkeep.verify import Fault, verify
from pipeline.work.pools import InProcess


def addresses(dataset: Dataset) -> list[Address]:
    return [Address(shard["shard"], row) for shard in dataset.shards for row in range(shard["num_samples"])]


def abouts(dataset: Dataset) -> list[dict[str, Any]]:
    """Return the JSON of every sample."""
    return [dataset.read_about(address) for address in addresses(dataset)]


def source_counts(dataset: Dataset) -> Counter[str]:
    """Return how many samples come from each row of the sources."""
    return Counter(about["source"] for about in abouts(dataset))


def images(dataset: Dataset) -> list[bytes]:
    """Return the bytes of every image, sorted."""
    return sorted(dataset.read_image(address) for address in addresses(dataset))


def faults(dataset: Dataset, level: str = "decode") -> list[Fault]:
    return list(verify(dataset, level, InProcess()))


def original_names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))


def originals(folder: Path) -> list[bytes]:
    """Return the bytes of every image of a folder, sorted."""
    return sorted(path.read_bytes() for path in folder.rglob("*.jpg"))
