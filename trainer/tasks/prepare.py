"""From published files to datasets of ours, one for each split of a task."""

import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.errors import ConfigError, NotFound
from pipeline.base.records import json_bytes
from pipeline.dataset.schema import ManifestVersion
from pipeline.packing.foreign_tars.open_any import is_published
from pipeline.packing.jobs import Job, shard
from pipeline.packing.plan import ShardConfig
from pipeline.packing.sources.rows import FILE, PARQUET, Source, batch_of
from pipeline.store.any_url import join, parent, read_file
from pipeline.store.base import put
from pipeline.store.url import open_store
from pipeline.work.pools import Pool
from trainer.tasks.originals.base import Example, Original
from trainer.tasks.task import Task, check_counts, chosen_rows

_ROWS_AT_ONCE = 256  # examples in memory; a choice
_TABLE_NAME = "pictures.parquet"
TASK_KEY = "task.json"
Rows = Mapping[str, npt.NDArray[np.int64]]


def prepare(
    task: Task, original: Original, out: str, pool: Pool, *, any_size: bool = False
) -> dict[str, ManifestVersion]:
    """Pack every split of a task into a dataset below OUT, named as the split. A rerun goes on where one stopped.

    Args:
        task: The task.
        original: Its published files.
        out: URL of the folder for the datasets and `task.json`.
        pool: Where pictures are packed.
        any_size: Whether published splits may have other numbers of pictures than the task says.

    Raises:
        ConfigError: The files are not the task's, or OUT holds something else.
    """
    sizes = {name: split.size for name, split in original.splits.items()}
    if not any_size:
        check_counts(task, sizes)
    _check(task, original)
    versions: dict[str, ManifestVersion] = {}
    for split in task.splits:
        rows = chosen_rows(task, split, sizes, in_order=original.in_order)
        with tempfile.TemporaryDirectory(prefix="task-") as scratch:
            source = _source(Path(scratch), original, rows)
            job = Job(open_store(f"{out.rstrip('/')}/{split}"), pool, Path(scratch))
            versions[split] = shard(job, [("", source)], ShardConfig(split=_kind_of(split)), (task.name, split))
    put(open_store(out), TASK_KEY, json_bytes(about(task, original, versions)))
    return versions


def about(task: Task, original: Original, versions: Mapping[str, ManifestVersion]) -> dict[str, object]:
    """Return what is worth to be known of a prepared task, as `task.json` holds it."""
    return {
        "task": task.name,
        "group": task.group,
        "num_pictures": {split: version.num_samples for split, version in versions.items()},
        "classes": list(original.classes),
        "flip": task.flip,
        "crop": task.crop,
        "order": "as TFDS" if original.in_order else "random, always the same",
    }


def augmentation_of(train: str) -> dict[str, bool]:
    """Return which augmentation the task of a training set takes, by field, if it was prepared here; else nothing."""
    if not is_published(train):
        return {}
    try:
        found = json.loads(read_file(join(parent(train.rstrip("/")), TASK_KEY)))
    except NotFound:
        return {}
    return {name: found[name] for name in ("flip", "crop") if name in found}


def _check(task: Task, original: Original) -> None:
    if len(original.classes) != task.num_classes:
        raise ConfigError(f"{task.name} has {task.num_classes} classes, and the files {len(original.classes)}")
    needed = {portion.split for portions in task.splits.values() for portion in portions}
    missing = sorted(needed - set(original.splits))
    if missing:
        raise ConfigError(
            f"{task.name} needs the split {', '.join(missing)}; the files have {', '.join(original.splits)}"
        )


def _source(scratch: Path, original: Original, rows: Rows) -> Source:
    """Return the examples of some rows as a source; pictures that are no files are kept in a table meanwhile."""
    batches: list[pa.RecordBatch] = []
    with closing(_Table(scratch / _TABLE_NAME)) as table:
        for examples in _batched(_examples(original, rows)):
            batches.append(_batch(examples, table))
    if not batches:
        raise ConfigError("a split has no picture")
    return Source(
        str(scratch), lambda parallel_map: iter(batches), original.classes, image_column="image", are_names=True
    )


def _batch(examples: Sequence[Example], table: "_Table") -> pa.RecordBatch:
    names, labels = [example.name for example in examples], [[example.label] for example in examples]
    paths = [example.image for example in examples if isinstance(example.image, str)]
    if paths:
        return batch_of(names, labels=labels, container=FILE, path=paths)
    images = [example.image for example in examples]
    first, group = table.add(images)
    return batch_of(
        names,
        labels=labels,
        container=PARQUET,
        path=[_TABLE_NAME] * len(names),
        offset=range(first, first + len(names)),
        num_bytes=[len(image) for image in images],
        run=[group] * len(names),
    )


class _Table:
    """A Parquet file of pictures that is written once there is one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None
        self._num_rows = self._num_groups = 0

    def add(self, images: Sequence[bytes | str]) -> tuple[int, str]:
        """Write a row group; return its first row and its name."""
        rows = pa.table({"image": pa.array(images, pa.binary())})
        self._writer = self._writer or pq.ParquetWriter(self._path, rows.schema, compression="none")
        self._writer.write_table(rows)
        first = self._num_rows
        self._num_rows, self._num_groups = first + len(images), self._num_groups + 1
        return first, f"{_TABLE_NAME}#{self._num_groups}"

    def close(self) -> None:
        """Finish the file."""
        if self._writer:
            self._writer.close()


def _batched(examples: Iterator[Example]) -> Iterator[list[Example]]:
    while batch := list(itertools.islice(examples, _ROWS_AT_ONCE)):
        yield batch


def _examples(original: Original, rows: Rows) -> Iterator[Example]:
    for split, chosen in rows.items():
        for example in original.splits[split].take(chosen.tolist()):
            yield example._replace(name=f"{split}/{example.name}")


def _kind_of(split: str) -> str:
    return "val" if split.startswith("val") else "test" if split == "test" else "train"
