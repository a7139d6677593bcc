"""Class-balanced subsets of a training set, reproducible from a seed."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from pipeline.base.errors import ConfigError
from pipeline.base.seeds import rng

_NAMED = 5  # classes in a message; a choice


def few_shot_rows(
    labels: Sequence[Sequence[int]],
    classes: Sequence[str],
    shots: int,
    seed: int,
    subset: int,
    *,
    allow_fewer: bool = False,
) -> npt.NDArray[np.int64]:
    """Choose `shots` samples of every class, without replacement; a sample counts for each of its labels.

    Args:
        labels: Those of every sample.
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
    rows = np.repeat(np.arange(len(labels)), [len(each) for each in labels])
    flat = np.fromiter(chain.from_iterable(labels), np.int64, len(rows))
    ends = np.cumsum(np.bincount(flat, minlength=len(classes)))[:-1]
    members = [np.unique(each) for each in np.split(rows[np.argsort(flat, kind="stable")], ends)]
    short = [f"{name!r} ({len(rows)})" for name, rows in zip(classes, members, strict=True) if len(rows) < shots]
    if short and not allow_fewer:
        more = f" and {len(short) - _NAMED} more" if len(short) > _NAMED else ""
        raise ConfigError(
            f"{len(short)} classes have fewer training pictures than {shots} shots: {', '.join(short[:_NAMED])}{more}; "
            f"take fewer shots, or all that there are with --set allow_fewer_shots=true"
        )
    chosen = np.zeros(len(labels), bool)
    for label in sorted(range(len(classes)), key=lambda label: len(members[label])):  # common ones come with rare ones
        left = members[label][~chosen[members[label]]]
        num_missing = min(shots, len(members[label])) - (len(members[label]) - len(left))
        if num_missing > 0:
            chosen[rng(seed, "few-shot", subset, shots, label).choice(left, num_missing, replace=False)] = True
    return np.flatnonzero(chosen)
