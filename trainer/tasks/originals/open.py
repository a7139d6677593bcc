"""From a folder and a task to the data set in it, whatever form it has."""

from collections.abc import Callable
from pathlib import Path

from pipeline.base.errors import ConfigError, NotFound
from pipeline.store.any_url import scheme_of
from trainer.tasks.originals.arrays import read_camelyon, read_dsprites, read_smallnorb, read_svhn
from trainer.tasks.originals.base import Original
from trainer.tasks.originals.cifar import read_cifar
from trainer.tasks.originals.folders import read_caltech, read_folders, read_own
from trainer.tasks.originals.lists import (
    read_dtd,
    read_flowers,
    read_ilsvrc,
    read_pets,
    read_retinopathy,
    read_sun397,
)
from trainer.tasks.originals.parquet import parquet_files, read_parquet
from trainer.tasks.originals.scenes import read_clevr, read_kitti
from trainer.tasks.originals.tfrecords import read_tfds, tfds_folder
from trainer.tasks.task import Task

_READERS: dict[str, Callable[[Path, Task], Original]] = {
    "caltech101": read_caltech,
    "cifar10": read_cifar,
    "cifar100": read_cifar,
    "clevr": read_clevr,
    "dsprites": read_dsprites,
    "dtd": read_dtd,
    "eurosat": read_folders,
    "flowers102": read_flowers,
    "ilsvrc2012": read_ilsvrc,
    "kitti": read_kitti,
    "own": read_own,
    "patch-camelyon": read_camelyon,
    "pets": read_pets,
    "resisc45": read_folders,
    "retinopathy": read_retinopathy,
    "smallnorb": read_smallnorb,
    "sun397": read_sun397,
    "svhn": read_svhn,
}


def open_original(root: str, task: Task) -> Original:
    """Return the data set of a task, from a folder of TFDS, Parquet files of the Hub, or the files of its authors.

    Args:
        root: A local folder; for Parquet files also a URL such as `hf://datasets/OWNER/NAME`.
        task: For which it is.

    Raises:
        NotFound: The folder, or a file that the task needs, is not there.
        ConfigError: The files are not those of the task, or no form of the task is known there.
    """
    if scheme_of(root) not in {"", "file"}:
        return read_parquet(root, task)
    folder = Path(root.removeprefix("file://"))
    if not folder.is_dir():
        raise NotFound(f"{root} is no folder; unpack the archives and give the folder that they are in")
    prepared = tfds_folder(folder)
    if prepared:
        return read_tfds(prepared, task)
    reader = _READERS.get(task.original)
    if parquet_files(root):
        return read_parquet(root, task)
    if reader is None:
        raise ConfigError(f"{task.name} is read from a folder of TFDS only; {root} has no dataset_info.json")
    return reader(folder, task)


def forms_of(task: Task) -> list[str]:
    """Return what a task can be prepared from, in words."""
    forms = [] if task.original == "own" else ["a folder of TFDS"]
    if task.label == "label" and task.original != "own":
        forms.append("Parquet files of the Hugging Face Hub")
    reader = _READERS.get(task.original)
    if reader is not None:
        first = (reader.__doc__ or "").partition("\n\n")[0].partition(": ")[2]
        forms.append("the published files: " + " ".join(first.split()).rstrip("."))
    return forms
