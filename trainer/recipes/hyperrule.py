"""The BiT-HyperRule: from the size of a task to everything that fine-tuning needs [paper 3.3; released code]."""

from typing import Literal

from pipeline.base.errors import ConfigError
from pipeline.base.records import Record

Variant = Literal["paper", "code"]

_SMALL_BELOW = 20_000  # training pictures
_MEDIUM_BELOW = 500_000
_LOW_RESOLUTION_BELOW = 96 * 96  # pixels; exactly 96x96 is high


class TransferRecipe(Record):
    """How a model is fine-tuned: momentum SGD, no weight decay, no dropout, a zero head, softmax loss.

    Attributes:
        steps: Optimizer steps.
        warmup_steps: Linear from 0 [released code; the paper names none].
        milestones: Steps after which the learning rate is divided by ten.
        base_lr: Learning rate after the warm-up.
        batch_size: Global batch.
        momentum: Of SGD.
        mixup_alpha: Both parameters of MixUp's Beta distribution; None for none.
        resize_px: Side of the square the picture is resized to.
        crop_px: Side of the random crop, and of the square at test time.
    """

    steps: int
    warmup_steps: int
    milestones: tuple[int, ...]
    base_lr: float = 0.003
    batch_size: int = 512
    momentum: float = 0.9
    mixup_alpha: float | None
    resize_px: int
    crop_px: int


def hyperrule(
    num_train: int, height_px: int, width_px: int, *, model: str = "R50x1", variant: Variant = "paper"
) -> TransferRecipe:
    """Return the recipe for a task.

    Args:
        num_train: Training pictures; for few-shot, shots times classes.
        height_px: Nominal height of the task's pictures.
        width_px: Nominal width.
        model: Only R152x4 differs, in the paper's resolution.
        variant: `paper`, or `code` for the schedule and resolution of the released code.
    """
    resize_px, crop_px = _resolution(height_px * width_px, model, variant)
    if num_train < _SMALL_BELOW:
        return TransferRecipe(
            steps=500,
            warmup_steps=100,
            milestones=(150, 300, 450) if variant == "paper" else (200, 300, 400),
            mixup_alpha=None,
            resize_px=resize_px,
            crop_px=crop_px,
        )
    steps = 10_000 if num_train < _MEDIUM_BELOW else 20_000
    milestones = tuple(steps * tenths // 10 for tenths in (3, 6, 9))
    return TransferRecipe(
        steps=steps,
        warmup_steps=500,
        milestones=milestones,
        mixup_alpha=0.1,
        resize_px=resize_px,
        crop_px=crop_px,
    )


def _resolution(area_px: int, model: str, variant: Variant) -> tuple[int, int]:
    if area_px < _LOW_RESOLUTION_BELOW:
        return 160, 128
    if variant == "code" or model == "R152x4":
        return 512, 480
    return 448, 384


def finetune_learning_rate(recipe: TransferRecipe, step: int) -> float | None:
    """Return the learning rate of step `step`, counted from 0; None from the end on.

    As in the released code, a milestone takes effect on the step after it.
    """
    if step >= recipe.steps:
        return None
    if step < recipe.warmup_steps:
        return recipe.base_lr * step / recipe.warmup_steps
    passed = sum(step > milestone for milestone in recipe.milestones)
    return recipe.base_lr / float(10**passed)


def rescaled(recipe: TransferRecipe, batch_size: int | None, steps: int | None) -> TransferRecipe:
    """Return a recipe with another batch or another number of steps.

    A batch of B takes the learning rate times B/512 and the steps times 512/B, warm-up and milestones with them, so
    that as many pictures are seen [colab of big_transfer]. Given steps follow the same schedule at another length; the
    learning rate does not change with them.

    Args:
        recipe: As `hyperrule` returns it.
        batch_size: Global batch; None for the rule's.
        steps: Optimizer steps; None for those that follow from the batch.
    """
    batch_size = batch_size or recipe.batch_size
    base_lr = recipe.base_lr * batch_size / recipe.batch_size
    steps = steps or max(1, round(recipe.steps * recipe.batch_size / batch_size))
    return recipe.model_copy(update={"batch_size": batch_size, "base_lr": base_lr, **_at_length(recipe, steps)})


def _at_length(recipe: TransferRecipe, steps: int) -> dict[str, int | tuple[int, ...]]:
    """Return steps, warm-up and milestones of a schedule at another length: they keep their share."""
    return {
        "steps": steps,
        "warmup_steps": recipe.warmup_steps * steps // recipe.steps,
        "milestones": tuple(milestone * steps // recipe.steps for milestone in recipe.milestones),
    }


def shortened(
    recipe: TransferRecipe, steps: int, batch_size: int, resize_px: int, crop_px: int, base_lr: float | None = None
) -> TransferRecipe:
    """Return the same schedule in fewer steps, for demonstrations on a CPU; warm-up and milestones keep their share.

    Without a learning rate that of the rule stays: its schedule is followed at another length, not the rule itself.

    Raises:
        ConfigError: A value is not positive, or the crop exceeds the picture.
    """
    if min(steps, batch_size, resize_px, crop_px) < 1 or crop_px > resize_px:
        raise ConfigError(f"steps {steps}, batch {batch_size}, resize {resize_px} and crop {crop_px} do not fit")
    return recipe.model_copy(
        update={
            **_at_length(recipe, steps),
            "batch_size": batch_size,
            "resize_px": resize_px,
            "crop_px": crop_px,
            "base_lr": base_lr or recipe.base_lr,
        }
    )
