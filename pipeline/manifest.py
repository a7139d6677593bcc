"""The records of a dataset: sidecar, commit record, manifest version. docs/format.md is normative."""

import hashlib
import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from pipeline.fingerprint import CODE_BYTES
from pipeline.tar import BLOCK_BYTES, padded

FORMAT = "bit-wds/1"
POINTER_KEY = "MANIFEST.json"
# The first half of the sha256 of an image's bytes: 128 bits tell 300 M images apart, and a sidecar stays below
# 60 B a sample.
DIGEST_BYTES = 16

SAMPLE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image_offset", pa.int64()),
        ("image_bytes", pa.int32()),
        ("cls_bytes", pa.int32()),
        ("json_bytes", pa.int32()),
        ("labels", pa.list_(pa.int32())),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("digest", pa.binary(DIGEST_BYTES)),
        ("code", pa.binary(CODE_BYTES)),
        ("quality", pa.uint8()),
    ]
)
REJECT_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("uri", pa.string()),
        ("labels", pa.list_(pa.int32())),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
BLOCK_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("first_row", pa.int32()),
        ("num_samples", pa.int32()),
        ("offset", pa.int64()),
        ("num_bytes", pa.int64()),
        ("crc32c", pa.uint32()),
    ]
)
SHARD_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("split", pa.string()),
        ("path", pa.string()),
        ("num_samples", pa.int64()),
        ("num_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("sidecar", pa.string()),
        ("sidecar_bytes", pa.int64()),
        ("sidecar_sha256", pa.string()),
        ("num_rejects", pa.int64()),
        ("plan_id", pa.string()),
    ]
)


class Record(BaseModel):
    """Base of everything written as JSON: frozen, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> bytes:
        """Gives the record as JSON bytes; equal records give equal bytes."""
        return (self.model_dump_json(indent=1) + "\n").encode()


class Block(Record):
    """A run of whole samples, about 8 MiB: the unit of shuffling and of one ranged read."""

    first_row: int
    num_samples: int
    offset: int
    num_bytes: int
    crc32c: int


class CommitRecord(Record):
    """Says that a shard exists whole: written last, after its tar and its sidecar."""

    shard: int
    split: str
    path: str
    num_samples: int
    num_bytes: int
    sha256: str
    sidecar: str
    sidecar_bytes: int
    sidecar_sha256: str
    num_rejects: int
    rejects: str | None
    reject_reasons: dict[str, int]
    plan_id: str
    blocks: tuple[Block, ...]


class ManifestVersion(Record):
    """One immutable version of a dataset, `manifests/v%06d.json`; MANIFEST.json is a copy of the latest."""

    format: str = FORMAT
    version: int
    split: str
    num_shards: int
    num_samples: int
    num_bytes: int
    num_rejects: int
    reject_reasons: dict[str, int]
    num_classes: int
    shards: str
    shards_sha256: str
    blocks: str
    blocks_sha256: str
    classes: str | None
    classes_sha256: str | None
    descriptor: str
    plan_ids: tuple[str, ...]
    writer: str


def version_key(version: int) -> str:
    """Gives the key of a manifest version's record."""
    return f"manifests/v{version:06d}.json"


def sha256_hex(body: bytes) -> str:
    """Gives the sha256 as 64 hexadecimal digits."""
    return hashlib.sha256(body).hexdigest()


def to_parquet(table: pa.Table) -> bytes:
    """Gives the table as Parquet; equal tables give equal bytes with the same pyarrow.

    Hashes do not compress, so they are stored plain; offsets and sizes are delta-packed before zstd.
    """
    sink = io.BytesIO()
    packed = {"image_offset", "image_bytes", "offset", "num_bytes"}
    encodings = {name: "DELTA_BINARY_PACKED" for name in table.column_names if name in packed}
    if "key" in table.column_names:
        encodings["key"] = "DELTA_BYTE_ARRAY"
    plain = {"digest", "code", "quality", *encodings}
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=9,
        use_dictionary=[name for name in _leaf_names(table.schema) if name.split(".")[0] not in plain],
        column_encoding=encodings or None,
        write_statistics=False,
    )
    return sink.getvalue()


def _leaf_names(schema: pa.Schema) -> list[str]:
    return [f"{f.name}.list.element" if pa.types.is_list(f.type) else f.name for f in schema]


def from_parquet(body: bytes) -> pa.Table:
    """Gives the table of Parquet bytes.

    Without threads: the tables are small, and a process that ends while Arrow starts its threads is aborted.
    """
    return pq.ParquetFile(pa.BufferReader(body), pre_buffer=False).read(use_threads=False)


def table_of(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Gives rows of plain values as a table of exactly `schema`."""
    return pa.Table.from_pylist(rows, schema=schema)


def json_offset(sample: dict[str, Any]) -> int:
    """Gives the offset of a sample's JSON content, by the layout rule of docs/format.md."""
    cls_offset = sample["image_offset"] + padded(sample["image_bytes"]) + BLOCK_BYTES
    return int(cls_offset + padded(sample["cls_bytes"]) + BLOCK_BYTES)
