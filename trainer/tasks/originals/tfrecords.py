"""Folders of TensorFlow Datasets: TFRecord files of `tf.train.Example`, in whose order VTAB takes "the first 800".

Read without TensorFlow: a record is length, checksum, bytes and checksum; an Example is a protocol buffer of names and
lists of bytes, floats or integers.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from crc32c import crc32c

from pipeline.base.errors import ConfigError, CorruptShard
from trainer.tasks.derive import VEHICLES, binned, clevr_count, clevr_distance, kitti_distance
from trainer.tasks.originals.base import Example, Original, PublishedSplit, png, require_known
from trainer.tasks.task import Task

Features = dict[str, Any]  # lists of bytes, or arrays of float32 or int64, by name
INFO_NAME = "dataset_info.json"
_MASK = 0xA282EAD8
_LABELS: dict[tuple[str, str], Callable[[Features], int]] = {
    ("clevr", "count"): lambda found: clevr_count(len(found["objects/size"])),
    ("clevr", "distance"): lambda found: clevr_distance(found["objects/pixel_coords"][2::3].tolist()),
    ("kitti", "distance"): lambda found: kitti_distance(
        [VEHICLES[kind] if kind < len(VEHICLES) else "" for kind in found["objects/type"].tolist()],
        found["objects/location"][2::3].tolist(),
    ),
    ("dsprites", "location"): lambda found: binned(int(found["label_x_position"][0]), 32, 16),
    ("dsprites", "orientation"): lambda found: binned(int(found["label_orientation"][0]), 40, 16),
    ("smallnorb", "azimuth"): lambda found: int(found["label_azimuth"][0]),
    ("smallnorb", "elevation"): lambda found: int(found["label_elevation"][0]),
}


def tfds_folder(root: Path) -> Path | None:
    """Return the folder with the records of a set that TFDS prepared, at or below a folder; or None.

    Raises:
        ConfigError: There are several: other configurations or versions of a set hold other pictures.
    """
    folders = sorted(path.parent for path in root.glob(f"**/{INFO_NAME}"))
    if len(folders) > 1:
        raise ConfigError(f"{root} holds several sets of TFDS; give one of {', '.join(map(str, folders))}")
    return folders[0] if folders else None


def read_tfds(folder: Path, task: Task) -> Original:
    """Return a set that TFDS prepared.

    Raises:
        ConfigError: It has no record, or no names for its labels.
    """
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.tfrecord*")):
        files.setdefault(path.name.partition(".tfrecord")[0].rpartition("-")[2], []).append(path)
    if not files:
        raise ConfigError(f"{folder} holds {INFO_NAME} and no .tfrecord file; prepare the set again")
    names = folder / "label.labels.txt"
    classes = task.classes or (tuple(names.read_text(encoding="utf-8").split("\n")[:-1]) if names.exists() else ())
    if not classes:
        raise ConfigError(f"{folder} has no label.labels.txt, which names the classes")
    label = _LABELS.get((task.original, task.label), lambda found: int(found["label"][0]))
    splits = {
        split: PublishedSplit(sum(map(_num_records, paths)), partial(_take, paths, task, label, classes))
        for split, paths in files.items()
    }
    return Original(classes, splits, in_order=True)


def _take(
    paths: Sequence[Path], task: Task, label: Callable[[Features], int], classes: Sequence[str], rows: Sequence[int]
) -> Iterator[Example]:
    wanted, last, number = set(map(int, rows)), max(rows, default=-1), 0
    for path in paths:
        for record in _records(path):
            if number in wanted:
                found = parse_example(record, path)
                image = found["image"][0]
                if task.original == "dsprites":
                    image = _brightened(image)
                yield Example(f"{number:08d}", image, require_known(label(found), classes, f"{path}"))
            number += 1
            if number > last:
                return


def _brightened(image: bytes) -> bytes:
    """Return a picture of 0 and 1 as one of 0 and 255."""
    from pipeline.image.decode import decode  # noqa: PLC0415

    return png(decode(image)[:, :, 0] * np.uint8(255))


def _num_records(path: Path) -> int:
    """Count the records of a file by their lengths alone."""
    count = 0
    with path.open("rb") as file:
        while header := file.read(12):
            file.seek(_length(header, path) + 4, 1)
            count += 1
    return count


def _records(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while header := file.read(12):
            num_bytes = _length(header, path)
            body, check = file.read(num_bytes), file.read(4)
            if len(check) < 4 or _masked(body) != struct.unpack("<I", check)[0]:
                raise CorruptShard(f"{path}: a record's checksum is wrong; prepare the set again")
            yield body


def _length(header: bytes, path: Path) -> int:
    if len(header) < 12 or _masked(header[:8]) != struct.unpack("<I", header[8:])[0]:
        raise CorruptShard(f"{path} is cut or no TFRecord file; prepare the set again")
    return int(struct.unpack("<Q", header[:8])[0])


def _masked(body: bytes) -> int:
    """Return the checksum of bytes as a TFRecord has it."""
    crc: int = crc32c(body)
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


def parse_example(body: bytes, where: Path) -> Features:
    """Return the features of a `tf.train.Example`.

    Raises:
        CorruptShard: It is none.
    """
    try:
        features: Features = {}
        for _, part in _fields(body):
            for _, entry in _fields(part):
                fields = dict(_fields(entry))
                features[fields[1].decode()] = _values(fields.get(2, b""))
    except (IndexError, KeyError, ValueError, struct.error) as error:
        raise CorruptShard(f"{where}: a record is no tf.train.Example ({error})") from error
    return features


def _values(feature: bytes) -> Any:
    """Return a `tf.train.Feature`: field 1 has bytes, 2 floats, 3 integers."""
    kind, listed = next(_fields(feature), (1, b""))
    if kind == 1:
        return [value for _, value in _fields(listed)]
    if kind == 2:
        return np.concatenate([np.frombuffer(value, "<f4") for _, value in _fields(listed)] or [np.empty(0, "<f4")])
    numbers: list[int] = []
    for _, value in _fields(listed):
        if isinstance(value, int):
            numbers.append(value)
            continue
        place = 0
        while place < len(value):
            number, place = _varint(value, place)
            numbers.append(number)
    return np.array(numbers, np.uint64).astype(np.int64)


def _fields(body: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field of a protocol buffer: an integer, or bytes."""
    place = 0
    while place < len(body):
        tag, place = _varint(body, place)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, place = _varint(body, place)
            yield number, value
            continue
        if wire == 2:
            num_bytes, place = _varint(body, place)
        elif wire in {1, 5}:
            num_bytes = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if place + num_bytes > len(body):
            raise ValueError("it is cut")
        yield number, body[place : place + num_bytes]
        place += num_bytes


def _varint(body: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = body[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
