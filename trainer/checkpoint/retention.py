"""Which checkpoints are kept."""

from pipeline.store.base import Store
from trainer.checkpoint.record import FOLDER, committed


def discard_old(store: Store, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what starts that died left; a record goes before its files."""
    records = committed(store)
    for record in records[:-keep]:
        store.delete(f"{FOLDER}/{record.step:09d}.json")
    kept = {record.folder for record in records[-keep:]}
    for entry in list(store.list(f"{FOLDER}/")):
        folder = entry.key.rpartition("/")[0]
        if folder != FOLDER and folder not in kept:
            store.delete(entry.key)
