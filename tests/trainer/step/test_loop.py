"""The one loop: when hooks run, what they see, and how training ends."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from pipeline.base.errors import NonFinite
from pipeline.streaming.stream import Batch
from trainer.model.build import new_model
from trainer.step.loop import Hook, Learner, every, train
from trainer.step.losses import softmax_loss
from trainer.step.optimizer import MasterOptimizer
from trainer.step.ranks import alone
from trainer.step.step import StepResult

PX, CLASSES, SAMPLES = 32, 3, 4


def batches() -> Iterator[Batch]:
    """Yield batches whose places count the steps."""
    generator = np.random.default_rng(0)
    step = 0
    while True:
        images = generator.integers(0, 256, (SAMPLES, PX, PX, 3), dtype=np.uint8)
        places = np.array([[0, 0, step, row] for row in range(SAMPLES)], np.int64)
        yield Batch(images, tuple((row % CLASSES,) for row in range(SAMPLES)), places)
        step += 1


def learner(learning_rate: float = 0.01) -> Learner:
    model = new_model("R14x0.5", CLASSES, seed=0)
    return Learner(
        model, MasterOptimizer(model, 0.9, 0.0), softmax_loss, lambda step: learning_rate, CLASSES, SAMPLES, 2
    )


def run(chosen: Learner, num_steps: int, hooks: list[Hook], first_step: int = 0) -> tuple[int, list[tuple[str, float]]]:
    """Train, and return the steps done and what was called on the way."""
    seen: list[tuple[str, float]] = []
    done = train(
        alone(),
        chosen,
        batches(),
        first_step=first_step,
        num_steps=num_steps,
        hooks=hooks,
        on_result=lambda result, num_samples: seen.append(("loss", result.loss)),
        after_step=lambda done, batch: seen.append(("done", done)),
        key_of=lambda place: f"{place[2]}-{place[3]}",
    )
    return done, seen


@given(num_steps=st.integers(1, 50), last=st.integers(1, 300))
def test_a_rule_is_due_at_every_multiple_and_at_the_end(num_steps: int, last: int) -> None:
    is_due = every(num_steps, last)
    due = [done for done in range(1, last + 1) if is_due(done)]
    assert due == sorted({*range(num_steps, last + 1, num_steps), last})


def test_hooks_run_in_order_where_due_with_the_figures_of_their_own_step() -> None:
    calls: list[tuple[str, int, float]] = []

    def hook(name: str, num_steps: int) -> Hook:
        def call(done: int, result: StepResult) -> bool:
            calls.append((name, done, result.loss))
            return True

        return Hook(every(num_steps, 5), call)

    done, _ = run(learner(), 5, [hook("log", 1), hook("save", 2)])
    assert done == 5
    assert [(name, step) for name, step, _ in calls] == [
        ("log", 1), ("log", 2), ("save", 2), ("log", 3), ("log", 4), ("save", 4), ("log", 5), ("save", 5),
    ]  # fmt: skip
    losses = {step: loss for name, step, loss in calls if name == "log"}
    assert {loss for name, step, loss in calls if name == "save"} == {losses[step] for step in (2, 4, 5)}


def test_the_weights_a_hook_sees_are_those_of_its_step() -> None:
    def weights_at(num_steps: int, hooks: list[Hook]) -> torch.Tensor:
        chosen = learner()
        run(chosen, num_steps, hooks)
        return chosen.module.head.fc.weight.detach().clone()

    chosen, seen = learner(), []
    hook = Hook(lambda done: done == 3, lambda done, _: seen.append(chosen.module.head.fc.weight.clone()) or True)
    run(chosen, 6, [hook])
    assert torch.equal(seen[0], weights_at(3, []))
    assert torch.equal(chosen.module.head.fc.weight, weights_at(6, []))


def test_a_hook_may_evaluate_and_training_goes_on_in_training_mode() -> None:
    chosen, modes = learner(), []

    def evaluate(done: int, _: StepResult) -> bool:
        modes.append(chosen.module.training)
        chosen.module.eval()
        return True

    run(chosen, 4, [Hook(every(1, 4), evaluate)])
    assert modes == [True] * 4
    assert chosen.module.training


def test_a_hook_ends_the_training_after_the_hooks_that_are_due_with_it() -> None:
    calls: list[str] = []
    ends = Hook(lambda done: done == 2, lambda done, _: calls.append("ends") is not None)
    saves = Hook(lambda done: done == 2, lambda done, _: calls.append("saves") is None)
    done, seen = run(learner(), 9, [ends, saves])
    assert done == 2
    assert calls == ["ends", "saves"]
    assert [step for what, step in seen if what == "done"] == [1, 2]


def test_the_figures_of_every_step_are_handed_on_once_and_in_order_late_only_where_the_loop_does_not_rest() -> None:
    by_step: dict[int, float] = {}
    run(learner(), 6, [Hook(every(1, 6), lambda done, result: by_step.update({done: result.loss}) is None)])
    _, seen = run(learner(), 6, [Hook(lambda done: done == 4, lambda done, _: True)])
    assert [loss for what, loss in seen if what == "loss"] == [by_step[step] for step in range(1, 7)]
    order = [what if what == "loss" else int(value) for what, value in seen]
    assert order == ["loss", 1, 2, "loss", 3, "loss", "loss", 4, 5, "loss", "loss", 6]


def test_a_loss_that_is_not_finite_names_its_own_step_and_samples_though_later_ones_are_queued() -> None:
    with pytest.raises(NonFinite, match=r"step 1, rank 0, samples 1-0, 1-1, 1-2, 1-3, \.\.\.: .*nothing was updated"):
        run(learner(1e30), 9, [])


def test_a_training_that_is_done_takes_no_batch() -> None:
    assert run(learner(), 3, [], first_step=3) == (3, [])


def test_a_step_that_is_passed_over_leaves_weights_and_figures_out_and_the_rest_as_it_is() -> None:
    asked: list[tuple[int, str]] = []

    def trained(*, is_broken: bool) -> tuple[dict[str, torch.Tensor], list[float]]:
        chosen, losses, calls = learner(), [], 0

        def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            value = softmax_loss(logits, targets)
            return value * math.nan if is_broken and calls == 5 else value  # in the third of two micro-batches each

        def passes_over(step: int, why: str) -> bool:
            asked.append((step, why))
            return True

        state = {}
        train(
            alone(),
            dataclasses.replace(chosen, loss=loss, learning_rate=lambda step: 0.01 if is_broken or step != 2 else 0.0),
            batches(),
            first_step=0,
            num_steps=3,
            hooks=[],
            on_result=lambda result, num_samples: losses.append(result.loss),
            after_step=lambda done, batch: None,
            key_of=lambda place: f"{place[2]}-{place[3]}",
            passes_over=passes_over,
        )
        state |= {name: value.clone() for name, value in chosen.module.state_dict().items()}
        return state, losses

    whole, losses = trained(is_broken=False)
    broken, fewer = trained(is_broken=True)
    assert [step for step, _ in asked] == [2]
    assert "step 2, rank 0, samples 2-0, 2-1" in asked[0][1]
    assert fewer == losses[:2]
    assert all(torch.equal(whole[name], broken[name]) for name in whole)  # a step at rate 0 moves no weight


def test_a_gradient_longer_than_the_limit_is_shortened_to_it_and_a_shorter_one_is_left() -> None:
    def moved(clip_norm: float | None) -> float:
        chosen = dataclasses.replace(learner(learning_rate=1.0), clip_norm=clip_norm)
        before = {name: value.clone() for name, value in chosen.module.state_dict().items()}
        run(chosen, 1, [])
        after = chosen.module.state_dict()
        return float(sum((after[name] - before[name]).double().square().sum() for name in before)) ** 0.5

    norm = moved(None)  # a first step at rate 1 moves by the gradient
    assert moved(norm / 4) == pytest.approx(norm / 4, rel=1e-4)
    assert moved(norm * 4) == pytest.approx(norm, rel=1e-6)
