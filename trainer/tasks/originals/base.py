"""What every reader of published files returns."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.base.errors import ConfigError, NotFound


class Example(NamedTuple):
    """One labelled picture.

    Attributes:
        name: In its split; unique.
        image: The encoded picture, or the path of its file.
        label: Name of its class.
    """

    name: str
    image: bytes | str
    label: str


class PublishedSplit(NamedTuple):
    """A split as it was published.

    Attributes:
        size: Pictures.
        take: Yields the examples of some rows, which ascend.
    """

    size: int
    take: Callable[[Sequence[int]], Iterator[Example]]


class Original(NamedTuple):
    """A data set as it was published.

    Attributes:
        classes: Class names by label.
        splits: By published name.
        in_order: Whether rows come in the order of TFDS.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, PublishedSplit]
    in_order: bool = False


def listed(examples: Sequence[Example]) -> PublishedSplit:
    """Return a split of examples that are at hand."""
    return PublishedSplit(len(examples), lambda rows: (examples[row] for row in rows))


def drawn(
    images: npt.NDArray[np.uint8],
    labels: Sequence[str],
    pixels: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]],
) -> PublishedSplit:
    """Return a split of an array of pictures, each encoded when it is taken.

    Args:
        images: Shape (pictures, ...); may be mapped from a file.
        labels: Class names, one for each picture.
        pixels: From one of them to uint8, shape (height, width) or (height, width, 3).
    """
    digits = len(str(len(images)))

    def take(rows: Sequence[int]) -> Iterator[Example]:
        for row in rows:
            yield Example(f"{row:0{digits}d}.png", png(pixels(images[row])), labels[row])

    return PublishedSplit(len(images), take)


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return pixels, shape (height, width) or (height, width, 3), as a PNG file."""
    from PIL import Image  # noqa: PLC0415 - 40 ms that the command line's help need not pay

    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


def found(root: Path, *names: str) -> Path:
    """Return the first of some files or folders that is there; patterns are allowed.

    Raises:
        NotFound: None is there; says where they were looked for.
    """
    for name in names:
        for path in sorted(root.glob(name)):
            return path
    raise NotFound(f"{root} holds neither {' nor '.join(names)}; give the folder with the files as they are published")


def lines_of(path: Path) -> list[list[str]]:
    """Return the words of each line of a text file, without empty lines and comments."""
    lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return [words for words in lines if words and not words[0].startswith("#")]


def require_known(label: int, classes: Sequence[str], where: str) -> str:
    """Return the name of a label.

    Raises:
        ConfigError: There is no such class.
    """
    if not 0 <= label < len(classes):
        raise ConfigError(f"{where}: label {label} is outside of the {len(classes)} classes")
    return classes[label]
