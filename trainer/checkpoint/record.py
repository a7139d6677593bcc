"""The commit record of a checkpoint: it exists when this does."""

from typing import Any

from pipeline.base.errors import NotFound
from pipeline.base.records import Record
from pipeline.store.base import Store

FOLDER = "checkpoints"


class CheckpointFile(Record):
    """One stored file of a checkpoint."""

    name: str
    num_bytes: int
    sha256: str


class CheckpointRecord(Record):
    """Says that a checkpoint exists whole.

    Attributes:
        step: Optimizer steps done.
        folder: Where its files are.
        files: All of them.
        stream: State of the data stream; empty where there is none.
        about: What the weights are: model, classes, where they came from.
    """

    step: int
    folder: str
    files: tuple[CheckpointFile, ...]
    stream: dict[str, Any]
    about: dict[str, Any]


def committed(store: Store) -> list[CheckpointRecord]:
    """Return all committed checkpoints, oldest first."""
    keys = [entry.key for entry in store.list(f"{FOLDER}/") if entry.key.count("/") == 1]
    return [CheckpointRecord.model_validate_json(store.read(key)) for key in keys if key.endswith(".json")]


def latest(store: Store) -> CheckpointRecord | None:
    """Return the newest committed checkpoint, or None."""
    keys = [e.key for e in store.list(f"{FOLDER}/") if e.key.count("/") == 1 and e.key.endswith(".json")]
    return CheckpointRecord.model_validate_json(store.read(keys[-1])) if keys else None


def require_latest(store: Store) -> CheckpointRecord:
    """Return the newest committed checkpoint.

    Raises:
        NotFound: There is none.
    """
    record = latest(store)
    if record is None:
        models = sorted({entry.key.split("/")[1] for entry in store.list("models/")})
        advice = (
            f"it holds models/ with {', '.join(models)}: give one of them"
            if models
            else "give the OUT of `trainer pretrain`"
        )
        raise NotFound(f"{store.url} holds no checkpoint; {advice}")
    return record
