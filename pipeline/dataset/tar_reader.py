"""The samples of a WebDataset tar, whoever wrote it: read once from front to back for its members.

Every member is part of a sample, or ignored and counted.
"""

import io
import json
import math
import re
import tarfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from pipeline.base.errors import BadImage, CorruptShard
from pipeline.base.ignored import HIDDEN, Ignored, is_hidden
from pipeline.dataset.tar_members import TAR_ERRORS, Member, check_size

IMAGE_EXTENSIONS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"),
    *("avif", "heic", "heif", "hif", "jp2", "j2k", "j2c", "jpx", "jxl"),
)
MOST_CLASSES = 1_000_000  # a larger number is a mistake: ImageNet-21k has 21,843, JFT 18,291
_MOST_CLS_BYTES = 1 << 20
_MOST_JSON_BYTES = 16 << 20
_MOST_DIGITS = 18  # of a number: more do not fit 64 bits
_METADATA = re.compile(r"__[^/]*__($|/)")  # webdataset skips such members
_NUMBER = re.compile(r"[+-]?\d+(\.0*)?")
_PADDED = re.compile(r"0\d+")
_NO_LABEL = -1  # what our packer and others write to `.cls` where there is none
Label = int | str


@dataclass
class TarSample:
    """One sample of a tar: the members with the same name up to the first dot, by the rule of WebDataset.

    Attributes:
        key: Folder and name up to the first dot of the last path component.
        start: First byte of its first header.
        image: (offset, bytes) of its image; None if it has none.
        cls: Text of its `.cls`.
        about: Its JSON object.
        about_span: (offset, bytes) of that.
        image_extension: Such as `jpg`.
        images: Names of all members that are its image or could be.
        problem: Why it cannot be used, where a member cannot be read.
        repeated: Name of a member that comes twice.
        is_apart: Whether members of other samples stand between its own: readers of a stream would take it for two.
    """

    key: str
    start: int
    image: tuple[int, int] | None = None
    cls: str | None = None
    about: dict[str, Any] = field(default_factory=dict)
    about_span: tuple[int, int] = (0, 0)
    image_extension: str = ""
    images: list[str] = field(default_factory=list)
    problem: BadImage | None = None
    repeated: str = ""
    is_apart: bool = False


def scan_tar(
    file: BinaryIO, url: str, image_members: Sequence[str] = (), ignored: Ignored | None = None
) -> tuple[list[TarSample], int]:
    """Read the members of a tar.

    Args:
        file: The open tar; seekable.
        url: What it is called in messages.
        image_members: Endings of the names of images, such as `left.jpg`, the first one in this list that a sample
            has; the key is the name without it. By default any image that stands after the first dot.
        ignored: Counts the members that are in no sample.

    Returns:
        Its samples in the order of their first members, and the byte after the last member.

    Raises:
        CorruptShard: The tar is damaged, or ends without its end mark.
    """
    scan = _Scan([ending.lower().lstrip(".") for ending in image_members], Ignored() if ignored is None else ignored)
    num_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=Member) as archive:
            for member in archive:
                check_size(member, num_bytes)
                scan.take(member, archive)
                archive.members = []  # type: ignore[attr-defined] # or it keeps the headers of all
            end = archive.offset  # where the end mark should stand
        _check_end(url, file, end)
    except TAR_ERRORS as error:
        raise CorruptShard(f"{url} is not a whole tar ({error}); restore it or leave it out") from error
    return scan.finish(), end


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


def is_image(extension: str) -> bool:
    """Return whether what follows the first dot of a name, such as `left.jpg`, ends like an image's."""
    return extension.rpartition(".")[2] in IMAGE_EXTENSIONS


class _Scan:
    """Sorts members into samples."""

    def __init__(self, image_members: Sequence[str], ignored: Ignored) -> None:
        self._image_members = image_members
        self._ignored = ignored
        self._last_key: str | None = None
        self._seen: set[str] = set()
        self._spans: dict[str, tuple[int, int]] = {}  # of images, for hard links to them
        self.samples: dict[str, TarSample] = {}

    def take(self, member: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
        """Put a member into its sample, or count it."""
        name = member.name
        if member.isdir():
            return
        if is_hidden(name) or _METADATA.search(name):
            self._ignored.add(HIDDEN, name)
            return
        key, extension = self._split(name)
        if not extension:
            self._ignored.add("without an extension", name)
            return
        if member.isfile() and not member.issparse():
            span = member.offset_data, member.size
        elif member.islnk() and member.linkname in self._spans:
            span = self._spans[member.linkname]
        else:
            self._take_special(key, extension, member)
            return
        sample = self._sample(key, member)
        if name in self._seen:
            sample.repeated = name
        self._seen.add(name)
        if is_image(extension):
            self._spans[name] = span
            self._take_image(sample, extension, name, span)
        elif extension in ("cls", "json"):
            _take_text(sample, extension, member, archive)
        else:
            self._ignored.add(f".{extension}", name)

    def _split(self, name: str) -> tuple[str, str]:
        if not self._image_members:
            return split_name(name)
        lower = name.lower()
        for ending in self._image_members:
            if lower.endswith(f".{ending}"):
                return name[: -len(ending) - 1], ending
        stem, _, extension = name.rpartition(".")
        return (stem, extension.lower()) if stem and "/" not in extension else ("", "")

    def _sample(self, key: str, member: tarfile.TarInfo) -> TarSample:
        sample = self.samples.get(key)
        if sample is None:
            sample = self.samples[key] = TarSample(key, member.offset)
        elif key != self._last_key:
            sample.is_apart = True
        self._last_key = key
        return sample

    def _take_image(self, sample: TarSample, extension: str, name: str, span: tuple[int, int]) -> None:
        if self._image_members:
            order = self._image_members
            if extension not in order:
                self._ignored.add(f".{extension}", name)
                return
            if sample.image and order.index(extension) >= order.index(sample.image_extension):
                self._ignored.add(f".{extension}", name)
                return
            if sample.image:
                self._ignored.add(f".{sample.image_extension}", sample.images[0])
            sample.images = [name]
        else:
            sample.images.append(name)
            if sample.image or extension not in IMAGE_EXTENSIONS:
                return
        sample.image, sample.image_extension = span, extension

    def finish(self) -> list[TarSample]:
        """Return all samples; beside an image, what has another ending that is an image's (`seg.png`) is ignored."""
        for sample in self.samples.values():
            if sample.image and not self._image_members:
                plain = [name for name in sample.images if split_name(name)[1] in IMAGE_EXTENSIONS]
                for name in set(sample.images) - set(plain):
                    self._ignored.add(f".{split_name(name)[1]}", name)
                sample.images = plain
        return list(self.samples.values())

    def _take_special(self, key: str, extension: str, member: tarfile.TarInfo) -> None:
        """Count a link, device or FIFO; one that is called as an image makes its sample unusable."""
        kind = "link" if member.issym() or member.islnk() else "FIFO" if member.isfifo() else "device"
        kind = "sparse file" if member.issparse() else kind
        if is_image(extension):
            sample = self._sample(key, member)
            sample.problem = BadImage("not-a-file", f"{member.name} is a {kind}")
        else:
            self._ignored.add(kind, member.name)


def _take_text(sample: TarSample, extension: str, member: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
    most = _MOST_CLS_BYTES if extension == "cls" else _MOST_JSON_BYTES
    if member.size > most:
        sample.problem = BadImage("bad-label", f"{member.name} has {member.size:,} bytes, at most {most:,} are read")
        return
    opened = archive.extractfile(member)
    body = opened.read() if opened else b""
    try:
        if extension == "cls":
            sample.cls = body.decode()
            return
        sample.about_span = (member.offset_data, member.size)
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        sample.problem = BadImage("bad-label", f"{member.name} cannot be read: {type(error).__name__}: {error}")
        return
    sample.about = found if isinstance(found, dict) else {}


def labels_of(sample: TarSample, names: Collection[str] = (), about: dict[str, Any] | None = None) -> list[Label]:
    """Return all labels of a sample: the list in its JSON before its `.cls`, before `label` and `cls` of its JSON.

    Numbers go before names, wherever they stand.

    Args:
        sample: The sample.
        names: Class names; text among them is a name even where it looks like a number.
        about: What is known of the sample, if more than its JSON.

    Raises:
        BadImage: With reason `bad-label`: there is none but one that is neither a class number nor a name.
    """
    known = sample.about if about is None else about
    problem: BadImage | None = None
    found: list[list[Label]] = []
    for value in (known.get("labels"), _words(sample.cls, names), known.get("label"), known.get("cls")):
        try:
            labels = [label for each in _listed(value) for label in _label(each, names)]
        except BadImage as error:
            problem = problem or error
        else:
            found += [labels] if labels else []
    for labels in found:
        if all(isinstance(label, int) for label in labels):
            return labels
    if found:
        return found[0]
    if problem:
        raise problem
    return []


def _words(text: str | None, names: Collection[str]) -> list[Any]:
    """Return what a `.cls` holds: numbers between blanks, or one name."""
    if text is None:
        return []
    words = text.split()
    if text.strip() not in names and all(_NUMBER.fullmatch(word) for word in words):
        return [word if len(word) > _MOST_DIGITS else _number(word) for word in words]
    return [text.strip()]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _label(value: Any, names: Collection[str]) -> list[Label]:
    """Return a label as a list of one, or of none."""
    if isinstance(value, str):
        text = value.strip()
        if text in names or _PADDED.fullmatch(text) or not _NUMBER.fullmatch(text):
            return [text] if text else []
        value = _number(text)
    if isinstance(value, float):
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    if value is None:
        return []
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadImage("bad-label", f"label {str(value)[:40]} is neither a class number nor a name")
    if value == _NO_LABEL:
        return []
    if not 0 <= value < MOST_CLASSES:
        shown = str(value) if abs(value) < 10**_MOST_DIGITS else "of many digits"
        raise BadImage("bad-label", f"label {shown} is not a class number from 0 to {MOST_CLASSES - 1:,}")
    return [value]


def _number(text: str) -> int:
    digits = text.partition(".")[0]
    if len(digits) > _MOST_DIGITS:
        raise BadImage("bad-label", f"label {digits[:20]}... is not a class number from 0 to {MOST_CLASSES - 1:,}")
    return int(digits)
