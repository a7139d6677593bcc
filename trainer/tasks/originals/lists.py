"""Image files with text files that list splits and labels: Pets, Flowers-102, DTD, Sun397, retinopathy, ILSVRC-2012."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.base.errors import ConfigError
from pipeline.packing.sources.folder import is_image_name
from trainer.tasks.originals.base import Example, Original, PublishedSplit, found, lines_of, listed, require_known
from trainer.tasks.task import Task


def read_pets(root: Path, task: Task) -> Original:
    """Return Pets: `images/NAME.jpg`, and `annotations/{trainval,test}.txt` with name, breed, species, number."""
    del task
    splits: dict[str, PublishedSplit] = {}
    classes: dict[int, str] = {}
    for split, name in (("train", "trainval.txt"), ("test", "test.txt")):
        rows = lines_of(found(root, f"annotations/{name}", name))
        for image, breed, *_ in rows:
            classes[int(breed) - 1] = image.rpartition("_")[0]
        examples = [
            Example(f"{image}.jpg", str(root / "images" / f"{image}.jpg"), classes[int(breed) - 1])
            for image, breed, *_ in rows
        ]
        splits[split] = listed(examples)
    return Original(tuple(classes[label] for label in sorted(classes)), splits)


def read_flowers(root: Path, task: Task) -> Original:
    """Return Flowers-102: `jpg/image_NNNNN.jpg`, `imagelabels.mat` and `setid.mat`.

    The lists have numbers for classes, from 1. The list of test pictures is the longest one: the site's `tstid`.
    """
    labels = _matlab(found(root, "imagelabels.mat"))["labels"].reshape(-1).tolist()
    ids = _matlab(found(root, "setid.mat"))
    classes = tuple(str(number) for number in range(1, task.num_classes + 1))
    splits: dict[str, PublishedSplit] = {}
    for split, field in (("train", "trnid"), ("validation", "valid"), ("test", "tstid")):
        numbers = ids[field].reshape(-1).tolist()
        splits[split] = listed(
            [
                Example(
                    f"image_{number:05d}.jpg",
                    str(root / "jpg" / f"image_{number:05d}.jpg"),
                    require_known(labels[number - 1] - 1, classes, f"{root}/imagelabels.mat"),
                )
                for number in numbers
            ]
        )
    return Original(classes, splits)


def read_dtd(root: Path, task: Task) -> Original:
    """Return DTD: `images/CLASS/NAME.jpg`, and the first of its ten divisions, `labels/{train,val,test}1.txt`."""
    del task
    splits = {
        split: _paths(root / "images", [words[0] for words in lines_of(found(root, f"labels/{name}1.txt"))])
        for split, name in (("train", "train"), ("validation", "val"), ("test", "test"))
    }
    return Original(_folders(root / "images"), splits)


def read_sun397(root: Path, task: Task) -> Original:
    """Return Sun397: `a/abbey/sun_NAME.jpg`, and the lists of TFDS, `{tr,va,te}` in their names, beside it."""
    del task
    splits: dict[str, PublishedSplit] = {}
    classes: set[str] = set()
    for split, ending in (("train", "tr"), ("validation", "va"), ("test", "te")):
        names = [words[0].lstrip("/") for words in lines_of(found(root, f"*{ending}.txt", f"*/*{ending}.txt"))]
        examples = [Example(name, str(_folder_of(root, name) / name), "/" + name.rpartition("/")[0]) for name in names]
        classes |= {example.label for example in examples}
        splits[split] = listed(examples)
    return Original(tuple(sorted(classes)), splits)


def _folder_of(root: Path, name: str) -> Path:
    return root / "SUN397" if (root / "SUN397" / name.partition("/")[0]).is_dir() else root


def read_retinopathy(root: Path, task: Task) -> Original:
    """Return Kaggle's Diabetic Retinopathy: `train/NAME.jpeg` and `trainLabels.csv`; `test/` and the solution's CSV.

    The solution says which test pictures are public: those are the validation split, the private ones the test split.
    """
    train = _rows_of_csv(found(root, "trainLabels.csv", "train.csv"))
    solution = _rows_of_csv(found(root, "retinopathy_solution.csv", "*solution*.csv"))
    splits = {
        "train": _graded(root / "train", train, task),
        "validation": _graded(root / "test", [row for row in solution if row["Usage"] == "Public"], task),
        "test": _graded(root / "test", [row for row in solution if row["Usage"] == "Private"], task),
    }
    return Original(task.classes, splits)


def _graded(folder: Path, rows: Sequence[dict[str, str]], task: Task) -> PublishedSplit:
    return listed(
        [
            Example(
                f"{row['image']}.jpeg",
                str(folder / f"{row['image']}.jpeg"),
                require_known(int(row["level"]), task.classes, row["image"]),
            )
            for row in rows
        ]
    )


def read_ilsvrc(root: Path, task: Task) -> Original:
    """Return ILSVRC-2012: `train/WNID/NAME.JPEG`, and `val/WNID/NAME.JPEG` or flat `val/` with a list of its WNIDs.

    The list is `imagenet_2012_validation_synset_labels.txt`, with a line for each picture in the order of names.
    """
    classes = _folders(root / "train")
    del task
    train = sorted(str(path.relative_to(root / "train")) for path in (root / "train").glob("*/*"))
    if any(path.is_dir() for path in (root / "val").iterdir()):
        val = sorted(str(path.relative_to(root / "val")) for path in (root / "val").glob("*/*"))
        return Original(classes, {"train": _paths(root / "train", train), "validation": _paths(root / "val", val)})
    names = sorted(path.name for path in (root / "val").iterdir() if is_image_name(path.name))
    wnids = [words[0] for words in lines_of(found(root, "*validation_synset_labels.txt", "val/*synset_labels.txt"))]
    if len(names) != len(wnids):
        raise ConfigError(f"{root}/val has {len(names):,} pictures, and the list of their classes {len(wnids):,} lines")
    unknown = sorted(set(wnids) - set(classes))
    if unknown:
        raise ConfigError(f"{root}/val has pictures of {unknown[0]}, for which {root}/train has no folder")
    flat = [Example(name, str(root / "val" / name), wnid) for name, wnid in zip(names, wnids, strict=True)]
    return Original(classes, {"train": _paths(root / "train", train), "validation": listed(flat)})


def _paths(folder: Path, names: Sequence[str]) -> PublishedSplit:
    """Return the split of files that lie in class folders."""
    return listed([Example(name, str(folder / name), name.partition("/")[0]) for name in names])


def _folders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))


def _rows_of_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _matlab(path: Path) -> dict[str, Any]:
    from trainer.tasks.originals.arrays import matlab  # noqa: PLC0415 - scipy, where it is wanted

    return matlab(path)
