"""WebDataset tars as a source, whoever wrote them; with or without an index.

A tar is read once from front to back for its members; packing then reads each image by its range.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.errors import ConfigError, EmptySource, NotFound
from pipeline.dataset.tar_reader import labels_of, scan_tar
from pipeline.packing.sources.folder import check_name
from pipeline.packing.sources.rows import RESERVED, TAR, ParallelMap, Source, batch_of, extra_of
from pipeline.store.any_url import common_folder, expand, identity_of, open_file
from pipeline.store.base import Entry

_IMG2DATASET_STATUS = "status"


def tar_source(url: str, classes: tuple[str, ...] | None = None) -> Source:
    """Return the tars that a URL, brace or glob pattern names as a source.

    Further columns come from img2dataset's Parquet file beside a tar, where there is one.

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
    """Return tars as a source, see `tar_source`; with `is_ours` pictures keep the names they have in their dataset."""
    if not entries:
        raise EmptySource(f"{url} names no .tar file")
    base = common_folder([entry.key for entry in entries])

    def read(parallel_map: ParallelMap[Any, Any]) -> Iterator[pa.RecordBatch]:
        found = 0
        for batch, num_ignored in parallel_map(_TarReader(base, is_ours), [entry.key for entry in entries]):
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
    """Reads the rows of one tar; runs on a worker."""

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
    """Return the rows of img2dataset's Parquet file by key; none where it is missing or written by another tool."""
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
