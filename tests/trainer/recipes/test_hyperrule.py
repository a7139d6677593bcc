"""The HyperRule's golden values, for the paper and for the released code."""

import pytest

from pipeline.base.errors import ConfigError
from trainer.recipes.hyperrule import Variant, finetune_learning_rate, hyperrule, rescaled, shortened


@pytest.mark.parametrize(
    ("num_train", "steps", "paper", "code", "warmup", "mixup"),
    [
        (10, 500, (150, 300, 450), (200, 300, 400), 100, None),
        (19_999, 500, (150, 300, 450), (200, 300, 400), 100, None),
        (20_000, 10_000, (3_000, 6_000, 9_000), (3_000, 6_000, 9_000), 500, 0.1),
        (499_999, 10_000, (3_000, 6_000, 9_000), (3_000, 6_000, 9_000), 500, 0.1),
        (500_000, 20_000, (6_000, 12_000, 18_000), (6_000, 12_000, 18_000), 500, 0.1),
    ],
)
def test_schedule_by_size(num_train, steps, paper, code, warmup, mixup) -> None:
    for variant, milestones in (("paper", paper), ("code", code)):
        recipe = hyperrule(num_train, 224, 224, variant=variant)
        assert (recipe.steps, recipe.milestones, recipe.warmup_steps, recipe.mixup_alpha) == (
            steps,
            milestones,
            warmup,
            mixup,
        )
        assert (recipe.base_lr, recipe.batch_size, recipe.momentum) == (0.003, 512, 0.9)


@pytest.mark.parametrize(
    ("side", "model", "variant", "resolution"),
    [
        (32, "R50x1", "paper", (160, 128)),
        (95, "R50x1", "code", (160, 128)),
        (96, "R50x1", "paper", (448, 384)),
        (224, "R101x3", "paper", (448, 384)),
        (224, "R152x4", "paper", (512, 480)),
        (224, "R50x1", "code", (512, 480)),
        (32, "R152x4", "paper", (160, 128)),
    ],
)
def test_resolution_by_area_model_and_variant(side, model, variant, resolution) -> None:
    recipe = hyperrule(1000, side, side, model=model, variant=variant)
    assert (recipe.resize_px, recipe.crop_px) == resolution


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.0), (50, 0.0015), (100, 0.003), (200, 0.003), (201, 3e-4), (300, 3e-4), (301, 3e-5), (400, 3e-5),
     (401, 3e-6), (499, 3e-6), (500, None)],
)  # fmt: skip
def test_golden_rates_of_the_small_regime_in_the_code_variant(step: int, rate: float | None) -> None:
    found = finetune_learning_rate(hyperrule(1000, 32, 32, variant="code"), step)
    assert found == (None if rate is None else pytest.approx(rate))


# Last step of each learning rate, in turn 3e-3, 3e-4, 3e-5 and 3e-6; before them a linear warm-up from 0.
_LAST_STEPS = {
    (1000, "code"): (100, (200, 300, 400, 499)),
    (1000, "paper"): (100, (150, 300, 450, 499)),
    (20_000, "code"): (500, (3_000, 6_000, 9_000, 9_999)),
    (20_000, "paper"): (500, (3_000, 6_000, 9_000, 9_999)),
    (500_000, "code"): (500, (6_000, 12_000, 18_000, 19_999)),
    (500_000, "paper"): (500, (6_000, 12_000, 18_000, 19_999)),
}


@pytest.mark.parametrize(("num_train", "variant"), _LAST_STEPS)
def test_golden_rates_of_every_step_of_every_schedule(num_train: int, variant: Variant) -> None:
    num_warmup, last_steps = _LAST_STEPS[num_train, variant]
    due = [0.003 / num_warmup * step for step in range(num_warmup)]
    for last, rate in zip(last_steps, (3e-3, 3e-4, 3e-5, 3e-6), strict=True):
        due += [rate] * (last + 1 - len(due))
    recipe = hyperrule(num_train, 224, 224, variant=variant)
    assert [finetune_learning_rate(recipe, step) for step in range(len(due))] == pytest.approx(due)
    assert finetune_learning_rate(recipe, len(due)) is None


def test_another_batch_changes_rate_and_steps_so_that_as_many_pictures_are_seen() -> None:
    recipe = hyperrule(1000, 32, 32)
    small = rescaled(recipe, 128, None)
    assert (small.batch_size, small.steps, small.warmup_steps, small.milestones) == (128, 2000, 400, (600, 1200, 1800))
    assert small.base_lr == pytest.approx(0.003 / 4)
    assert small.steps * small.batch_size == recipe.steps * recipe.batch_size
    assert rescaled(recipe, None, None) == recipe


def test_another_number_of_steps_keeps_rate_and_shape() -> None:
    long = rescaled(hyperrule(1000, 32, 32), None, 5000)
    assert (long.steps, long.warmup_steps, long.milestones) == (5000, 1000, (1500, 3000, 4500))
    assert (long.base_lr, long.batch_size) == (0.003, 512)
    both = rescaled(hyperrule(1000, 32, 32), 1024, 100)
    assert (both.steps, both.milestones, both.base_lr) == (100, (30, 60, 90), 0.006)


def test_a_shortened_schedule_keeps_its_shape() -> None:
    recipe = shortened(hyperrule(1000, 32, 32, variant="code"), 50, 64, 40, 32)
    assert (recipe.steps, recipe.warmup_steps, recipe.milestones) == (50, 10, (20, 30, 40))
    assert (recipe.batch_size, recipe.resize_px, recipe.crop_px, recipe.base_lr) == (64, 40, 32, 0.003)
    assert shortened(recipe, 50, 64, 40, 32, base_lr=0.1) == recipe.model_copy(update={"base_lr": 0.1})
    with pytest.raises(ConfigError, match="do not fit"):
        shortened(recipe, 50, 64, 32, 40)
