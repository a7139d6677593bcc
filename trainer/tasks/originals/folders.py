"""Class folders without published splits: EuroSAT, Resisc45 and Caltech101."""

from pathlib import Path

import numpy as np

from pipeline.base.errors import ConfigError
from pipeline.base.seeds import rng
from pipeline.packing.sources.folder import is_image_name
from trainer.tasks.originals.base import Example, Original, listed
from trainer.tasks.task import Task

_NAMED = 5  # folders in a message; a choice
_CALTECH_TRAIN = 30  # pictures of each class; the others are for testing
_CALTECH_FEWER = {"BACKGROUND_Google": 29}  # so that there are 3,059 as in VTAB; which class has one less is a choice
_SUBFOLDERS = {
    "eurosat": ("2750", "EuroSAT", "EuroSAT_RGB"),
    "resisc45": ("NWPU-RESISC45", "RESISC45"),
    "caltech101": ("101_ObjectCategories", "caltech-101/101_ObjectCategories"),
}


def read_folders(root: Path, task: Task) -> Original:
    """Return a set in class folders, all of it in the split `train`."""
    classes, examples = _examples(root, task)
    return Original(classes, {"train": listed(examples)})


def read_caltech(root: Path, task: Task) -> Original:
    """Return Caltech101: 30 random pictures of each class for training and the rest for testing, as is usual.

    Which 30 is not published with the pictures: only files of TFDS have the division of VTAB.
    """
    classes, examples = _examples(root, task)
    train: list[Example] = []
    test: list[Example] = []
    for name in classes:
        mine = [example for example in examples if example.label == name]
        order = rng(0, "caltech101", name).permutation(len(mine))
        num_train = _CALTECH_FEWER.get(name, _CALTECH_TRAIN)
        train += [mine[row] for row in np.sort(order[:num_train])]
        test += [mine[row] for row in np.sort(order[num_train:])]
    return Original(classes, {"train": listed(train), "test": listed(test)})


def read_own(root: Path, task: Task) -> Original:
    """Return a user's task: class folders below a folder for each published split, `SPLIT/CLASS/NAME.jpg`."""
    splits = {}
    for split in task.published:
        names = sorted(str(path.relative_to(root)) for path in (root / split).glob("*/*") if is_image_name(path.name))
        examples = [Example(name.partition("/")[2], str(root / name), name.split("/")[1]) for name in names]
        unknown = sorted({example.label for example in examples} - set(task.classes))
        if unknown:
            raise ConfigError(f"{root}/{split} has folders of no class of {task.name}: {', '.join(unknown[:_NAMED])}")
        splits[split] = listed(examples)
    return Original(task.classes, splits)


def _examples(root: Path, task: Task) -> tuple[tuple[str, ...], list[Example]]:
    folder = next((root / name for name in _SUBFOLDERS[task.original] if (root / name).is_dir()), root)
    names = sorted(str(path.relative_to(folder)) for path in folder.glob("*/*") if is_image_name(path.name))
    examples = [Example(name, str(folder / name), name.partition("/")[0]) for name in names]
    return tuple(sorted({example.label for example in examples})), examples
