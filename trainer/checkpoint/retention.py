"""Which checkpoints are kept."""

import json

from pipeline.store.base import Store
from trainer.checkpoint.fallback import DAMAGED
from trainer.checkpoint.record import FOLDER, read_record, record_key, steps


def discard_old(store: Store, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and files that no record names; a record goes before its files.

    Only what is older than the newest checkpoint goes, since another start may be about to commit a later one.
    """
    found = steps(store)
    if not found:
        return
    for step in found[:-keep]:
        store.delete(record_key(step))
    kept = {read_record(store, step).folder for step in found[-keep:]} | _damaged_folders(store)
    for entry in list(store.list(f"{FOLDER}/")):
        folder = entry.key.rpartition("/")[0]
        of_step = folder.removeprefix(f"{FOLDER}/").partition("-")[0]
        if folder not in kept and of_step.isdigit() and int(of_step) < found[-1]:
            store.delete(entry.key)


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
