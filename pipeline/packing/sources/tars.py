"""WebDataset tars as a source: ours, img2dataset's, or anybody's; with or without an index.

A tar is read once from front to back for its members; packing then reads each image by its range.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.errors import ConfigError, CorruptShard, EmptySource, NotFound
from pipeline.packing.sources.folder import check_name
from pipeline.packing.sources.rows import RESERVED, TAR, Mapping, Source, batch_of, extra_of
from pipeline.store.any_url import common_folder, expand, identity_of, open_file
from pipeline.store.base import Entry

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm")
_MOST_TEXT_BYTES = 1 << 20  # of a .cls or .json member; larger ones are no labels
_METADATA = re.compile(r"__[^/]*__($|/)")  # webdataset skips such members
_IMG2DATASET_STATUS = "status"


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
    """Reads the members of a tar.

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
    """A tar cut between two members looks whole to every reader; only its end mark tells."""
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise CorruptShard(f"{url} has no end mark and may have been cut; restore it or leave it out")


def split_name(name: str) -> tuple[str, str]:
    """Gives (key, extension) of a member, by the WebDataset rule; the extension is empty where there is none."""
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
    """Gives all labels of a sample: the list in its JSON before the one number of its `.cls`."""
    for found in (sample.about.get("labels"), sample.labels, sample.about.get("label"), sample.about.get("cls")):
        numbers = _numbers(found) if found is not None else None
        if numbers:
            return numbers
    return []


def tar_source(url: str, classes: tuple[str, ...] | None = None) -> Source:
    """Gives the pictures of the tars that a URL, brace or glob pattern names.

    img2dataset's Parquet file beside a tar is taken for the further columns, where it is there.

    Raises:
        NotFound: There is no such tar.

    Reading raises:
        CorruptShard: A tar is damaged.
        EmptySource: No tar holds a picture.
    """
    entries = [entry for entry in expand(url) if entry.key.endswith(".tar")]
    return source_of_tars(entries, url, classes)


def source_of_tars(
    entries: list[Entry], url: str, classes: tuple[str, ...] | None = None, *, is_ours: bool = False
) -> Source:
    """Gives the pictures of tars; see `tar_source`. Those of a dataset of ours keep the names they have in it."""
    if not entries:
        raise EmptySource(f"{url} names no .tar file")
    base = common_folder([entry.key for entry in entries])

    def read(mapped: Mapping[Any, Any]) -> Iterator[pa.RecordBatch]:
        found = 0
        for batch, num_ignored in mapped(_TarReader(base, is_ours), [entry.key for entry in entries]):
            source.num_ignored[0] += num_ignored
            found += batch.num_rows
            if batch.num_rows:
                yield batch
        if not found:
            raise EmptySource(f"{url}: the tars hold no picture")

    source = Source(base, read, classes, identity_of(entries))
    return source


@dataclass(frozen=True)
class _TarReader:
    """Gives the rows of one tar; runs on a worker."""

    base: str
    is_ours: bool

    def __call__(self, url: str) -> tuple[pa.RecordBatch, int]:
        with open_file(url) as file:
            samples, _ = scan_tar(file, url)
        path = url.removeprefix(self.base).lstrip("/")
        columns = _img2dataset_columns(url)
        pictures = [(sample, *sample.image) for sample in samples if sample.image]
        for sample, _, _ in pictures:
            check_name(url, sample.key)
        abouts = [sample.about | columns.get(sample.key, {}) for sample, _, _ in pictures]
        batch = batch_of(
            [
                str((self.is_ours and about.get("source")) or f"{path}#{sample.key}")
                for (sample, _, _), about in zip(pictures, abouts, strict=True)
            ],
            labels=pa.array([labels_of(sample) for sample, _, _ in pictures], pa.list_(pa.int32())),
            container=TAR,
            path=pa.repeat(pa.scalar(path), len(pictures)),
            offset=[offset for _, offset, _ in pictures],
            num_bytes=[size for _, _, size in pictures],
            extra=[_extra(about) for about in abouts],
        )
        return batch, len(samples) - len(pictures)


def _extra(about: dict[str, Any]) -> str:
    return extra_of({name: value for name, value in about.items() if name not in RESERVED})


def _img2dataset_columns(url: str) -> dict[str, dict[str, Any]]:
    """Gives the rows of img2dataset's Parquet file by key; none where it is not there, or is another's."""
    beside = f"{url.removesuffix('.tar')}.parquet"
    try:
        with open_file(beside) as file:
            table = pq.ParquetFile(file).read(use_threads=False)
    except NotFound:
        return {}
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{beside} cannot be read as a table: {error}") from error
    if not {"key", _IMG2DATASET_STATUS} <= set(table.column_names):
        return {}
    return {str(row.pop("key")): row for row in table.to_pylist()}
