"""What every format of an export implements, and which files it may replace."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.base.errors import Conflict, NotFound
from pipeline.dataset.dataset import Dataset
from pipeline.exports.shard_tar import ShardTar
from pipeline.store.base import Store

# Stands in every file that people also write by hand: without it, the file is theirs and stays.
MARK = "written by `pipeline export`"


@dataclass(frozen=True)
class Written:
    """What was written for one format.

    Attributes:
        format: Its name on the command line.
        key: Of the file to begin with, below the dataset's root.
        how_to_use: A code fragment or a phrase.
    """

    format: str
    key: str
    how_to_use: str


class Export(ABC):
    """One format being written. `of_shard` is called from any thread, all else from one.

    Attributes:
        hand_written: Keys of files it writes that people also write by hand; see `check_ours`.
    """

    hand_written: tuple[str, ...] = ()

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._url = dataset.store.url

    def of_shard(self, shard: ShardTar) -> Iterator[tuple[str, bytes]]:
        """Return keys and bodies of the files that belong to this shard alone."""
        return iter(())

    @abstractmethod
    def add(self, shard: ShardTar) -> None:
        """Add a shard; they come in the order of the manifest."""

    @abstractmethod
    def finish(self) -> Written:
        """Write the files about the whole dataset."""

    def close(self) -> None:  # noqa: B027 - most formats hold nothing
        """Release what it holds, finished or not."""


def check_ours(store: Store, key: str) -> None:
    """Make sure that a file may be written or replaced.

    Raises:
        Conflict: It exists and was not written here: it is somebody's work.
    """
    try:
        found = store.read(key)
    except NotFound:
        return
    if MARK.encode() not in found:
        raise Conflict(
            f"{store.url}/{key} was not written by `pipeline export` and stays; move it away to have it written, "
            f"or choose other formats with --format"
        )


def folder_of(path: str) -> str:
    """Return the part of a key up to and with its last slash; empty at the root."""
    return path[: path.rfind("/") + 1]
