"""Class folders: SOURCE/CLASS/.../NAME.jpg."""

from pipeline.errors import ConfigError, EmptySource
from pipeline.manifest import table_of
from pipeline.sources.files import list_files
from pipeline.sources.rows import ROW_SCHEMA, SourceRows

IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"])
SPLIT_NAMES = frozenset(["train", "val", "valid", "validation", "test"])


def is_image_name(name: str) -> bool:
    """Tells whether the name ends like a picture's."""
    return ("." + name.rpartition(".")[2].lower()) in IMAGE_SUFFIXES


def check_name(url: str, name: str) -> None:
    """Refuses a file name that is not valid UTF-8.

    Raises:
        ConfigError: Names the file.
    """
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{url}: the file name {name!r} is not UTF-8; rename it") from error


def read_folder(url: str) -> SourceRows:
    """Lists class folders; the label of a class is its place among the sorted folder names.

    Raises:
        NotFound: The folder does not exist.
        EmptySource: It holds no picture in a class folder.
        ConfigError: Its first level are splits, not classes.
    """
    entries = list(list_files(url))
    for entry in entries:
        check_name(url, entry.key)
    pictures = [entry for entry in entries if is_image_name(entry.key) and "/" in entry.key]
    if not pictures:
        raise EmptySource(
            f"{url} holds no picture below a class folder ({len(entries)} other files); expected {url}/CLASS/NAME.jpg"
        )
    classes = sorted({entry.key.split("/")[0] for entry in pictures})
    if set(classes) <= SPLIT_NAMES:
        raise ConfigError(f"{url} holds the splits {', '.join(classes)}, not classes; shard {url}/{classes[0]} alone")
    labels = {name: label for label, name in enumerate(classes)}
    rows = [
        {
            "source": entry.key,
            "uri": f"{url.rstrip('/')}/{entry.key}",
            "num_bytes": entry.num_bytes,
            "labels": [labels[entry.key.split("/")[0]]],
            "extra": "{}",
        }
        for entry in pictures
    ]
    return SourceRows(table_of(rows, ROW_SCHEMA), tuple(classes), len(entries) - len(pictures))
