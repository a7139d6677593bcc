"""The records of a dataset: sidecar, commit record, manifest version. docs/format.md is normative."""

import hashlib
import io
from typing import Any

import blake3
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.records import FORMAT, Record
from pipeline.image.fingerprint import CODE_BYTES

POINTER_KEY = "MANIFEST.json"
INDEX_FOLDER = "index/"  # of the sidecars of adopted tars
FINGERPRINTS_FOLDER = "fingerprints/"  # of the sidecars of `cluster fingerprint`, whose tars lie elsewhere, too
# Half of the BLAKE3 of an image's bytes: 128 bits tell 300 M images apart, and a sidecar stays below 60 B a sample.
DIGEST_BYTES = 16
PIXELS_COLUMN = "pixels"  # digest of the decoded picture, in sidecars that `cluster fingerprint` writes

SAMPLE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image_offset", pa.int64()),
        ("image_bytes", pa.int32()),
        ("json_offset", pa.int64()),
        ("json_bytes", pa.int32()),
        ("labels", pa.list_(pa.int32())),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("digest", pa.binary(DIGEST_BYTES)),
        ("code", pa.binary(CODE_BYTES)),
        ("quality", pa.uint8()),
    ]
)
# One row of a plan: which picture, where to read it, what is known of it.
PLAN_SCHEMA = pa.schema(
    [
        ("source", pa.string()),  # stable name of the picture; orders the plan
        ("base", pa.int16()),  # which of the plan's sources
        ("path", pa.string()),  # below that source, or absolute; null where it equals the name
        ("container", pa.string()),  # file, tar or parquet
        ("offset", pa.int64()),  # first byte in a tar, row of a Parquet file; 0 for a file
        ("num_bytes", pa.int64()),  # -1 where unknown
        ("labels", pa.list_(pa.int32())),
        ("extra", pa.string()),  # JSON object of further columns
        ("run", pa.uint64()),  # hash of the run of rows that is read at once; null for a picture of its own
    ]
)
REJECT_SCHEMA = pa.schema([*PLAN_SCHEMA, ("plan_id", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
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
        ("blake3", pa.string()),
        ("sidecar", pa.string()),
        ("sidecar_bytes", pa.int64()),
        ("sidecar_sha256", pa.string()),
        ("num_rejects", pa.int64()),
        ("plan_id", pa.string()),
        ("plan_shard", pa.int32()),
    ]
)


class Blocks(Record):
    """Runs of whole samples, about 8 MiB each: the unit of shuffling and of one ranged read. One entry a block."""

    num_samples: tuple[int, ...] = ()
    offset: tuple[int, ...] = ()
    num_bytes: tuple[int, ...] = ()
    crc32c: tuple[int, ...] = ()


class CommitRecord(Record):
    """The mark that a shard is whole: written last, after its tar and its sidecar.

    Attributes:
        plan_id: The plan it belongs to; for an adopted tar a digest of the list of tars.
        plan_shard: Its number in that plan.
        blake3: Of the tar, 64 hexadecimal digits.
    """

    plan_id: str
    plan_shard: int
    split: str
    path: str
    num_samples: int
    num_bytes: int
    blake3: str
    sidecar: str
    sidecar_bytes: int
    sidecar_sha256: str
    num_rejects: int
    rejects: str | None
    reject_reasons: dict[str, int]
    highest_label: int
    blocks: Blocks


class ManifestVersion(Record):
    """One immutable version of a dataset; MANIFEST.json holds the latest, `manifests/v%06d.json` each.

    Attributes:
        version: Counts from 1.
        num_rejects: Rows of all plans that could not be used and were not packed since.
        num_duplicates: Rows left out because another row has the same image bytes.
        descriptor: Version of the fingerprint; None where a shard was packed without.
        plan_ids: Plans whose shards are in it, in the order they were added.
    """

    format: str = FORMAT
    version: int
    split: str
    num_shards: int
    num_samples: int
    num_bytes: int
    num_rejects: int
    num_duplicates: int
    reject_reasons: dict[str, int]
    num_classes: int
    shards: str
    shards_sha256: str
    blocks: str
    blocks_sha256: str
    classes: str | None
    classes_sha256: str | None
    rejects: str | None
    rejects_sha256: str | None
    descriptor: str | None
    plan_ids: tuple[str, ...]
    writer: str


def version_key(version: int) -> str:
    """Return the key of a manifest version's record."""
    return f"manifests/v{version:06d}.json"


def is_adopted(sidecar: str) -> bool:
    """Return whether the sidecar of this key is that of an adopted tar: those have folders of their own."""
    return sidecar.startswith((INDEX_FOLDER, FINGERPRINTS_FOLDER))


def sha256_hex(body: bytes) -> str:
    """Return the sha256 as 64 hexadecimal digits."""
    return hashlib.sha256(body).hexdigest()


def image_digest(data: bytes | memoryview) -> bytes:
    """Return the digest of an image's bytes as a sidecar holds it."""
    return blake3.blake3(data).digest(length=DIGEST_BYTES)


def to_parquet(table: pa.Table) -> bytes:
    """Return the table as Parquet; equal tables give equal bytes with the same pyarrow.

    Hashes do not compress, so they are stored plain; offsets and sizes are delta-packed before zstd.
    """
    sink = io.BytesIO()
    packed = {"image_offset", "image_bytes", "json_offset", "offset", "num_bytes"}
    encodings = {name: "DELTA_BINARY_PACKED" for name in table.column_names if name in packed}
    encodings |= {name: "DELTA_BYTE_ARRAY" for name in table.column_names if name == "key"}
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


def table_of(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows of plain values as a table of exactly `schema`."""
    return pa.Table.from_pylist(rows, schema=schema)
