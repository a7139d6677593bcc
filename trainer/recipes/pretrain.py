"""The upstream recipes as plain data and one function of the step [paper 3.3; big_vision, configs/bit_i21k.py]."""

import math
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from pipeline.base.errors import ConfigError
from pipeline.base.records import Record

_PAPER_WARMUP_STEPS = 5000


class PretrainRecipe(Record):
    """How a model is pretrained: momentum SGD or Adam, linear warm-up, then division by ten at epochs or a cosine.

    Attributes:
        loss: softmax for single labels, sigmoid for several a picture.
        epochs: Passes over the data.
        schedule: steps divides the learning rate by ten at epochs, cosine lets it fall to 0 at the end.
        decay_epochs: Where steps divides it.
        batch_size: Global batch.
        lr_per_256: Learning rate for a batch of 256; scales linearly with the batch.
        warmup_steps: Linear from 0.
        optimizer: sgd is the paper's; with adam its remark that adaptive methods gave no gain can be tried.
        momentum: Of plain, not Nesterov, SGD; of Adam the first beta, beside a second one of 0.999.
        weight_decay: Coupled L2 on kernels only (conv and head), as big_vision scopes it.
        decoupled_decay: Whether each step takes learning rate x weight decay off the kernels instead.
        head_bias: Of a new head.
        resolution_px: Side of the training crop.
        flip: Mirror half of the pictures; False where the label depends on direction.
    """

    loss: Literal["softmax", "sigmoid"]
    epochs: Annotated[float, Field(gt=0, le=1e6)]
    schedule: Literal["steps", "cosine"] = "steps"
    decay_epochs: tuple[NonNegativeFloat, ...] = ()
    batch_size: Annotated[int, Field(gt=0, le=2**24)] = 4096
    lr_per_256: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.03
    warmup_steps: NonNegativeInt = _PAPER_WARMUP_STEPS
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-4
    decoupled_decay: bool = False
    head_bias: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    resolution_px: Annotated[int, Field(gt=0, le=2**13)] = 224
    flip: bool = True

    @property
    def num_moments(self) -> int:
        """Numbers that the optimizer keeps for each parameter."""
        return 2 if self.optimizer == "adam" else 1

    @property
    def base_lr(self) -> float:
        """Learning rate after the warm-up: 0.48 at batch 4096."""
        return self.lr_per_256 * self.batch_size / 256


def bit_s() -> PretrainRecipe:
    """BiT-S: ILSVRC-2012, 90 epochs. The loss is that of big_vision's config; the paper names none."""
    return PretrainRecipe(loss="softmax", epochs=90, decay_epochs=(30, 60, 80))


def bit_m() -> PretrainRecipe:
    """BiT-M: ImageNet-21k, 90 epochs, one sigmoid a class (big_transfer issue 26)."""
    return PretrainRecipe(loss="sigmoid", epochs=90, decay_epochs=(30, 60, 80))


def bit_l() -> PretrainRecipe:
    """BiT-L: JFT-300M, 40 epochs. Sigmoid is inferred from the labels, 1.26 a picture."""
    return PretrainRecipe(loss="sigmoid", epochs=40, decay_epochs=(10, 23, 30, 37))


def bv_i21k() -> PretrainRecipe:
    """big_vision's own way to train BiT on ImageNet-21k: cosine, decoupled decay, head bias -10.

    Its decay of 3e-5 x batch/256, times the schedule's shape, is the learning rate of 0.03 x batch/256 times 1e-3. It
    shortens gradients to norm 1.0 (RUN_SETTINGS) and keeps the momentum in bfloat16; here it stays in float32.
    """
    return PretrainRecipe(
        loss="sigmoid", epochs=90, schedule="cosine", weight_decay=1e-3, decoupled_decay=True, head_bias=-10.0
    )


RECIPES = {"bit-s": bit_s, "bit-m": bit_m, "bit-l": bit_l, "bv-i21k": bv_i21k}
# What a recipe asks for beside itself.
RUN_SETTINGS = {"bv-i21k": {"clip_norm": 1.0}}


def named_recipe(name: str) -> PretrainRecipe:
    """Return a recipe by name.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in RECIPES:
        raise ConfigError(f"recipe {name!r} is unknown; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()


def with_epochs(recipe: PretrainRecipe, epochs: float) -> PretrainRecipe:
    """Return the recipe with another number of epochs, its decays at the same shares of the run."""
    decay_epochs = tuple(epoch * epochs / recipe.epochs for epoch in recipe.decay_epochs)
    return recipe.model_copy(update={"epochs": epochs, "decay_epochs": decay_epochs})


def steps_at(epochs: float, num_samples: int, batch_size: int) -> int:
    """Return the optimizer step at which `epochs` passes are complete, to the nearest step."""
    return round(epochs * num_samples / batch_size)


def total_steps(recipe: PretrainRecipe, num_samples: int) -> int:
    """Return the number of optimizer steps of the whole run, at least one."""
    return max(1, steps_at(recipe.epochs, num_samples, recipe.batch_size))


def schedule_offset(step: int, epochs_done: float, num_samples: int, batch_size: int) -> int:
    """Return by how many steps the schedule is ahead of the steps done, for a run whose batch or data was changed.

    Args:
        step: Optimizer steps done when it was changed.
        epochs_done: Passes over the data by then.
        num_samples: Samples of an epoch from then on.
        batch_size: Global batch from then on.
    """
    return round(epochs_done * num_samples / batch_size) - step


def pretrain_learning_rate(recipe: PretrainRecipe, step: int, num_samples: int) -> float:
    """Return the learning rate of optimizer step `step`, counted from 0."""
    warmth = min(1.0, step / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    if recipe.schedule == "cosine":
        rest = max(1, total_steps(recipe, num_samples) - recipe.warmup_steps)
        done = min(1.0, max(0, step - recipe.warmup_steps) / rest)
        return recipe.base_lr * warmth * (1 + math.cos(math.pi * done)) / 2
    passed = sum(step >= steps_at(epoch, num_samples, recipe.batch_size) for epoch in recipe.decay_epochs)
    return recipe.base_lr * warmth * float(10.0**-passed)
