"""Small data sets in the formats of their authors, for the tests of tasks."""

import json
import pickle
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from crc32c import crc32c

from tests.conftest import jpeg, picture
from trainer.tasks.originals.base import png


def cifar_pickled(root: Path, *, classes: int = 100) -> Path:
    """The Python version: rows of 3,072 bytes, red first, and keys of bytes, as they are published."""
    generator = np.random.default_rng(0)
    folder = root / ("cifar-100-python" if classes == 100 else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    key = b"fine_labels" if classes == 100 else b"labels"
    names = (
        {"train": 30, "test": 10}
        if classes == 100
        else {f"data_batch_{n}": 6 for n in range(1, 6)} | {"test_batch": 10}
    )
    for name, count in names.items():
        labels = [number % classes for number in range(count)]
        data = generator.integers(0, 256, (count, 3072), np.uint8)
        batch = {b"data": data, key: labels, b"coarse_labels": [0] * count, b"filenames": [b"x.png"] * count}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta, names_key = ("meta", b"fine_label_names") if classes == 100 else ("batches.meta", b"label_names")
    (folder / meta).write_bytes(pickle.dumps({names_key: [b"kind%d" % n for n in range(classes)]}, protocol=2))
    return folder


def cifar_binary(root: Path, pickled: Path) -> Path:
    """The binary version of the same: coarse label, fine label, pixels."""
    folder = root / "cifar-100-binary"
    folder.mkdir(parents=True)
    for name in ("train", "test"):
        batch = pickle.loads((pickled / name).read_bytes())
        rows = [
            bytes([0, label]) + row.tobytes() for label, row in zip(batch[b"fine_labels"], batch[b"data"], strict=True)
        ]
        (folder / f"{name}.bin").write_bytes(b"".join(rows))
    (folder / "fine_label_names.txt").write_text("".join(f"kind{number}\n" for number in range(100)))
    return folder


def photos(root: Path, names: Sequence[str]) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(picture(number, 24, 24)))


def pets(root: Path) -> Path:
    names = [f"{breed}_{number}" for breed in ("Abyssinian", "american_bulldog") for number in range(1, 6)]
    photos(root / "images", [f"{name}.jpg" for name in names])
    (root / "annotations").mkdir()
    rows = [f"{name} {1 + name.startswith('am')} 1 1" for name in names]
    (root / "annotations" / "trainval.txt").write_text("\n".join(rows[:3] + rows[5:8]) + "\n")
    (root / "annotations" / "test.txt").write_text(
        "#Image CLASS-ID SPECIES BREED ID\n" + "\n".join(rows[3:5] + rows[8:])
    )
    return root


def dtd(root: Path) -> Path:
    names = [f"{kind}/{kind}_{number:04d}.jpg" for kind in ("banded", "woven") for number in range(6)]
    photos(root / "images", names)
    (root / "labels").mkdir()
    for split, part in (("train", slice(0, 2)), ("val", slice(2, 4)), ("test", slice(4, 6))):
        chosen = names[:6][part] + names[6:][part]
        (root / "labels" / f"{split}1.txt").write_text("\n".join(chosen) + "\n")
    return root


def clevr(root: Path, scenes: Mapping[str, Sequence[Sequence[float]]]) -> Path:
    """Scenes by the depths of their objects."""
    (root / "scenes").mkdir(parents=True)
    for split, listed in scenes.items():
        names = [f"CLEVR_{split}_{number:06d}.png" for number in range(len(listed))]
        photos(root / "images" / split, names)
        about = [
            {
                "image_filename": name,
                "objects": [{"pixel_coords": [10, 20, depth], "shape": "cube"} for depth in depths],
            }
            for name, depths in zip(names, listed, strict=True)
        ]
        (root / "scenes" / f"CLEVR_{split}_scenes.json").write_text(json.dumps({"info": {}, "scenes": about}))
    return root


KITTI_LINE = "{kind} 0.00 0 -1.57 599.41 156.40 629.75 189.25 2.85 2.63 12.34 0.47 1.49 {depth} -1.56\n"


def kitti(root: Path, depths: Sequence[float | None], num_videos: int) -> Path:
    """Pictures with one car each, or with none; and the mapping, shuffled as it is published."""
    count = len(depths)
    photos(root / "training" / "image_2", [f"{number:06d}.png" for number in range(count)])
    (root / "training" / "label_2").mkdir()
    for number, depth in enumerate(depths):
        lines = KITTI_LINE.format(kind="Pedestrian", depth=1.0) + KITTI_LINE.format(kind="DontCare", depth=-1000)
        if depth is not None:
            lines += KITTI_LINE.format(kind="Car", depth=depth)
        (root / "training" / "label_2" / f"{number:06d}.txt").write_text(lines)
    (root / "mapping").mkdir()
    order = np.random.default_rng(5).permutation(count)
    mapping = [f"2011_09_26 2011_09_26_drive_{line % num_videos:04d}_sync {line:010d}\n" for line in range(count)]
    (root / "mapping" / "train_mapping.txt").write_text("".join(mapping))
    (root / "mapping" / "train_rand.txt").write_text(",".join(str(line + 1) for line in order))
    return root


def dsprites(root: Path) -> Path:
    """All 40 orientations and 32 positions once."""
    factors = np.zeros((72, 6), np.int64)
    factors[:40, 3], factors[40:, 4] = np.arange(40), np.arange(32)
    images = np.random.default_rng(0).integers(0, 2, (72, 64, 64), np.uint8)
    np.savez(root / "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz", imgs=images, latents_classes=factors)
    return root


def norb_matrix(values: np.ndarray) -> bytes:
    magic = {np.dtype("u1"): 0x1E3D4C55, np.dtype("<i4"): 0x1E3D4C54}[values.dtype]
    sizes = [*values.shape, *[1] * (3 - values.ndim)]
    return struct.pack(f"<{2 + len(sizes)}i", magic, values.ndim, *sizes) + values.tobytes()


def smallnorb(root: Path) -> Path:
    generator = np.random.default_rng(0)
    for split in ("training", "testing"):
        images = generator.integers(0, 256, (36, 2, 96, 96), np.uint8)
        info = np.stack([np.zeros(36), np.arange(36) % 9, np.arange(36) % 18 * 2, np.zeros(36)], 1).astype("<i4")
        stem = f"smallnorb-5x46789x9x18x6x2x96x96-{split}"
        (root / f"{stem}-dat.mat").write_bytes(norb_matrix(images))
        (root / f"{stem}-info.mat").write_bytes(norb_matrix(info))
    return root


def hub(root: Path, **splits: int) -> Path:
    features = {
        "img": {"_type": "Image"},
        "fine_label": {"names": [f"kind{n}" for n in range(100)], "_type": "ClassLabel"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    (root / "data").mkdir(parents=True)
    for split, count in splits.items():
        images = [{"bytes": png(picture(number, 32, 32)), "path": None} for number in range(count)]
        table = pa.table({"img": images, "fine_label": [n % 100 for n in range(count)], "coarse_label": [0] * count})
        pq.write_table(table.replace_schema_metadata(metadata), root / "data" / f"{split}-00000-of-00001.parquet")
    return root


def _varint(value: int) -> bytes:
    out = b""
    value &= (1 << 64) - 1
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _field(number: int, body: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def example_proto(features: Mapping[str, Any]) -> bytes:
    """A `tf.train.Example`, as protobuf encodes it: numbers packed."""
    entries = b""
    for name, values in features.items():
        if isinstance(values[0], bytes):
            feature = _field(1, b"".join(_field(1, value) for value in values))
        elif isinstance(values[0], float):
            feature = _field(2, _field(1, struct.pack(f"<{len(values)}f", *values)))
        else:
            feature = _field(3, _field(1, b"".join(map(_varint, values))))
        entries += _field(1, _field(1, name.encode()) + _field(2, feature))
    return _field(1, entries)


def tfds(root: Path, name: str, splits: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], classes: int = 0) -> Path:
    """A prepared set: the records of each file of each split."""
    folder = root / name / "3.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    if classes:
        (folder / "label.labels.txt").write_text("".join(f"kind {number}\n" for number in range(classes)))
    for split, files in splits.items():
        for number, records in enumerate(files):
            body = b""
            for record in map(example_proto, records):
                length = struct.pack("<Q", len(record))
                body += length + struct.pack("<I", masked(length)) + record + struct.pack("<I", masked(record))
            (folder / f"{name}-{split}.tfrecord-{number:05d}-of-{len(files):05d}").write_bytes(body)
    return root


def masked(body: bytes) -> int:
    crc: int = crc32c(body)
    return (((crc >> 15) | (crc << 17 & 0xFFFFFFFF)) + 0xA282EAD8) & 0xFFFFFFFF
