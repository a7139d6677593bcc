"""Class-balanced subsets of a training set, reproducible from a seed."""

import numpy as np
import numpy.typing as npt

from pipeline.base.errors import ConfigError
from pipeline.base.seeds import rng


def few_shot_rows(
    labels: npt.NDArray[np.int64], num_classes: int, shots: int, seed: int, subset: int
) -> npt.NDArray[np.int64]:
    """Choose `shots` samples of every class, without replacement.

    Args:
        labels: First label of every sample, shape (samples,).
        num_classes: Classes of the task.
        shots: Samples a class; 0 for all samples.
        seed: Key of the choice.
        subset: Number of the subset; subsets of a seed are drawn independently.

    Returns:
        Sorted sample indices.

    Raises:
        ConfigError: A class has fewer samples than shots.
    """
    if shots == 0:
        return np.arange(len(labels))
    chosen = []
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        if len(members) < shots:
            raise ConfigError(f"class {label} has {len(members)} training pictures, fewer than {shots} shots")
        chosen.append(rng(seed, "few-shot", subset, shots, label).choice(members, shots, replace=False))
    return np.sort(np.concatenate(chosen))
