"""The class names of a run's model, kept beside its configuration."""

from collections.abc import Sequence

from pipeline.base.errors import BitError, ConfigError, NotFound
from pipeline.base.parsing import parse_json
from pipeline.base.records import json_bytes
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.schema import sha256_hex
from pipeline.packing.foreign_tars.open_any import open_any
from pipeline.store.base import Store
from trainer.checkpoint.record import CheckpointRecord
from trainer.run.history import has_learned

_KEY = "classes.json"


def write_classes(store: Store, classes: Sequence[str]) -> None:
    """Keep the names, by label, in a run folder; those of a start that learned nothing are replaced."""
    if stored_classes(store) not in (None, tuple(classes)) and not has_learned(store):
        store.delete(_KEY)
    store.create(_KEY, json_bytes(list(classes)))


def stored_classes(store: Store) -> tuple[str, ...] | None:
    """Return the names that a run folder keeps; None where it is of a release that kept none."""
    try:
        body = store.read(_KEY)
    except NotFound:
        return None
    return tuple(map(str, parse_json(body, f"{store.url}/{_KEY}", list)))


def classes_of(store: Store, record: CheckpointRecord, dataset: Dataset | None = None) -> tuple[str, ...]:
    """Return the class names of a checkpoint's model: from its folder, or from a dataset of the same classes.

    Args:
        store: The run's store.
        record: The checkpoint.
        dataset: One that may have the same classes; that of the training is looked for, too.

    Raises:
        ConfigError: They are not known.
    """
    classes = stored_classes(store)
    if classes is not None:
        return classes
    digest, data = record.about["classes_sha256"], record.about.get("data")
    if digest is None:
        raise ConfigError(f"{store.url} was imported without class names; import it again with --classes")
    if dataset and dataset.classes_sha256 == digest:
        return dataset.classes
    try:
        trained_on = open_any(data, record.about.get("data_version")) if data else None
    except BitError as error:
        raise ConfigError(
            f"{store.url} keeps no class names, and the dataset of its training cannot be opened ({error}); bring it "
            f"back, or write the names as a JSON list to {store.url}/{_KEY}"
        ) from error
    if trained_on is None or sha256_hex("\n".join(trained_on.classes).encode()) != digest:
        raise ConfigError(
            f"{store.url} keeps no class names, and the dataset has others; write them as a JSON list to "
            f"{store.url}/{_KEY}"
        )
    return trained_on.classes
