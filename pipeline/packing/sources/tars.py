"""WebDataset tars as a source, whoever wrote them; with or without an index.

A tar is read once from front to back for its members; packing then reads each image by its range.
"""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.base.errors import BadImage, ConfigError, CorruptShard, EmptySource, NotFound
from pipeline.base.ignored import Ignored, IgnoredFiles
from pipeline.base.quantities import quantity
from pipeline.dataset.tables import read_parquet
from pipeline.dataset.tar_reader import TarSample, labels_of, scan_tar, split_name
from pipeline.packing.sources.folder import check_name
from pipeline.packing.sources.rows import (
    NO_EXTRA,
    REJECTED,
    RESERVED,
    TAR,
    ParallelMap,
    Source,
    batch_of,
    check_one_split,
    extra_of,
    rejected_extra,
)
from pipeline.packing.sources.table import Columns
from pipeline.store.any_url import common_folder, expand, identity_of, open_file
from pipeline.store.base import Entry

_IMG2DATASET_STATUS = "status"
_MOST_SHOWN = 5


def tar_source(url: str, columns: Columns) -> Source:
    """Return the tars that a URL, brace or glob pattern names as a source; see `source_of_tars`.

    Raises:
        NotFound: There is no such tar.
    """
    return source_of_tars([entry for entry in expand(url) if entry.key.endswith(".tar")], url, columns)


def source_of_tars(
    entries: list[Entry],
    url: str,
    columns: Columns,
    *,
    classes: tuple[str, ...] | None = None,
    is_ours: bool = False,
    ignored: tuple[IgnoredFiles, ...] = (),
) -> Source:
    """Return tars as a source.

    Further columns come from img2dataset's Parquet file beside a tar, where there is one.

    Args:
        entries: The tars.
        url: What names them.
        columns: How they are read.
        classes: Class names by label, where the tars bring them; else those of `columns`.
        is_ours: Whether `pipeline shard` wrote them; images then keep the names they have in their dataset.
        ignored: Files beside them that are no tars.

    Reading raises:
        CorruptShard: A tar is damaged.
        EmptySource: No tar holds a picture.
        ConfigError: They hold several splits; a sample has several images, or a member comes twice; or no sample has
            a label.
    """
    if not entries:
        raise EmptySource(f"{url} names no .tar file")
    base = common_folder([entry.key for entry in entries])
    if not is_ours:
        check_one_split(url, (entry.key.removeprefix(base).lstrip("/") for entry in entries))
    classes = classes or columns.classes or None

    def read(parallel_map: ParallelMap[Any, Any]) -> Iterator[pa.RecordBatch]:
        source.ignored.clear()
        source.ignored.add_all(ignored)
        found = labelled = 0
        folders: set[str] = set()
        reader = _TarReader(base, is_ours, columns, classes or ())
        for batch, kinds, some_folders in parallel_map(reader, [entry.key for entry in entries]):
            source.ignored.add_all(kinds)
            found += batch.num_rows
            labelled += len(batch["labels"].flatten())
            folders |= some_folders
            if batch.num_rows:
                yield batch
        if not found:
            kinds = "; ".join(map(str, source.ignored.kinds))
            raise EmptySource(f"{url}: the tars hold no picture ({kinds or 'no member at all'})")
        if not labelled and columns.label and not is_ours:
            raise ConfigError(_no_label(url, folders, source.ignored.kinds))

    source = Source(base, read, classes, identity_of(entries))
    return source


@dataclass(frozen=True)
class _TarReader:
    """Reads the rows of one tar; runs on a worker."""

    base: str
    is_ours: bool
    columns: Columns
    classes: tuple[str, ...]

    def __call__(self, url: str) -> tuple[pa.RecordBatch, tuple[IgnoredFiles, ...], set[str]]:
        """Return the rows, what is in none of them, and some names of the folders that the images lie in."""
        ignored = Ignored()
        with open_file(url) as file:
            samples, _ = scan_tar(file, url, self.columns.image_members, ignored)
        path = url.removeprefix(self.base).lstrip("/")
        refuse_ambiguous(samples, url)
        known = _img2dataset_columns(url)
        names = frozenset(self.classes)
        rows = []
        for sample in samples:
            check_name(url, sample.key)
            if not sample.image and not sample.problem:
                for kind, is_there in (("cls", sample.cls is not None), ("json", sample.about_span[1] > 0)):
                    if is_there:
                        ignored.add(f".{kind} without an image", f"{sample.key}.{kind}")
                continue
            about = sample.about | known.get(sample.key, {})
            rows.append((sample, *self._labels_and_extra(sample, about, names), about))
        labels = [found for _, found, _, _, _ in rows]
        if any(isinstance(label, str) for found in labels for label in found):
            labels = [[str(label) for label in found] for found in labels]
        batch = batch_of(
            [str((self.is_ours and about.get("source")) or f"{path}#{sample.key}") for sample, *_, about in rows],
            labels=labels,
            container=[container for _, _, container, _, _ in rows],
            path=pa.repeat(pa.scalar(path), len(rows)),
            offset=[sample.image[0] if sample.image else 0 for sample, *_ in rows],
            num_bytes=[sample.image[1] if sample.image else 0 for sample, *_ in rows],
            extra=[extra for *_, extra, _ in rows],
        )
        return batch, ignored.kinds, {_folder(sample.key) for sample in samples[:1000]}

    def _labels_and_extra(
        self, sample: TarSample, about: dict[str, Any], names: frozenset[str]
    ) -> tuple[list[int | str], str, str]:
        """Return labels, the kind of row and its further columns, or the row of a sample that cannot be used."""
        try:
            if sample.problem:
                raise sample.problem
            if self.columns.label is None:
                labels: list[int | str] = []
            elif self.columns.folder_labels:
                labels = [_folder(sample.key)] if _folder(sample.key) else []
            else:
                labels = labels_of(sample, names, about)
            return labels, TAR, _extra(about)
        except BadImage as error:
            return [], REJECTED, rejected_extra(error)


def refuse_ambiguous(samples: Sequence[TarSample], url: str, *, are_adjacent: bool = False) -> None:
    """Refuse a tar from which images or labels would be lost.

    Args:
        samples: Of the tar.
        url: What it is called in messages.
        are_adjacent: Whether the members of a sample must follow each other, as where the tar is read as a stream.

    Raises:
        ConfigError: A member comes twice; a sample has several images, or one only after a further dot.
    """
    for sample in samples:
        if sample.repeated:
            raise ConfigError(
                f"{url} holds {sample.repeated} twice; give each sample a key of its own, and write the tar again"
            )
        if are_adjacent and sample.is_apart:
            raise ConfigError(
                f"{url}: the members of sample {sample.key} do not follow each other, as readers of WebDataset need; "
                f"pack the tar with `pipeline shard`"
            )
    ambiguous = [s for s in samples if len(s.images) > 1 or (s.images and not s.image)]
    if are_adjacent or not ambiguous:
        return
    endings = Counter(split_name(name)[1] for sample in ambiguous for name in sample.images)
    shown = ", ".join(f".{ending} ({count:,})" for ending, count in endings.most_common(_MOST_SHOWN))
    more = f" and {len(endings) - _MOST_SHOWN:,} others" if len(endings) > _MOST_SHOWN else ""
    first = ambiguous[0]
    # Of several images of a sample one is chosen; dots in names of single ones belong to the key.
    likely = split_name(first.images[0])[1]
    wanted = likely if len(first.images) > 1 else likely.rpartition(".")[2]
    does = "does not" if len(samples) == 1 else "do not"
    raise ConfigError(
        f"{url}: {len(ambiguous):,} of {quantity(len(samples), 'sample')} {does} have one image each, first "
        f"{first.key!r} with "
        f"{', '.join(first.images[:3])}. A sample is what has the same name up to the first dot; endings found: {shown}"
        f"{more}. Choose with --image-member which ending is the image, such as --image-member "
        f"{wanted}; what stands before it is the key. The option may be "
        f"repeated, in order of preference"
    )


def _no_label(url: str, folders: set[str], kinds: tuple[IgnoredFiles, ...]) -> str:
    members = ", ".join(f"{kind.count:,} {kind.what}" for kind in kinds if kind.what.startswith("."))
    found = f"; other members: {members}" if members else ""
    names = sorted(folders - {""})
    shown = ", ".join(names[:_MOST_SHOWN]) + ", ..." * (len(names) > _MOST_SHOWN)
    remedy = (
        f"--folder-labels takes the folder of each image as its class ({shown})"
        if len(names) > 1
        else "labels are read from NAME.cls, or from labels, label or cls in NAME.json"
    )
    return f"{url}: no sample has a label{found}; {remedy}; --no-labels packs the images without"


def _folder(key: str) -> str:
    return key.rpartition("/")[0].rpartition("/")[2].removeprefix(".")


def _extra(about: dict[str, Any]) -> str:
    further = {name: value for name, value in about.items() if name not in RESERVED}
    if not further:
        return NO_EXTRA
    try:
        return extra_of(further)
    except RecursionError as error:
        raise BadImage("bad-label", "its JSON is nested too deeply") from error


def _img2dataset_columns(url: str) -> dict[str, dict[str, Any]]:
    """Return the rows of img2dataset's Parquet file by key; none where it is missing or written by another tool."""
    beside = f"{url.removesuffix('.tar')}.parquet"
    try:
        with open_file(beside) as file:
            num_bytes = file.seek(0, io.SEEK_END)
            file.seek(0)
            table = read_parquet(file, num_bytes, beside)
    except NotFound:
        return {}
    except CorruptShard as error:
        raise ConfigError(f"{error}, or move it away from its tar") from error
    if not {"key", _IMG2DATASET_STATUS} <= set(table.column_names):
        return {}
    return {str(row.pop("key")): row for row in table.to_pylist()}
