"""What a downstream task is: its classes, how its published splits become ours, and which augmentation it takes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.base.errors import ConfigError
from pipeline.base.seeds import rng

Group = Literal["natural", "specialized", "structured"]


class Portion(NamedTuple):
    """Part of a published split.

    Attributes:
        split: Its published name.
        start_percent: Where it begins; the row is rounded to the nearest one, as TFDS does.
        stop_percent: Where it ends.
        most: Most pictures of it that are taken, from its beginning; None for all.
    """

    split: str
    start_percent: int = 0
    stop_percent: int = 100
    most: int | None = None

    def rows(self, num_rows: int) -> range:
        """Return the rows of a published split of `num_rows` that are in it."""
        start, stop = (round(num_rows * percent / 100) for percent in (self.start_percent, self.stop_percent))
        return range(start, stop if self.most is None else min(stop, start + self.most))


@dataclass(frozen=True, kw_only=True)
class Task:
    """A downstream task.

    Attributes:
        name: On the command line, such as `vtab/clevr-count`.
        title: For people.
        group: Of VTAB; None for a task outside of it.
        original: Whose files it is made of: several tasks may be made of one original.
        label: Which label of the original, where it has several or they are derived.
        num_classes: Of the whole task.
        classes: Names by label; empty where the files bring them.
        height_px: Nominal height of its pictures.
        width_px: Nominal width.
        published: Pictures of each published split.
        splits: Our splits, each of one or several portions.
        flip: False where the label depends on direction [paper appendix F].
        crop: False where the label depends on position or distance [paper appendix F].
    """

    name: str
    title: str
    group: Group | None = None
    original: str
    label: str = "label"
    num_classes: int
    classes: tuple[str, ...] = ()
    height_px: int
    width_px: int
    published: Mapping[str, int] = field(default_factory=dict)
    splits: Mapping[str, tuple[Portion, ...]]
    flip: bool = True
    crop: bool = True

    def num_pictures(self, split: str) -> int:
        """Return how many pictures one of our splits has."""
        return sum(len(portion.rows(self.published[portion.split])) for portion in self.splits[split])


def check_counts(task: Task, found: Mapping[str, int]) -> None:
    """Refuse files that are not the task's.

    Raises:
        ConfigError: A published split is missing, or has another number of pictures.
    """
    missing = [split for split in task.published if split not in found]
    if missing:
        raise ConfigError(f"{task.name}: the files have no split {', '.join(missing)}; they have {', '.join(found)}")
    wrong = [
        f"{split} has {found[split]:,} pictures and should have {count:,}"
        for split, count in task.published.items()
        if found[split] != count
    ]
    if wrong:
        raise ConfigError(f"{task.name}: {'; '.join(wrong)}; get the whole set, or write --any-size for a part of it")


def chosen_rows(
    task: Task, split: str, sizes: Mapping[str, int], *, in_order: bool
) -> dict[str, npt.NDArray[np.int64]]:
    """Return which rows of the published splits are in one of ours, ascending.

    Args:
        task: The task.
        split: One of ours.
        sizes: Rows of each published split.
        in_order: Whether rows come in the order of TFDS, in which VTAB takes "the first 800". Other files are in the
            order of their classes or factors; then rows are taken in a random order that is always the same.
    """
    chosen: dict[str, list[npt.NDArray[np.int64]]] = {}
    for portion in task.splits[split]:
        num_rows = sizes[portion.split]
        order = np.arange(num_rows)
        if not in_order and len(portion.rows(num_rows)) < num_rows:
            order = rng(0, "task", task.original, portion.split).permutation(num_rows)
        rows = portion.rows(num_rows)
        chosen.setdefault(portion.split, []).append(order[rows.start : rows.stop])
    return {name: np.sort(np.concatenate(parts)) for name, parts in chosen.items()}
