"""Where the members of a shard lie, for tools that want the offset of each.

Shards of ours are laid out by rule (docs/format.md), so that sidecars tell everything: 5 GB are read for 33 TB of tars.
Tars that `pipeline index` took over may hold anything: their headers are read, once for all formats.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import pyarrow as pa

from pipeline.errors import CorruptShard
from pipeline.tar import BLOCK_BYTES, padded

# As webdataset and Energon split names and skip members; unlike sources.tars it keeps the extension's case, by which
# DALI and Energon look members up.
_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_SKIPPED = re.compile(r"__[^/]*__($|/)")


class Member(NamedTuple):
    """One file of a tar: its extension and name, and where its content lies, in bytes."""

    extension: str
    offset: int
    num_bytes: int
    name: str


@dataclass(frozen=True)
class Sample:
    """Adjacent members with one key.

    Attributes:
        key: Folder and name up to the first dot.
        start: First byte of its first header.
        members: In tar order.
        is_listed: Whether the manifest knows it; rejects of a tar that was taken over are in the tar all the same.
    """

    key: str
    start: int
    members: tuple[Member, ...]
    is_listed: bool = True


@dataclass(frozen=True)
class Layout:
    """The samples of a tar in order, and the byte after the last of them, where the end mark begins."""

    samples: tuple[Sample, ...]
    end: int


def layout_by_rule(table: pa.Table) -> Layout:
    """Gives the layout of a shard of ours from its sidecar, a table of manifest.SAMPLE_SCHEMA."""
    names = ("key", "image_offset", "image_bytes", "json_offset", "json_bytes", "labels")
    samples, end = [], 0
    for key, image, image_bytes, about, about_bytes, labels in zip(
        *(table[name].to_pylist() for name in names), strict=True
    ):
        members = (
            Member("jpg", image, image_bytes, f"{key}.jpg"),
            Member(
                "cls", image + padded(image_bytes) + BLOCK_BYTES, len(str(labels[0] if labels else -1)), f"{key}.cls"
            ),
            Member("json", about, about_bytes, f"{key}.json"),
        )
        samples.append(Sample(key, image - BLOCK_BYTES, members))
        end = about + padded(about_bytes)
    return Layout(tuple(samples), end)


def scanned_layout(file: BinaryIO, url: str, image_offsets: frozenset[int]) -> Layout:
    """Gives the layout of any tar from its headers.

    Args:
        file: The open tar; seekable.
        url: What it is called in messages.
        image_offsets: First bytes of the images that the manifest lists.

    Raises:
        CorruptShard: The tar is damaged.
    """
    samples = []
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for key, start, members in _grouped(archive):
                is_listed = any(member.offset in image_offsets for member in members)
                samples.append(Sample(key, start, tuple(members), is_listed))
            return Layout(tuple(samples), archive.offset)
    except (tarfile.TarError, EOFError) as error:
        raise CorruptShard(f"{url} is not a whole tar ({error}); restore it, then run `pipeline verify`") from error


def _grouped(archive: tarfile.TarFile) -> Iterator[tuple[str, int, list[Member]]]:
    key, start = "", 0
    members: list[Member] = []
    for found in archive:
        name = None if _SKIPPED.match(found.name) or not found.isreg() else _NAME.match(found.name)
        if name is None:
            continue
        if members and name[1] != key:
            yield key, start, members
            members = []
        if not members:
            key, start = name[1], found.offset
        members.append(Member(name[2], found.offset_data, found.size, found.name))
    if members:
        yield key, start, members
