"""What is written as JSON: records and plain values."""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict

FORMAT = "bit-wds/2"  # of datasets; part of each plan's identity


class Record(BaseModel):
    """Frozen; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> bytes:
        """Return the record as JSON bytes; equal records give equal bytes."""
        return (self.model_dump_json(indent=1) + "\n").encode()


def json_bytes(value: Any, end: str = "\n") -> bytes:
    """Return a plain value as the bytes of a JSON file, indented by one and with its keys in their order."""
    return (json.dumps(value, indent=1) + end).encode()
