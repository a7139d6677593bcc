"""Weights in and out: a file of another code base becomes a run to fine-tune, and a run becomes such a file."""

import hashlib
import posixpath
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.base.errors import ConfigError, NotFound
from pipeline.base.records import json_bytes
from pipeline.dataset.schema import sha256_hex
from pipeline.store.any_url import read_file
from pipeline.store.base import Store, commit, exists
from pipeline.store.url import open_store
from trainer.checkpoint.record import CheckpointRecord, require_latest
from trainer.checkpoint.sharded import save
from trainer.checkpoint.weights import load_model
from trainer.formats.card import model_card
from trainer.formats.convert import Head, from_ours, infer_architecture, to_ours
from trainer.formats.files import Format, check_suffix, files_of, read_weights
from trainer.formats.layouts import LAYOUTS, layout_of
from trainer.model.architecture import parse_architecture
from trainer.model.build import new_model
from trainer.model.network import ResNetV2
from trainer.run.folder import read_metrics
from trainer.run.history import read_config
from trainer.step.optimizer import model_state
from trainer.step.ranks import World

_HERE = World(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Imported:
    """What was taken from a file.

    Attributes:
        model: Such as R50x1.
        layout: Of `trainer.formats.layouts`.
        num_classes: Of the head.
        head_is_kept: Whether the head is that of the file, or one of zeros.
    """

    model: str
    layout: str
    num_classes: int
    head_is_kept: bool


def import_weights(
    file: str,
    out: str,
    *,
    model: str | None = None,
    head: Head = "keep",
    num_classes: int | None = None,
    classes: tuple[str, ...] | None = None,
    resolution_px: int = 224,
) -> Imported:
    """Make a run at OUT of a file of weights.

    Args:
        file: URL of an .npz, .safetensors or PyTorch file.
        out: URL of the new run folder.
        model: What it must be; whatever it is by default.
        head: Whether the classifier is kept. One for another number of classes is replaced by zeros.
        num_classes: Of the head; that of `classes` or of the file by default.
        classes: Names by label, so that datasets with the same ones can be evaluated.
        resolution_px: To evaluate at.

    Raises:
        ConfigError: No known layout, or not whole; another model; OUT holds something else.
        NotFound: There is no file.
    """
    body = read_file(file)
    values = read_weights(body, file)
    weights = to_ours(values, file, head)
    architecture = infer_architecture(weights)
    if model not in (None, architecture.name):
        raise ConfigError(f"{file} holds {architecture.name}, not {model}")
    in_file = weights["head.fc.bias"].numel() if "head.fc.bias" in weights else None
    wanted = num_classes or (len(classes) if classes else in_file)
    if wanted is None:
        raise ConfigError("a new head needs its size: give --num-classes or --classes")
    if classes and len(classes) != wanted:
        raise ConfigError(f"{len(classes):,} class names for {wanted:,} classes; they must be as many")
    head_is_kept = wanted == in_file
    network = new_model(architecture.name, wanted, seed=0)
    state = model_state(network)
    with torch.no_grad():
        for name, value in weights.items():
            if head_is_kept or not name.startswith("head."):
                state[f"model/{name}"].copy_(value)
    layout = layout_of(frozenset(values))
    done = Imported(architecture.name, layout.name if layout else "", wanted, head_is_kept)
    origin = {
        "file": file,
        "layout": done.layout,
        "sha256": hashlib.sha256(body).hexdigest(),
        "head_is_kept": head_is_kept,
    }
    store = open_store(out)
    if not store.create("run.json", json_bytes({"imported": origin, "model": done.model})):
        raise ConfigError(f"{out} holds a run already; give another OUT")
    about = {
        "model": done.model,
        "num_classes": wanted,
        "classes_sha256": sha256_hex("\n".join(classes).encode()) if classes else None,
        "data": file,
        "data_version": None,
        "resolution_px": resolution_px,
    }
    save(store, _HERE, state, step=0, attempt="imported", stream={}, about=about)
    return done


def export_weights(run: str, out: str, file_format: Format) -> list[str]:
    """Write the newest checkpoint of a run as a file of another code base, with a model card beside it.

    Args:
        run: URL of a run folder, or of a fine-tuned model in one.
        out: URL of the file, or of a folder for `transformers`.
        file_format: What to write.

    Returns:
        The URLs written.

    Raises:
        ConfigError: The suffix is not one of the format, or the network is none that the format can hold.
        NotFound: The run has no checkpoint.
        Conflict: There is another file of that name.
    """
    folder, name = posixpath.split(out.rstrip("/"))
    check_suffix(name, file_format)
    source = open_store(run)
    record = require_latest(source)
    network = load_model(source, _HERE, record)
    if file_format == "onnx":
        files = _onnx_files(network, name, record.about["resolution_px"])
    else:
        if network.architecture.norm != "group" or not network.architecture.standardized:
            raise ConfigError(f"{record.about['model']} is no BiT network; only --format onnx can hold it")
        files = files_of(from_ours(network.state_dict(), LAYOUTS[file_format]), file_format, name, network.architecture)
    digests = {name: sha256_hex(body) for name, body in files.items()}
    card = model_card(_facts(source, record), file_format, digests)
    files[f"{name}/README.md" if file_format == "transformers" else f"{name}.md"] = card.encode()
    store = open_store(folder or ".")
    for key, body in files.items():
        commit(store, key, body)
    return [f"{store.url}/{key}" for key in files]


def _onnx_files(network: ResNetV2, name: str, resolution_px: int) -> dict[str, bytes]:
    from trainer.formats.onnx_file import write_onnx  # noqa: PLC0415 - its libraries are an extra

    with tempfile.TemporaryDirectory(prefix="onnx-") as folder:
        write_onnx(network, Path(folder) / name, resolution_px)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def _facts(store: Store, record: CheckpointRecord) -> dict[str, Any]:
    """Return what is known of a run, for its card."""
    facts = dict(record.about) | {"step": record.step, "run": store.url, "config": {}, "metrics": None}
    facts["architecture"] = parse_architecture(record.about["model"])
    if exists(store, "run.json"):
        facts["config"] = read_config(store)
    try:
        rows = read_metrics(store)
    except NotFound:
        rows = []
    facts["metrics"] = rows[-1] if rows else None
    return facts
