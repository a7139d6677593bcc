"""Runs to export, and what is in the files that come of them."""

from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from pipeline.dataset.schema import sha256_hex
from pipeline.store.url import open_store
from tests.trainer.model.test_golden import golden_model
from trainer.checkpoint.record import require_latest
from trainer.checkpoint.sharded import save
from trainer.checkpoint.weights import load_model
from trainer.model.build import new_model
from trainer.step.optimizer import model_state
from trainer.step.ranks import alone

ABOUT = {"model": "R14x0.5", "num_classes": 10, "data": "s3://b/d", "data_version": 3, "resolution_px": 64}
CLASSES = ("tench", "dög", *map(str, range(8)))


def save_run(url: str, classes: tuple[str, ...], **about: object) -> None:
    """Save a checkpoint of weights that are all different."""
    digest = sha256_hex("\n".join(classes).encode()) if classes else None
    state = model_state(golden_model("R14x0.5").float())
    if about.get("num_classes"):
        state = model_state(new_model("R14x0.5", len(classes), seed=0))
    whole = ABOUT | {"classes_sha256": digest} | about
    save(open_store(url), alone(), state, step=7, attempt="a", stream={}, about=whole)


def weights_of(url: str) -> dict[str, Tensor]:
    store = open_store(url)
    return load_model(store, alone(), require_latest(store)).state_dict()


def content(path: Path) -> dict[str, np.ndarray]:
    if path.is_dir():
        path /= "model.safetensors"
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {key: file[key] for key in file.files}
    if path.suffix == ".safetensors":
        return {key: value.numpy() for key, value in safetensors.torch.load_file(path).items()}
    return {key: value.numpy() for key, value in torch.load(path, weights_only=True)["model"].items()}
