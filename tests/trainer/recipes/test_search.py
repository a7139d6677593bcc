"""Random search: draws stay in their ranges, and the curve is the mean over all orders of the trials."""

from itertools import pairwise, permutations
from statistics import fmean

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from trainer.recipes.hyperrule import finetune_learning_rate, hyperrule
from trainer.recipes.search import SearchSpace, Trial, best_trial, draw_trials, saturation_curve, trial_recipe

PAPER = SearchSpace()


@given(st.integers(0, 2**40), st.integers(1, 30), st.text(max_size=8))
def test_draws_stay_in_the_ranges_and_do_not_change_when_more_are_wanted(seed: int, count: int, task: str) -> None:
    trials = draw_trials(PAPER, count, seed, task)
    for trial in trials:
        assert 1e-4 <= trial.base_lr <= 1e-1
        assert trial.steps in (500, 1000, 2000, 4000, 8000, 16_000)
        assert 0.0 <= trial.dropout <= 0.7
        assert 1e-6 <= trial.decay_to_start <= 1e-1
        assert trial.mixup_alpha in (0.0, 0.05, 0.1, 0.2, 0.4)
        assert trial.resolution_px in (64, 128, 192, 256, 320, 384)
    assert draw_trials(PAPER, count + 1, seed, task)[:count] == trials
    assert draw_trials(PAPER, count, seed, task) == trials


def test_draws_are_spread_over_the_ranges_and_differ_between_tasks() -> None:
    trials = draw_trials(PAPER, 600, 0, "pets")
    assert {trial.resolution_px for trial in trials} == set(PAPER.resolution_px)
    assert {trial.mixup_alpha for trial in trials} == set(PAPER.mixup_alpha)
    for low, high in ((1e-4, 1e-3), (1e-3, 1e-2), (1e-2, 1e-1)):  # log-uniform: as many in each decade
        assert 150 < sum(low <= trial.base_lr < high for trial in trials) < 250
    assert not set(trials) & set(draw_trials(PAPER, 600, 0, "dtd"))


def test_a_range_that_descends_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"base_lr goes from 0\.1 down to 0\.01"):
        SearchSpace(base_lr=(0.1, 0.01))


@given(st.integers(0, 10_000))
def test_a_trial_keeps_the_shape_of_the_rule(number: int) -> None:
    rule = hyperrule(1000, 300, 400)
    trial = draw_trials(PAPER, 1, number, "pets")[0]
    recipe = trial_recipe(rule, trial)
    assert (recipe.steps, recipe.base_lr, recipe.mixup_alpha or 0.0) == (trial.steps, trial.base_lr, trial.mixup_alpha)
    assert recipe.crop_px == trial.resolution_px <= recipe.resize_px
    assert recipe.milestones == tuple(trial.steps * tenths // 10 for tenths in (3, 6, 9))
    assert finetune_learning_rate(recipe, trial.steps // 4) == trial.base_lr
    assert trial_recipe(rule, Trial(rule.base_lr, rule.steps, 0.0, 0.0, 0.0, rule.crop_px)) == rule


accuracies = st.integers(0, 4).map(lambda value: value / 4)


@given(st.lists(st.tuples(accuracies, accuracies), min_size=1, max_size=5))
def test_the_curve_is_the_mean_over_all_orders(pairs: list[tuple[float, float]]) -> None:
    validation, scores = zip(*pairs, strict=True)
    orders = list(permutations(range(len(pairs))))
    for k, expected in enumerate(saturation_curve(validation, scores), 1):
        chosen = [max(order[:k], key=lambda number: (validation[number], -number)) for order in orders]
        assert expected == pytest.approx(fmean(scores[number] for number in chosen))
    assert saturation_curve(validation, scores)[-1] == scores[best_trial(validation)]
    rising = saturation_curve(validation, validation)
    assert all(one <= other + 1e-12 for one, other in pairwise(rising))
