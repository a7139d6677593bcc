"""The commit record of a checkpoint: it exists when this does."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.base.errors import NotFound
from pipeline.base.parsing import parse_record
from pipeline.base.records import Record
from pipeline.store.base import Store

FOLDER = "checkpoints"
_RECORD_KEY = re.compile(rf"(?:^|/){FOLDER}/(\d+)\.json$")


class CheckpointFile(Record):
    """One stored file of a checkpoint."""

    name: Annotated[str, Field(pattern=r"^[^/\\]+$")]  # no path: it is put together with one
    num_bytes: int
    sha256: str


class UnreportedFigures(Record):
    """What a rank measured in the steps since the last row of metrics: when the run goes on from here, they count, too.

    Attributes:
        sums: By figure, over samples.
        num_samples: Of this rank.
    """

    sums: dict[str, float]
    num_samples: int


class CheckpointRecord(Record):
    """Says that a checkpoint exists whole.

    Attributes:
        step: Optimizer steps done.
        folder: Where its files are.
        files: All of them.
        stream: State of the data stream; empty where there is none.
        about: What the weights are: model, classes, where they came from.
        unreported: Of every rank, in their order; empty right after a row.
        layout: Of the files: our own chunks, or those of torch.distributed.checkpoint.
    """

    step: int
    folder: str
    files: tuple[CheckpointFile, ...]
    stream: dict[str, Any]
    about: dict[str, Any]
    unreported: tuple[UnreportedFigures, ...] = ()
    layout: Literal["torch", "chunks"] = "torch"


def record_key(step: int) -> str:
    """Return the key of the record of a step's checkpoint."""
    return f"{FOLDER}/{step:09d}.json"


def is_record_key(key: str) -> bool:
    """Return whether an object of a run, or of a run inside a sweep, is a commit record."""
    return step_of_record(key) is not None


def step_of_record(key: str) -> int | None:
    """Return the step of which an object is the commit record; None of another object."""
    found = _RECORD_KEY.search(key)
    return int(found[1]) if found else None


def steps(store: Store) -> list[int]:
    """Return the steps of all committed checkpoints, oldest first."""
    keys = [entry.key for entry in store.list(f"{FOLDER}/")]
    names = [key.removeprefix(f"{FOLDER}/").removesuffix(".json") for key in keys if key.endswith(".json")]
    return sorted(int(name) for name in names if name.isdigit())


def read_record(store: Store, step: int) -> CheckpointRecord:
    """Return the record of a step's checkpoint.

    Raises:
        NotFound: There is none.
        CorruptShard: It is damaged.
    """
    key = record_key(step)
    return parse_record(CheckpointRecord, store.read(key), f"{store.url}/{key}")


def committed(store: Store) -> list[CheckpointRecord]:
    """Return all committed checkpoints, oldest first."""
    return [read_record(store, step) for step in steps(store)]


def latest(store: Store) -> CheckpointRecord | None:
    """Return the newest committed checkpoint, or None."""
    found = steps(store)
    return read_record(store, found[-1]) if found else None


def require_latest(store: Store) -> CheckpointRecord:
    """Return the newest committed checkpoint.

    Raises:
        NotFound: There is none.
    """
    record = latest(store)
    if record is None:
        raise NotFound(f"{store.url} holds no checkpoint; {_advice(store)}")
    return record


def chosen(store: Store, step: int | None) -> CheckpointRecord:
    """Return the checkpoint of a step, or for None the newest one.

    Raises:
        NotFound: There is none; names the steps that there are.
    """
    if step is None:
        return require_latest(store)
    found = steps(store)
    if step not in found:
        there = f"it has those of steps {', '.join(map(str, found))}" if found else _advice(store)
        raise NotFound(f"{store.url} has no checkpoint of step {step}; {there}")
    return read_record(store, step)


def _advice(store: Store) -> str:
    models = sorted({entry.key.split("/")[1] for entry in store.list("models/")})
    if models:
        return f"it holds models/ with {', '.join(models)}: give one of them"
    return "give the OUT of `trainer pretrain`"
