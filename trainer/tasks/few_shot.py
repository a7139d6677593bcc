"""Class-balanced subsets of a training set, reproducible from a seed."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.base.errors import ConfigError
from pipeline.base.seeds import rng

_NAMED = 5  # classes in a message; a choice


def few_shot_rows(
    labels: npt.NDArray[np.int64],
    classes: Sequence[str],
    shots: int,
    seed: int,
    subset: int,
    *,
    allow_fewer: bool = False,
) -> npt.NDArray[np.int64]:
    """Choose `shots` samples of every class, without replacement.

    Args:
        labels: First label of every sample, shape (samples,).
        classes: Names of the task's classes, by label.
        shots: Samples a class; 0 for all samples.
        seed: Key of the choice.
        subset: Number of the subset; subsets of a seed are drawn independently.
        allow_fewer: Whether a class with fewer samples than shots gives all it has.

    Returns:
        Sorted sample indices.

    Raises:
        ConfigError: Classes have fewer samples than shots; names them with their counts.
    """
    if shots == 0:
        return np.arange(len(labels))
    members = [np.flatnonzero(labels == label) for label in range(len(classes))]
    short = [f"{name!r} ({len(rows)})" for name, rows in zip(classes, members, strict=True) if len(rows) < shots]
    if short and not allow_fewer:
        more = f" and {len(short) - _NAMED} more" if len(short) > _NAMED else ""
        raise ConfigError(
            f"{len(short)} classes have fewer training pictures than {shots} shots: {', '.join(short[:_NAMED])}{more}; "
            f"take fewer shots, or all that there are with --set allow_fewer_shots=true"
        )
    chosen = [
        rng(seed, "few-shot", subset, shots, label).choice(rows, min(shots, len(rows)), replace=False)
        for label, rows in enumerate(members)
    ]
    return np.sort(np.concatenate(chosen))
