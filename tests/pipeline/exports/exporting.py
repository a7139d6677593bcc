"""Exports of a dataset, and what the dataset's tars hold."""

import json
import tarfile
from pathlib import Path

from pipeline.dataset.dataset import Dataset, open_dataset
from pipeline.exports.base import Written
from pipeline.exports.write import FORMATS, export
from pipeline.packing.foreign_tars.index_tars import adopt
from pipeline.store.url import open_store
from pipeline.work.pools import InProcess
from tests.conftest import jpeg, picture
from tests.tars import Members


def export_all(dataset: Dataset, *formats: str) -> list[Written]:
    return list(export(dataset, formats or tuple(FORMATS), lambda count: None))


def indexed(root: Path) -> Dataset:
    """Adopt the tars of a folder."""
    adopt(open_store(str(root)), InProcess(), split="train", classes=(), block_bytes=8 << 20)
    return open_dataset(str(root))


def root_of(dataset: Dataset) -> Path:
    return Path(dataset.store.url)


def tars_of(dataset: Dataset) -> list[Path]:
    return [root_of(dataset) / row["path"] for row in dataset.shards]


def members_of(tar: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(tar) as archive:
        return archive.getmembers()


def labels_by_key(dataset: Dataset) -> dict[str, int]:
    rows = dataset.all_samples(["key", "labels"]).to_pylist()
    return {row["key"]: row["labels"][0] for row in rows}


def foreign_samples(first: int, count: int) -> Members:
    """Return samples as another tool names them, labelled in JSON."""
    files: Members = []
    for number in range(first, first + count):
        files.append((f"some folder/{number:04d}.JPG", jpeg(picture(number))))
        files.append((f"some folder/{number:04d}.json", json.dumps({"label": number % 3}).encode()))
    return files
