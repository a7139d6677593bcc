"""The starts of a launch and what they ended with, in the run folder: whoever starts a job again knows when not to."""

import json
import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from pipeline.base.errors import BitError, Fenced, NonFinite, ServiceError, StorageError
from pipeline.base.parsing import parse_json
from pipeline.store.base import Store
from trainer.checkpoint.record import is_record_key, step_of_record

if TYPE_CHECKING:
    from trainer.step.ranks import World

WHEEL_VARIABLE = "BIT_WHEEL_SHA256"  # digest of the code that came with a job
STARTS_WITHOUT_PROGRESS = 5  # then it is no accident
# What a job finishes piece by piece: checkpoints, finished runs of a sweep, parts of what is said of pictures.
_RECORDS = ("checkpoints/", "models/")
_RESULTS = ("results/", "predictions/part-", "embeddings/part-")
# What gloo and NCCL say of a rank that is gone.
_LOST_RANK = ("Connection closed by peer", "Connection reset by peer", "remote process exited")


def begins_in_vain(world: "World", store: Store, launch_id: str) -> bool:
    """Record a start, and return whether it cannot succeed, the same on every rank; every rank must call."""
    from trainer.step.ranks import broadcast  # noqa: PLC0415 - torch, which those who only look need not pay

    if world.is_first:
        write_start(store, launch_id)
    return broadcast(world, final_failure(store, launch_id) is not None if world.is_first else None)


def write_start(store: Store, launch_id: str) -> None:
    """Record that a group of workers starts, and what there is by then; called by rank 0."""
    body = json.dumps({"progress": progress_of(store)})
    store.create(f"failures/{launch_id}/starts/{time.time_ns()}.json", body.encode())


def num_starts(store: Store, launch_id: str) -> int:
    """Return how many groups of workers a launch has started."""
    return sum(1 for _ in store.list(f"failures/{launch_id}/starts/"))


def write_failure(store: Store, launch_id: str, rank: int, error: BaseException) -> None:
    """Record what a rank ends with."""
    is_final = isinstance(error, Fenced) or (isinstance(error, BitError) and not isinstance(error, StorageError))
    failure = {
        "rank": rank,
        "final": is_final,
        "diverged": isinstance(error, NonFinite),
        "message": failure_text(error),
    }
    store.create(f"failures/{launch_id}/{time.time_ns()}-{rank}.json", json.dumps(failure).encode())


def failure_text(error: BaseException) -> str:
    """Return what a rank ended with: a line for people first, and a library's own words after it."""
    if isinstance(error, BitError):
        return f"{error}"
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, RuntimeError) and any(words in text for words in _LOST_RANK):
        return f"lost the connection to another rank: it was killed, or its node is gone\n{text}"
    return text


def progress_of(store: Store) -> list[str]:
    """Return the names of all that was finished at a run or sweep: checkpoints, results and parts of them."""
    found = [entry.key for prefix in (*_RECORDS, *_RESULTS) for entry in store.list(prefix)]
    return sorted(key for key in found if is_record_key(key) or key.startswith(_RESULTS))


def has_saved_since(before: Collection[str], now: Collection[str], step: int) -> bool:
    """Return whether a group has a state of so many steps or more that it had not before.

    Args:
        before: As `progress_of` returned it, before the group was asked to save.
        now: As it returns it now. A checkpoint of fewer steps was under way; a new result is a finished run of a sweep,
            or part of what is said of pictures.
        step: Steps done when the group was asked.
    """
    new = set(now).difference(before)
    return any((found := step_of_record(key)) is None or found >= step for key in new)


def final_failure(store: Store, launch_id: str) -> BitError | None:
    """Return why a launch cannot succeed: an error that would come again, or too many starts without progress.

    Training that diverged is NonFinite, as in a single process; all else is a ServiceError.
    """
    folder = f"failures/{launch_id}/"
    entries = [entry.key for entry in store.list(folder)]
    failures = [
        parse_json(store.read(key), f"{store.url}/{key}", dict)
        for key in entries
        if "/starts/" not in key and "launch.json" not in key
    ]
    for failure in failures:
        if failure["final"]:
            return (NonFinite if failure.get("diverged") else ServiceError)(failure["message"])
    starts = [
        parse_json(store.read(key), f"{store.url}/{key}", dict)["progress"] for key in entries if "/starts/" in key
    ]
    last = starts[-(STARTS_WITHOUT_PROGRESS + 1) :]
    if len(last) > STARTS_WITHOUT_PROGRESS and all(progress == last[0] for progress in last):
        reason = str(failures[-1]["message"]).splitlines()[0] if failures else "a worker that was killed"
        return ServiceError(
            f"{STARTS_WITHOUT_PROGRESS} starts in a row reached no new checkpoint; the last ended with {reason}"
        )
    return None
