"""The samples of a WebDataset tar, whoever wrote it: read once from front to back for its members."""

import json
import re
import tarfile
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from pipeline.base.errors import CorruptShard

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm")
_MOST_TEXT_BYTES = 1 << 20  # of a .cls or .json member; larger ones are no labels
_METADATA = re.compile(r"__[^/]*__($|/)")  # webdataset skips such members


@dataclass
class TarSample:
    """One sample of a tar, by the WebDataset rule: adjacent members with the same name up to the first dot.

    Attributes:
        key: Folder and name up to the first dot of the last path component.
        start: First byte of its first header.
        image: (offset, bytes) of its image; None if it has none.
        labels: From `.cls`, or from `labels`, `label` or `cls` of its JSON.
        about: Its JSON object.
        about_span: (offset, bytes) of that.
        image_extension: Such as `jpg`.
    """

    key: str
    start: int
    image: tuple[int, int] | None = None
    labels: list[int] | None = None
    about: dict[str, Any] = field(default_factory=dict)
    about_span: tuple[int, int] = (0, 0)
    image_extension: str = ""


def scan_tar(file: BinaryIO, url: str) -> tuple[list[TarSample], int]:
    """Read the members of a tar.

    Args:
        file: The open tar; seekable.
        url: What it is called in messages.

    Returns:
        Its samples in order, and the byte after the last of them.

    Raises:
        CorruptShard: The tar is damaged, or ends without its end mark.
    """
    samples: list[TarSample] = []
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                _take(samples, member, archive)
            end = archive.offset  # where the end mark should stand
        _check_end(url, file, end)
    except (tarfile.TarError, EOFError) as error:
        raise CorruptShard(f"{url} is not a whole tar ({error}); restore it or leave it out") from error
    return samples, end


def _check_end(url: str, file: BinaryIO, end: int) -> None:
    """Refuse a tar without an end mark: one that was cut between two members looks whole to every reader."""
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise CorruptShard(f"{url} has no end mark and may have been cut; restore it or leave it out")


def split_name(name: str) -> tuple[str, str]:
    """Return (key, extension) of a member, by the WebDataset rule; the extension is empty where there is none."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return (f"{folder}{slash}{stem}", extension.lower()) if stem else ("", "")


def _take(samples: list[TarSample], member: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
    key, extension = split_name(member.name)
    if not member.isfile() or not extension or _METADATA.search(member.name):
        return
    if not samples or samples[-1].key != key:
        samples.append(TarSample(key, member.offset))
    sample = samples[-1]
    if extension in IMAGE_EXTENSIONS and sample.image is None:
        sample.image = (member.offset_data, member.size)
        sample.image_extension = extension
    elif extension in ("cls", "json") and member.size <= _MOST_TEXT_BYTES:
        opened = archive.extractfile(member)
        text = opened.read() if opened else b""
        if extension == "cls":
            sample.labels = _numbers(text.decode(errors="replace").split())
        else:
            sample.about_span = (member.offset_data, member.size)
            sample.about = _object(text)


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _numbers(values: Any) -> list[int] | None:
    listed = values if isinstance(values, list) else [values]
    try:
        return [int(value) for value in listed if int(value) >= 0]
    except (TypeError, ValueError):
        return None


def labels_of(sample: TarSample) -> list[int]:
    """Return all labels of a sample: the list in its JSON before the one number of its `.cls`."""
    for found in (sample.about.get("labels"), sample.labels, sample.about.get("label"), sample.about.get("cls")):
        numbers = _numbers(found) if found is not None else None
        if numbers:
            return numbers
    return []
