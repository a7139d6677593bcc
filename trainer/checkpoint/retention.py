"""Which checkpoints are kept."""

import json
from collections.abc import Collection, Sequence

from pipeline.base.errors import CorruptShard
from pipeline.base.records import Record
from pipeline.store.base import Store
from trainer.checkpoint.fallback import DAMAGED
from trainer.checkpoint.record import FOLDER, read_record, record_key, steps


class Retention(Record):
    """Which checkpoints are kept, besides those that are asked for by name.

    Attributes:
        newest: How many of the newest, at least 1.
        every_steps: Those at multiples of this; None for none.
    """

    newest: int
    every_steps: int | None = None


def kept_steps(found: Sequence[int], retention: Retention, best: Collection[int] = ()) -> list[int]:
    """Return the steps whose checkpoints stay, in order.

    Args:
        found: Steps of all checkpoints, ascending.
        retention: The rule.
        best: Steps that stay in any case.
    """
    newest = found[-retention.newest :]
    every = retention.every_steps
    return [step for step in found if step in newest or step in best or (every is not None and step % every == 0)]


def discard_old(store: Store, retention: Retention, best: Collection[int] = ()) -> None:
    """Remove checkpoints that are not to be kept, and files that no record names; a record goes before its files.

    Only what is older than the newest checkpoint goes, since another start may be about to commit a later one.
    """
    found = steps(store)
    if not found:
        return
    kept = kept_steps(found, retention, best)
    for step in set(found) - set(kept):
        store.delete(record_key(step))
    folders = {folder for step in kept for folder in _folders_of(store, step)} | _damaged_folders(store)
    for entry in list(store.list(f"{FOLDER}/")):
        folder = entry.key.rpartition("/")[0]
        of_step = folder.removeprefix(f"{FOLDER}/").partition("-")[0]
        if folder not in folders and of_step.isdigit() and int(of_step) < found[-1]:
            store.delete(entry.key)


def _folders_of(store: Store, step: int) -> list[str]:
    """Return the folder of a checkpoint; those of all attempts at its step where the record is damaged."""
    try:
        return [read_record(store, step).folder]
    except CorruptShard:
        return list({entry.key.rpartition("/")[0] for entry in store.list(f"{FOLDER}/{step:09d}-")})


def _damaged_folders(store: Store) -> set[str]:
    """Return the folders of damaged checkpoints whose records can be read: a person may want to look at them."""
    folders = set()
    for entry in store.list(f"{DAMAGED}/"):
        record = json.loads(store.read(entry.key))["record"]
        try:
            folders.add(str(json.loads(record)["folder"]))
        except (ValueError, KeyError):  # the record is what is damaged
            continue
    return folders
