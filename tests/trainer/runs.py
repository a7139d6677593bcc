"""Small runs and what is left of them, for the tests of training."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pipeline.dataset.dataset import Dataset
from pipeline.store.url import open_store
from trainer.checkpoint.record import latest
from trainer.checkpoint.sharded import load
from trainer.jobs.config import PretrainConfig
from trainer.model.build import new_model
from trainer.recipes.pretrain import PretrainRecipe
from trainer.step.optimizer import MasterOptimizer
from trainer.step.ranks import alone
from trainer.step.tensors import TensorBatch

RECIPE = PretrainRecipe(
    loss="softmax", epochs=2.0, decay_epochs=(1.5,), batch_size=24, warmup_steps=2, resolution_px=32
)


def config(dataset: Dataset, out: Path | str, **fields: object) -> PretrainConfig:
    return PretrainConfig(
        data=dataset.store.url,
        data_version=1,
        out=str(out),
        model="R14x0.5",
        recipe=RECIPE,
        num_lanes=12,
        checkpoint_every_steps=3,
        log_every_steps=2,
        **fields,
    )


def final_state(out: Path | str, optimizer: Literal["sgd", "adam"] = "sgd") -> dict[str, Tensor]:
    """Return weights and moments of a run's newest checkpoint."""
    store = open_store(str(out))
    record = latest(store)
    model = new_model(record.about["model"], record.about["num_classes"], seed=9)
    state = MasterOptimizer(model, 0.9, 0.0, kind=optimizer).state()
    load(store, alone(), record, state)
    return {name: value.clone() for name, value in state.items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


class Stopped(Exception):  # noqa: N818
    """Stands for a process that ends between two steps."""


def batch_of(num_samples: int, num_classes: int = 3) -> TensorBatch:
    generator = torch.Generator().manual_seed(0)
    targets = torch.nn.functional.one_hot(torch.arange(num_samples) % num_classes, num_classes).double()
    return TensorBatch(torch.randn(num_samples, 3, 32, 32, generator=generator, dtype=torch.float64), targets)


def damage_a_picture(dataset: Dataset) -> None:
    """Change a byte in the middle of a picture of the first shard."""
    path = Path(dataset.store.url) / dataset.shard_path(0)
    body = bytearray(path.read_bytes())
    body[body.index(b"\xff\xd8\xff") + 700] ^= 0x55
    path.write_bytes(body)
