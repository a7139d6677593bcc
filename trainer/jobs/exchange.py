"""Weights in and out: a file of another code base becomes a run to fine-tune, and a run becomes such a file."""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.base.errors import BitError, ConfigError, Conflict
from pipeline.base.records import json_bytes
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.schema import sha256_hex
from pipeline.packing.foreign_tars.open_any import open_any
from pipeline.store.base import Store, commit, exists
from pipeline.store.url import open_store
from trainer.checkpoint.record import CheckpointRecord, latest
from trainer.checkpoint.sharded import save
from trainer.checkpoint.weights import load_chosen_model
from trainer.formats.card import Facts, held_out_figures, model_card
from trainer.formats.convert import Head, infer_architecture, to_ours
from trainer.formats.description import Description
from trainer.formats.layouts import layout_of
from trainer.formats.source import Source, open_weights
from trainer.formats.write import Format, check_name, export_files, is_folder
from trainer.model.architecture import parse_architecture
from trainer.model.build import new_model
from trainer.run.classes import classes_of, stored_classes, write_classes
from trainer.run.history import config_of_model, read_changes
from trainer.step.optimizer import model_state
from trainer.step.ranks import World

_HERE = World(0, 1, torch.device("cpu"))
_DEFAULT_PX = 224  # [paper 3.3]


@dataclass(frozen=True)
class Imported:
    """What was taken from a file.

    Attributes:
        model: Such as R50x1.
        layout: Of `trainer.formats.layouts`.
        num_classes: Of the head.
        head_is_kept: Whether the head is that of the file, or one of zeros.
        classes: Names by label; None where they are not known.
        resolution_px: To evaluate at.
        described_by: URL of what stands beside the file of its classes and images; None where nothing does.
    """

    model: str
    layout: str
    num_classes: int
    head_is_kept: bool
    classes: tuple[str, ...] | None
    resolution_px: int
    described_by: str | None


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        urls: Of the files.
        step: Of the checkpoint.
        warnings: What the files lack, a sentence each.
    """

    urls: list[str]
    step: int
    warnings: list[str] = field(default_factory=list)


def import_weights(
    file: str,
    out: str,
    *,
    model: str | None = None,
    head: Head | None = None,
    num_classes: int | None = None,
    classes: tuple[str, ...] | None = None,
    resolution_px: int | None = None,
) -> Imported:
    """Make a run at OUT of a file of weights.

    Args:
        file: URL of an .npz, .safetensors or PyTorch file, or of a folder of timm or transformers.
        out: URL of the new run folder.
        model: What it must be; whatever it is by default.
        head: Whether the classifier must be kept, or is left out; by default it is kept if it fits the classes.
        num_classes: Of the head; that of `classes` or of the file by default.
        classes: Names by label; those beside the file by default.
        resolution_px: To evaluate at; that beside the file, or 224, by default.

    Raises:
        ConfigError: No known layout, or not whole; another model or number of classes; OUT holds something else.
        NotFound: There is no file.
    """
    source = open_weights(file)
    weights = to_ours(source.values, file, head or "keep")
    architecture = infer_architecture(weights)
    if model not in (None, architecture.name):
        raise ConfigError(f"{file} holds {architecture.name}, not {model}")
    in_file = len(weights["head.fc.bias"]) if "head.fc.bias" in weights else None
    wanted = _num_classes(file, head, in_file, num_classes, classes)
    head_is_kept = wanted == in_file
    beside = source.description.classes
    if classes is None and head_is_kept and beside is not None:
        if len(beside) != wanted:
            raise ConfigError(
                f"{source.described_by} names {len(beside):,} classes, and the head of {file} has {wanted:,}; give the "
                f"names with --classes, or correct it"
            )
        classes = beside
    side = resolution_px or source.description.resolution_px or _DEFAULT_PX
    layout = layout_of(frozenset(source.values))
    done = Imported(
        architecture.name, layout.name if layout else "", wanted, head_is_kept, classes, side, source.described_by
    )
    network = new_model(architecture.name, wanted, seed=0)
    state = model_state(network)
    with torch.no_grad():
        for name, value in weights.items():
            if head_is_kept or not name.startswith("head."):
                state[f"model/{name}"].copy_(value)
    _save_imported(open_store(out), file, source, done, state)
    return done


def _num_classes(
    file: str, head: Head | None, in_file: int | None, num_classes: int | None, classes: Sequence[str] | None
) -> int:
    """Return the number of classes of an imported run, from what was asked for and what the file has."""
    if classes is not None and num_classes not in (None, len(classes)):
        raise ConfigError(f"--classes names {len(classes):,} classes, and --num-classes is {num_classes:,}; give one")
    asked = len(classes) if classes is not None else num_classes
    if head == "keep" and in_file is None:
        raise ConfigError(f"{file} has no classifier to keep; leave --head keep out, and give --num-classes")
    if head == "keep" and asked not in (None, in_file):
        raise ConfigError(
            f"the classifier of {file} has {in_file:,} classes, not {asked:,}, so it cannot be kept; without --head "
            f"keep a new one of zeros takes its place"
        )
    if asked is None and in_file is None:
        why = "--head drop leaves the classifier out" if head == "drop" else f"{file} has no classifier"
        raise ConfigError(
            f"{why}, so the run gets a new one of zeros: give its size with --num-classes, or its classes with "
            f"--classes; `trainer finetune` makes its own, so for that any number will do, such as --num-classes 1"
        )
    return asked if asked is not None else in_file or 0


def _save_imported(store: Store, file: str, source: Source, done: Imported, state: dict[str, torch.Tensor]) -> None:
    """Write the run; one that was cut short on its way is finished."""
    origin = {"file": file, "layout": done.layout, "sha256": source.sha256, "head_is_kept": done.head_is_kept}
    run = json_bytes({"imported": origin, "model": done.model})
    if latest(store) or not _committed(store, "run.json", run):
        raise ConfigError(f"{store.url} holds a run already; give another OUT")
    if done.classes:
        write_classes(store, done.classes)
    about = {
        "model": done.model,
        "num_classes": done.num_classes,
        "classes_sha256": sha256_hex("\n".join(done.classes).encode()) if done.classes else None,
        "data": file,
        "data_version": None,
        "resolution_px": done.resolution_px,
    }
    save(store, _HERE, state, step=0, attempt="imported", stream={}, about=about)


def _committed(store: Store, key: str, body: bytes) -> bool:
    """Return whether an object is there with these bytes, written if there was none."""
    try:
        commit(store, key, body)
    except Conflict:
        return False
    return True


def export_weights(
    run: str,
    out: str,
    file_format: Format,
    *,
    step: int | None = None,
    resolution_px: int | None = None,
    any_size: bool = False,
) -> Exported:
    """Write a checkpoint of a run as files of another code base, with a model card beside them.

    Args:
        run: URL of a run folder, or of a fine-tuned model in one.
        out: URL of the file, or of a folder for `transformers` and, without a suffix, `timm`.
        file_format: What to write.
        step: Of the checkpoint; the newest sound one by default.
        resolution_px: Side of the images that the files name; that of the run by default.
        any_size: Whether an ONNX file takes images of any height and width.

    Raises:
        ConfigError: The suffix is not one of the format, or the network is none that the format can hold.
        NotFound: The run has no such checkpoint.
        Conflict: There is another file of that name; nothing is written.
    """
    folder, name = posixpath.split(out.rstrip("/"))
    check_name(name, file_format)
    if any_size and file_format != "onnx":
        raise ConfigError("--resolution any is for --format onnx; the other formats name a resolution and take any")
    source = open_store(run)
    network, record = load_chosen_model(source, _HERE, step)
    config = config_of_model(source)
    classes, warnings = _class_names(source, record, config)
    description = Description(classes, resolution_px or record.about["resolution_px"])
    files = export_files(network, file_format, name, description, any_size=any_size)
    digests = {name: sha256_hex(body) for name, body in files.items() if not name.endswith(".json")}
    card = model_card(_facts(source, record, config, description), file_format, digests)
    files[f"{name}/README.md" if is_folder(name, file_format) else f"{name}.md"] = card.encode()
    store = open_store(folder or ".")
    taken = [key for key, body in files.items() if exists(store, key) and store.read(key) != body]
    if taken:
        raise Conflict(f"{store.url} has another {', '.join(taken)}; give another OUT, or remove what is there")
    for key, body in files.items():
        commit(store, key, body)
    return Exported([f"{store.url}/{key}" for key in files], record.step, warnings)


def _class_names(
    run: Store, record: CheckpointRecord, config: Mapping[str, Any]
) -> tuple[tuple[str, ...] | None, list[str]]:
    """Return the names of a model's classes, if they are known, and else a warning that they are not."""
    try:
        trained_on = None if stored_classes(run) or "train" not in config else _training_set(config)
        classes = classes_of(run, record, trained_on)
        if sha256_hex("\n".join(classes).encode()) != record.about["classes_sha256"]:
            raise ConfigError(f"{run.url} names other classes than those of its checkpoint of step {record.step:,}")
    except BitError as error:
        return None, [f"classes are numbered, since their names are not known: {error}"]
    return classes, []


def _training_set(config: Mapping[str, Any]) -> Dataset:
    """Open what a sweep was trained on, of a release that kept no names beside its models."""
    return open_any(config["train"], config["train_version"])


def _facts(run: Store, record: CheckpointRecord, config: Mapping[str, Any], description: Description) -> Facts:
    """Return what is known of a checkpoint, for its card."""
    about, result = record.about, record.about.get("result") or {}
    is_held_out = "test" in config and _named(config, "test") != _named(config, "train")
    recipe = result.get("recipe") or config.get("recipe")
    return Facts(
        run=run.url,
        step=record.step,
        architecture=parse_architecture(about["model"]),
        num_classes=about["num_classes"],
        description=description,
        data=list(_data(about, config)),
        recipe=recipe if isinstance(recipe, Mapping) else {},
        changes=list(_changes(run, record.step)),
        measured=held_out_figures(result, _named(config, "test")) if result and is_held_out else {},
        imported=config.get("imported"),
    )


def _data(about: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    if about.get("data"):
        yield f"`{about['data']}`" + ("" if about["data_version"] is None else f", version {about['data_version']}")
    elif "train" in config:
        yield _named(config, "train")
        yield f"starting from `{config['init']}`"
    for mixed in config.get("mix") or ():
        yield f"{_named(mixed, 'data')}, weight {mixed['weight']:g}"


def _named(config: Mapping[str, Any], name: str) -> str:
    return f"`{config[name]}`, version {config[f'{name}_version']}"


def _changes(run: Store, step: int) -> Iterator[str]:
    for change in read_changes(run):
        if change.step <= step:
            values = (f"{name} from {change.before.get(name)} to {value}" for name, value in change.after.items())
            yield f"changed after step {change.step:,}: {', '.join(values)}"
