"""Parquet files of the Hugging Face Hub: pictures in a column of bytes, labels as numbers, and names beside them."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.base.errors import ConfigError
from pipeline.packing.sources.rows import split_of
from pipeline.store.any_url import join, open_file, walk_files
from trainer.tasks.originals.base import Example, Original, PublishedSplit, require_known
from trainer.tasks.task import Task

_NAMED = 5  # files in a message; a choice
_LABELS_AT_ONCE = 100_000
_PUBLISHED = {"train": "train", "val": "validation", "test": "test"}
_IMAGE_COLUMNS = ("image", "img", "jpg", "png")
_LABEL_COLUMNS = ("label", "fine_label", "labels", "class")  # CIFAR-100 has coarse labels, too


def parquet_files(root: str) -> list[str]:
    """Return the Parquet files of a folder or of folders in it, by name: where the Hub has them."""
    names = (entry.key for entry in walk_files(root))
    return sorted(name for name in names if name.endswith(".parquet") and name.count("/") <= 1)


def read_parquet(root: str, task: Task) -> Original:
    """Return a set of the Hub.

    Raises:
        ConfigError: A split is missing or there several times, a column is missing, labels have no names, or one is
            none of the classes.
    """
    if task.label != "label":
        raise ConfigError(f"{task.name}: its label is derived, and Parquet files of the Hub do not hold what from")
    by_split = _files_by_split(root, task)
    first = next(iter(by_split.values()))[0]
    with open_file(first) as file:
        schema = pq.ParquetFile(file).schema_arrow
    image, label = (_column(schema, names, first) for names in (_IMAGE_COLUMNS, _LABEL_COLUMNS))
    classes = _class_names(schema, label, first) or task.classes
    if not classes:
        raise ConfigError(f"{first} has no names for its labels, and {task.name} brings none")
    # Before anything is packed. Splits that the task does not use may have none, as the test set of ILSVRC-2012.
    for url in chain.from_iterable(by_split[split] for split in _used_splits(task)):
        _check_labels(url, label, classes)
    splits = {
        split: PublishedSplit(sum(map(_num_rows, files)), partial(_take, files, image, label, classes))
        for split, files in by_split.items()
    }
    return Original(classes, splits)


def _files_by_split(root: str, task: Task) -> dict[str, list[str]]:
    """Return the URLs of the files of each split of a task; of further splits, such as SVHN's `extra`, none."""
    names, by_split, folders = parquet_files(root), defaultdict[str, list[str]](list), defaultdict[str, set[str]](set)
    for name in names:
        split = _PUBLISHED.get(split_of(name) or "")
        if split:
            by_split[split].append(join(root, name))
            folders[split].add(name.rpartition("/")[0])
    missing = sorted(_used_splits(task) - set(by_split))
    if missing:
        raise ConfigError(
            f"{root} has no Parquet file of {', '.join(missing)}: a path should have train, validation or test in it, "
            f"and there are {', '.join(names[:_NAMED])}"
        )
    several = max((folders[split] for split in _used_splits(task)), key=len)
    if len(several) > 1:
        raise ConfigError(
            f"{root} holds the set in several forms, {', '.join(sorted(several))}; give the folder of one of them"
        )
    return by_split


def _used_splits(task: Task) -> set[str]:
    return {portion.split for portions in task.splits.values() for portion in portions}


def _check_labels(url: str, label: str, classes: Sequence[str]) -> None:
    with open_file(url) as file:
        for batch in pq.ParquetFile(file).iter_batches(_LABELS_AT_ONCE, columns=[label], use_threads=False):
            for found in pc.unique(batch[label]).to_pylist():
                require_known(-1 if found is None else found, classes, url)


def _column(schema: pa.Schema, names: Sequence[str], where: str) -> str:
    for name in names:
        if name in schema.names:
            return name
    raise ConfigError(f"{where} has the columns {', '.join(schema.names)}, and none of {', '.join(names)}")


def _class_names(schema: pa.Schema, label: str, where: str) -> tuple[str, ...]:
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]
    except (KeyError, ValueError):
        return ()
    if "names" not in feature:
        raise ConfigError(f"{where}: the column {label} is no class label")
    return tuple(map(str, feature["names"]))


def _num_rows(url: str) -> int:
    with open_file(url) as file:
        return int(pq.ParquetFile(file).metadata.num_rows)


def _take(
    files: Sequence[str], image: str, label: str, classes: Sequence[str], rows: Sequence[int]
) -> Iterator[Example]:
    wanted = set(map(int, rows))
    number = 0
    for url in files:
        with open_file(url) as file:
            for batch in pq.ParquetFile(file).iter_batches(64, columns=[image, label], use_threads=False):
                here = [row for row in range(batch.num_rows) if number + row in wanted]
                for row in here:
                    value, name = batch[image][row].as_py(), require_known(batch[label][row].as_py(), classes, url)
                    data = value["bytes"] if isinstance(value, dict) else value
                    yield Example(f"{number + row:08d}", data, name)
                number += batch.num_rows
