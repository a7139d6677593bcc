"""Where the members of a shard lie, for tools that want the offset of each.

Our shards are laid out by rule (docs/format.md), so that sidecars hold everything: 5 GB are read for 33 TB of tars.
Tars that `pipeline index` adopted may hold anything: their headers are read, once for all formats.
"""

import itertools
import re
import tarfile
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import pyarrow as pa

from pipeline.base.errors import CorruptShard
from pipeline.dataset.tar_format import TAR_BLOCK_BYTES, padded
from pipeline.dataset.tar_members import TAR_ERRORS, Member as LimitedMember

# As webdataset and Energon split names and skip members; unlike dataset.tar_reader it keeps the extension's case, by
# which DALI and Energon look members up.
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
        is_listed: Whether the manifest knows it; rejects of an adopted tar are still in it.
    """

    key: str
    start: int
    members: tuple[Member, ...]
    is_listed: bool = True


@dataclass(frozen=True)
class Layout:
    """The samples of a tar.

    Attributes:
        samples: In tar order.
        end: The byte after the last member, where the end mark begins.
        num_skipped: Keys below a folder like `__meta__`, which webdataset and Energon skip, but not all.
    """

    samples: tuple[Sample, ...]
    end: int
    num_skipped: int = 0


def layout_by_rule(table: pa.Table) -> Layout:
    """Return the layout of one of our shards from its sidecar, a table of schema.SAMPLE_SCHEMA."""
    names = ("key", "image_offset", "image_bytes", "json_offset", "json_bytes", "labels")
    samples, end = [], 0
    for key, image, image_bytes, about, about_bytes, labels in zip(
        *(table[name].to_pylist() for name in names), strict=True
    ):
        members = (
            Member("jpg", image, image_bytes, f"{key}.jpg"),
            Member(
                "cls",
                image + padded(image_bytes) + TAR_BLOCK_BYTES,
                len(str(labels[0] if labels else -1)),
                f"{key}.cls",
            ),
            Member("json", about, about_bytes, f"{key}.json"),
        )
        samples.append(Sample(key, image - TAR_BLOCK_BYTES, members))
        end = about + padded(about_bytes)
    return Layout(tuple(samples), end)


def scanned_layout(file: BinaryIO, url: str, image_offsets: frozenset[int]) -> Layout:
    """Return the layout of any tar from its headers.

    Args:
        file: The open tar; seekable.
        url: What it is called in messages.
        image_offsets: First bytes of the images that the manifest lists.

    Raises:
        CorruptShard: The tar is damaged.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=LimitedMember) as archive:
            named = [(name, member) for member in archive if member.isreg() and (name := _NAME.match(member.name))]
            end = archive.offset
    except TAR_ERRORS as error:
        raise CorruptShard(f"{url} is not a whole tar ({error}); restore it, then run `pipeline verify`") from error
    taken = [(name, member) for name, member in named if not _SKIPPED.match(member.name)]
    samples = []
    for key, group in itertools.groupby(taken, key=lambda pair: pair[0][1]):
        found = list(group)
        members = tuple(Member(name[2], member.offset_data, member.size, member.name) for name, member in found)
        is_listed = any(member.offset in image_offsets for member in members)
        samples.append(Sample(key, found[0][1].offset, members, is_listed))
    num_skipped = len({name[1] for name, member in named if _SKIPPED.match(member.name)})
    return Layout(tuple(samples), end, num_skipped)
