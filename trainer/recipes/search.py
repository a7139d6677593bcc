"""Random search instead of the HyperRule [paper appendix A]: ranges, draws, and what more trials bring."""

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple, Self

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from pipeline.base.records import Record
from pipeline.base.seeds import rng
from trainer.recipes.hyperrule import TransferRecipe

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]


class SearchSpace(Record):
    """The six ranges; what is left out is the paper's.

    Attributes:
        base_lr: Learning rate, log-uniform.
        steps: Optimizer steps, one of these.
        dropout: Share of the features before the head that is dropped, uniform.
        decay_to_start: Weight decay towards the initial weights (L2-SP), log-uniform.
        mixup_alpha: One of these; 0 for no MixUp.
        resolution_px: Side of the crop, and of the test picture, one of these.
    """

    base_lr: tuple[Positive, Positive] = (1e-4, 1e-1)
    steps: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (500, 1000, 2000, 4000, 8000, 16_000)
    dropout: tuple[Share, Share] = (0.0, 0.7)
    decay_to_start: tuple[Positive, Positive] = (1e-6, 1e-1)
    mixup_alpha: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)] = (0.0, 0.05, 0.1, 0.2, 0.4)
    resolution_px: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64, 128, 192, 256, 320, 384)

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        for name in ("base_lr", "dropout", "decay_to_start"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} goes from {low} down to {high}; write the lower one first")
        return self


class Trial(NamedTuple):
    """A draw; each field is one of those of SearchSpace."""

    base_lr: float
    steps: int
    dropout: float
    decay_to_start: float
    mixup_alpha: float
    resolution_px: int


def draw_trials(space: SearchSpace, count: int, seed: int, task: str) -> list[Trial]:
    """Return the trials of a task: the first ones stay the same when there are to be more.

    Args:
        space: Where they are drawn from.
        count: How many.
        seed: Key of the draws.
        task: Its name; tasks are drawn for independently.
    """
    return [_draw(space, rng(seed, "search", task, number)) for number in range(count)]


def _draw(space: SearchSpace, draws: np.random.Generator) -> Trial:
    def log_uniform(low: float, high: float) -> float:
        value = math.exp(draws.uniform(math.log(low), math.log(high)))
        return min(high, max(low, value))  # exp(log(x)) may be a bit beside x

    return Trial(
        base_lr=log_uniform(*space.base_lr),
        steps=space.steps[draws.integers(len(space.steps))],
        dropout=float(draws.uniform(*space.dropout)),
        decay_to_start=log_uniform(*space.decay_to_start),
        mixup_alpha=space.mixup_alpha[draws.integers(len(space.mixup_alpha))],
        resolution_px=space.resolution_px[draws.integers(len(space.resolution_px))],
    )


def trial_recipe(rule: TransferRecipe, trial: Trial) -> TransferRecipe:
    """Return the recipe of a trial: warm-up, milestones and the resize before the crop keep their shares of the rule's.

    The paper names neither; big_transfer's rule is the nearest there is.
    """
    return rule.model_copy(
        update={
            "base_lr": trial.base_lr,
            "steps": trial.steps,
            "warmup_steps": rule.warmup_steps * trial.steps // rule.steps,
            "milestones": tuple(milestone * trial.steps // rule.steps for milestone in rule.milestones),
            "mixup_alpha": trial.mixup_alpha or None,
            "crop_px": trial.resolution_px,
            "resize_px": max(trial.resolution_px, round(trial.resolution_px * rule.resize_px / rule.crop_px)),
        }
    )


def best_trial(validation: Sequence[float]) -> int:
    """Return the number of the trial with the highest validation accuracy, the earliest of several."""
    return max(range(len(validation)), key=lambda number: (validation[number], -number))


def saturation_curve(validation: Sequence[float], scores: Sequence[float]) -> list[float]:
    """Return the expected score of the chosen trial after 1, 2, ... trials in random order.

    The paper averages over 100 random orderings; this is the mean over all of them. Of n trials, that of rank r by
    validation accuracy (from 0) is the best of the first k in C(n-1-r, k-1) of C(n, k) cases.

    Args:
        validation: Accuracy that trials are chosen by; of equal ones the earlier is chosen.
        scores: What is looked at of the chosen one, such as its accuracy on the test set.
    """
    count = len(validation)
    ranked = sorted(range(count), key=lambda number: (-validation[number], number))
    return [
        sum(math.comb(count - 1 - rank, k - 1) * scores[number] for rank, number in enumerate(ranked))
        / math.comb(count, k)
        for k in range(1, count + 1)
    ]
