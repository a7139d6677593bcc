"""The base of everything written as JSON."""

from pydantic import BaseModel, ConfigDict

FORMAT = "bit-wds/2"  # of datasets; part of each plan's identity


class Record(BaseModel):
    """Frozen, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> bytes:
        """Return the record as JSON bytes; equal records give equal bytes."""
        return (self.model_dump_json(indent=1) + "\n").encode()
