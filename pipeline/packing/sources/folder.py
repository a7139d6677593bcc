"""Class folders: SOURCE/CLASS/.../NAME.jpg; or images in any folders, without labels."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.base.errors import ConfigError, EmptySource
from pipeline.base.ignored import HIDDEN, Ignored, is_hidden, kind_of
from pipeline.dataset.tar_reader import IMAGE_EXTENSIONS
from pipeline.packing.sources.rows import FILE, SPLIT_NAMES, TABLE_SUFFIXES, ParallelMap, Source, batch_of
from pipeline.store.any_url import walk_files
from pipeline.store.base import Entry

OUTSIDE = "images outside of a class folder"
_BATCH_ROWS = 65_536


def is_image_name(name: str) -> bool:
    """Return whether the name ends like a picture's."""
    return "." in name and name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def check_name(url: str, name: str) -> None:
    """Refuse a file name that is not valid UTF-8.

    Raises:
        ConfigError: Names the file.
    """
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{url}: the file name {name!r} is not UTF-8; rename it") from error


def folder_source(url: str, classes: tuple[str, ...] | None = None, *, with_labels: bool = True) -> Source:
    """Return a folder of images as a source; its labels are the names of the folders on its first level.

    Hidden files and folders, and those of systems, are left out. They are counted, as all files that are no images.

    Args:
        url: Of the folder.
        classes: See Source.
        with_labels: Whether images lie in class folders; without labels they may lie anywhere.

    Reading raises:
        NotFound: The folder does not exist.
        EmptySource: It holds no image in a class folder.
        ConfigError: Its first level are splits, not classes; or a file name is not UTF-8.
    """

    def read(parallel_map: ParallelMap[Any, Any]) -> Iterator[pa.RecordBatch]:
        folders: set[str] = set()
        pictures: list[Entry] = []
        count = 0
        ignored = source.ignored
        ignored.clear()
        for entry in walk_files(url):
            what = _ignored_as(entry.key, with_labels)
            if what:
                ignored.add(what, entry.key)
                continue
            check_name(url, entry.key)
            folders.add(entry.key.partition("/")[0] if "/" in entry.key else "")
            pictures.append(entry)
            count += 1
            if len(pictures) == _BATCH_ROWS:
                yield _batch(pictures, with_labels)
                pictures = []
        if not count:
            raise EmptySource(_nothing_found(url, ignored, with_labels))
        _check_splits(url, folders)
        if pictures:
            yield _batch(pictures, with_labels)

    source = Source(url, read, classes, are_names=True)
    return source


def _ignored_as(key: str, with_labels: bool) -> str | None:
    """Return what a file is counted as; none for an image to pack."""
    if is_hidden(key):
        return HIDDEN
    if not is_image_name(key):
        return kind_of(key)
    return OUTSIDE if with_labels and "/" not in key else None


def _check_splits(url: str, folders: set[str]) -> None:
    splits = sorted(folder for folder in folders if folder.lower() in SPLIT_NAMES)
    has_train_and_test = len(splits) > 1 and "train" in {split.lower() for split in splits}
    if splits and (len(splits) == len(folders) or has_train_and_test):
        raise ConfigError(f"{url} holds the splits {', '.join(splits)}, not classes; shard {url}/{splits[0]} alone")


def _nothing_found(url: str, ignored: Ignored, with_labels: bool) -> str:
    kinds = ignored.kinds
    found = "; ".join(map(str, kinds)) or "no file at all"
    what = "no picture below a class folder" if with_labels else "no picture"
    remedy = f"expected {url}/CLASS/NAME.jpg"
    tables = [name for kind in kinds for name in kind.names if name.endswith(TABLE_SUFFIXES)]
    if tables:
        remedy += f"; to pack what a table lists, name it: {url}/{tables[0]}"
    if any(kind.what == OUTSIDE for kind in kinds):
        remedy += "; --no-labels packs images without class folders"
    return f"{url} holds {what} ({found}); {remedy}"


def _batch(pictures: list[Entry], with_labels: bool) -> pa.RecordBatch:
    return batch_of(
        [entry.key for entry in pictures],
        labels=[[entry.key.partition("/")[0]] if with_labels else [] for entry in pictures],
        container=FILE,
        num_bytes=[entry.num_bytes for entry in pictures],
    )
