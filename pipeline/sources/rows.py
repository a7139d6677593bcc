"""What every source gives: one row per picture, and the names of the classes."""

from dataclasses import dataclass

import pyarrow as pa

ROW_SCHEMA = pa.schema(
    [
        ("source", pa.string()),  # stable name of the picture inside its source; orders the plan
        ("uri", pa.string()),  # where to read it
        ("num_bytes", pa.int64()),  # -1 where unknown
        ("labels", pa.list_(pa.int32())),
        ("extra", pa.string()),  # JSON object of further columns
    ]
)


@dataclass(frozen=True)
class SourceRows:
    """All pictures of a source.

    Attributes:
        rows: Table of ROW_SCHEMA.
        classes: Class names by label; empty where labels are numbers without names.
        num_ignored: Files that do not look like pictures.
    """

    rows: pa.Table
    classes: tuple[str, ...]
    num_ignored: int = 0
