"""Class folders: SOURCE/CLASS/.../NAME.jpg."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.base.errors import ConfigError, EmptySource
from pipeline.packing.sources.rows import FILE, ParallelMap, Source, batch_of
from pipeline.store.any_url import walk_files
from pipeline.store.base import Entry

IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"])
SPLIT_NAMES = frozenset(["train", "val", "valid", "validation", "test"])
_BATCH_ROWS = 65_536


def is_image_name(name: str) -> bool:
    """Return whether the name ends like a picture's."""
    return ("." + name.rpartition(".")[2].lower()) in IMAGE_SUFFIXES


def check_name(url: str, name: str) -> None:
    """Refuse a file name that is not valid UTF-8.

    Raises:
        ConfigError: Names the file.
    """
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{url}: the file name {name!r} is not UTF-8; rename it") from error


def folder_source(url: str, classes: tuple[str, ...] | None = None) -> Source:
    """Return class folders as a source; its labels are the folders' names.

    Reading raises:
        NotFound: The folder does not exist.
        EmptySource: It holds no picture in a class folder.
        ConfigError: Its first level are splits, not classes; or a file name is not UTF-8.
    """

    def read(parallel_map: ParallelMap[Any, Any]) -> Iterator[pa.RecordBatch]:
        classes: set[str] = set()
        pictures: list[Entry] = []
        for entry in walk_files(url):
            check_name(url, entry.key)
            if not is_image_name(entry.key) or "/" not in entry.key:
                source.num_ignored[0] += 1
                continue
            classes.add(entry.key.partition("/")[0])
            pictures.append(entry)
            if len(pictures) == _BATCH_ROWS:
                yield _batch(pictures)
                pictures = []
        if not classes:
            raise EmptySource(
                f"{url} holds no picture below a class folder ({source.num_ignored[0]} other files); "
                f"expected {url}/CLASS/NAME.jpg"
            )
        if classes <= SPLIT_NAMES:
            splits = sorted(classes)
            raise ConfigError(f"{url} holds the splits {', '.join(splits)}, not classes; shard {url}/{splits[0]} alone")
        if pictures:
            yield _batch(pictures)

    source = Source(url, read, classes)
    return source


def _batch(pictures: list[Entry]) -> pa.RecordBatch:
    return batch_of(
        [entry.key for entry in pictures],
        labels=[[entry.key.partition("/")[0]] for entry in pictures],
        container=FILE,
        num_bytes=[entry.num_bytes for entry in pictures],
    )
