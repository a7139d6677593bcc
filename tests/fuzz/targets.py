"""The readers that meet the bytes of others, each with the errors that it may end in."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
from hypothesis import strategies as st
from PIL import Image

from pipeline.base.errors import BadImage, BitError, ConfigError, CorruptShard
from pipeline.base.parsing import parse_record
from pipeline.dataset.schema import SAMPLE_SCHEMA, ManifestVersion, to_parquet
from pipeline.dataset.tables import from_parquet
from pipeline.dataset.tar_reader import labels_of, scan_tar
from pipeline.dataset.versions import parsed_version
from pipeline.image.decode import decode, read_jpeg_header
from trainer.checkpoint.chunks import ChunkList
from trainer.checkpoint.record import CheckpointRecord
from trainer.formats.description import read_description
from trainer.formats.files import read_weights

CORPUS = Path(__file__).with_name("corpus")
_NAME = "s3://bucket/file"
_INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, ord("9"), ord("/"), ord("="), ord("\n"))


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        read: Takes the bytes of a file.
        errors: It may end in these, and in nothing else.
        names_file: Whether their messages must name the file.
        seeds: Sound files to begin with.
    """

    read: Callable[[bytes], object]
    errors: tuple[type[BitError], ...]
    names_file: bool
    seeds: tuple[bytes, ...]


def _tar(body: bytes) -> None:
    for sample in scan_tar(io.BytesIO(body), _NAME)[0]:
        if sample.problem is None:
            try:
                labels_of(sample)
            except BadImage:
                continue


def _jpeg_header(body: bytes) -> None:
    read_jpeg_header(body, check_end=True)


def _a_tar() -> bytes:
    import tarfile  # noqa: PLC0415 - for the seeds alone

    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (
            ("a.jpg", b"picture"),
            ("a.cls", b"3"),
            ("a.json", b'{"labels": [1, 2]}'),
            ("b.png", b""),
        ):
            about = tarfile.TarInfo(name)
            about.size, about.mtime = len(content), 1.5
            archive.addfile(about, io.BytesIO(content))
    return sink.getvalue()


def _pictures() -> tuple[bytes, ...]:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))
    made = []
    for kind, options in (
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
    ):
        sink = io.BytesIO()
        image.save(sink, kind, **options)
        made.append(sink.getvalue())
    return tuple(made)


def _weights() -> tuple[bytes, ...]:
    npz, torch_file = io.BytesIO(), io.BytesIO()
    np.savez_compressed(npz, a=np.zeros((2, 3), np.float32), b=np.ones(2))
    torch.save({"state_dict": {"a": torch.ones(2)}}, torch_file)
    return npz.getvalue(), torch_file.getvalue(), safetensors.torch.save({"a": torch.ones(2)})


def _manifest() -> bytes:
    empty = dict.fromkeys(("classes", "classes_sha256", "rejects", "rejects_sha256", "descriptor"))
    numbers = dict.fromkeys(
        ("num_shards", "num_samples", "num_bytes", "num_rejects", "num_duplicates", "num_classes"), 1
    )
    texts = dict.fromkeys(("split", "shards", "shards_sha256", "blocks", "blocks_sha256", "writer"), "a")
    return ManifestVersion(version=1, reject_reasons={}, plan_ids=("p",), **empty, **numbers, **texts).to_json()


_RECORD = {"step": 1, "folder": "f", "files": [{"name": "a", "num_bytes": 1, "sha256": "a"}], "stream": {}, "about": {}}
_CHUNK = {
    "name": "a",
    "dtype": "float32",
    "shape": [1],
    "start": 0,
    "stop": 1,
    "offset": 0,
    "num_bytes": 4,
    "blake3": "",
}
_LIST = {"num_bytes": 4, "sha256": "a", "chunks": [_CHUNK]}
TARGETS = {
    "tar": Target(_tar, (CorruptShard,), True, (_a_tar(),)),
    "manifest": Target(lambda body: parsed_version(body, _NAME), (ConfigError, CorruptShard), True, (_manifest(),)),
    "sidecar": Target(
        lambda body: from_parquet(body, _NAME),
        (CorruptShard,),
        True,
        (
            to_parquet(SAMPLE_SCHEMA.empty_table()),
            to_parquet(pa.table({"key": ["a", "b"], "labels": [[1], [2, 3]], "path": ["x", "x"]})),
        ),
    ),
    "image": Target(decode, (BadImage,), False, _pictures()),
    "jpeg-header": Target(_jpeg_header, (BadImage,), False, _pictures()[:2]),
    "weights": Target(lambda body: read_weights(body, _NAME), (ConfigError,), True, _weights()),
    "checkpoint": Target(
        lambda body: (parse_record(CheckpointRecord, body, _NAME), parse_record(ChunkList, body, _NAME)),
        (CorruptShard,),
        True,
        (
            json.dumps(_RECORD).encode(),
            json.dumps(_LIST).encode(),
        ),
    ),
    "description": Target(
        lambda body: read_description(body, b"{}", _NAME),
        (ConfigError,),
        True,
        (b'{"id2label": {"0": "a", "1": "b"}}',),
    ),
}


def files_of(name: str) -> list[bytes]:
    """Return what a target is fed with to begin with: sound files, and those that are kept."""
    kept = sorted((CORPUS / name).glob("*")) if (CORPUS / name).is_dir() else []
    return [*TARGETS[name].seeds, *(path.read_bytes() for path in kept)]


def check(name: str, body: bytes) -> str | None:
    """Feed a target; return what is wrong with how it ended, None if nothing is."""
    target = TARGETS[name]
    try:
        target.read(body)
    except target.errors as error:
        return f"the error names no file: {error}" if target.names_file and _NAME not in str(error) else None
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        return f"{type(error).__name__}: {error}"
    return None


@st.composite
def damaged(draw: st.DrawFn, name: str) -> bytes:
    """Return a file with a few places changed, cut out, doubled, or cut off."""
    body = bytearray(draw(st.sampled_from(files_of(name))))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(body) - 1)))
        count = draw(st.integers(1, 16))
        match draw(st.sampled_from(["value", "bytes", "cut", "twice", "end"])):
            case "value":
                body[place : place + 1] = bytes([draw(st.sampled_from(_INTERESTING))])
            case "bytes":
                body[place : place + count] = draw(st.binary(min_size=count, max_size=count))
            case "cut":
                del body[place : place + count]
            case "twice":
                body[place:place] = body[place : place + count]
            case "end":
                del body[place:]
    return bytes(body)
