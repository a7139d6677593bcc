"""The upstream recipe gives the paper's step counts and rates; the losses mean what the recipe says."""

import pytest
import torch

from pipeline.base.errors import ConfigError
from trainer.model.build import new_model
from trainer.recipes.pretrain import (
    bit_l,
    bit_m,
    bit_s,
    bv_i21k,
    named_recipe,
    pretrain_learning_rate,
    steps_at,
    total_steps,
    with_epochs,
)
from trainer.step.losses import sigmoid_loss, softmax_loss
from trainer.step.optimizer import MasterOptimizer


@pytest.mark.parametrize(
    ("recipe", "num_images", "steps", "milestones"),
    [
        (bit_s(), 1_281_167, 28_151, (9_384, 18_767, 25_023)),
        (bit_m(), 14_200_000, 312_012, (104_004, 208_008, 277_344)),
        (bit_m(), 12_400_000, 272_461, (90_820, 181_641, 242_188)),
        (bit_l(), 300_000_000, 2_929_688, (732_422, 1_684_570, 2_197_266, 2_709_961)),
    ],
)
def test_steps_and_milestones_at_batch_4096(recipe, num_images, steps, milestones) -> None:
    assert total_steps(recipe, num_images) == steps
    assert tuple(steps_at(epoch, num_images, 4096) for epoch in recipe.decay_epochs) == milestones


def test_the_rate_warms_up_peaks_at_048_and_falls_by_tens() -> None:
    recipe, images = bit_m(), 14_200_000
    assert pretrain_learning_rate(recipe, 0, images) == 0.0
    assert pretrain_learning_rate(recipe, 2_500, images) == pytest.approx(0.24)
    assert pretrain_learning_rate(recipe, 5_000, images) == pytest.approx(0.48)
    for number, milestone in enumerate((104_004, 208_008, 277_344)):
        assert pretrain_learning_rate(recipe, milestone - 1, images) == pytest.approx(0.48 * 10**-number)
        assert pretrain_learning_rate(recipe, milestone, images) == pytest.approx(0.048 * 10**-number)


def test_the_rate_scales_with_the_batch() -> None:
    assert bit_s().model_copy(update={"batch_size": 256}).base_lr == pytest.approx(0.03)


def test_losses_and_presets() -> None:
    assert [named_recipe(name).loss for name in ("bit-s", "bit-m", "bit-l")] == ["softmax", "sigmoid", "sigmoid"]
    with pytest.raises(ConfigError, match="choose one of bit-s, bit-m, bit-l"):
        named_recipe("bit-xl")


def test_sigmoid_loss_of_a_zero_head_is_classes_times_ln2() -> None:
    assert sigmoid_loss(torch.zeros(4, 21_843), torch.zeros(4, 21_843)).item() == pytest.approx(15_140.4, abs=0.1)


def test_softmax_loss_equals_torch_for_single_labels_and_ignores_samples_without() -> None:
    logits = torch.randn(5, 7)
    targets = torch.nn.functional.one_hot(torch.tensor([0, 3, 6, 1, 1]), 7).float()
    assert softmax_loss(logits, targets).item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, targets.argmax(1)).item(), rel=1e-6
    )
    targets[2] = 0
    assert torch.isfinite(softmax_loss(logits, targets))


def test_weight_decay_is_on_kernels_only() -> None:
    model = new_model("R14x0.5", 3, seed=0)
    optimizer = MasterOptimizer(model, momentum=0.0, weight_decay=0.5)
    before = {name: value.clone() for name, value in optimizer.state().items()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.gradient_norm()
    optimizer.step(learning_rate=1.0, only_if=torch.tensor(True))
    for name, value in optimizer.state().items():
        if name.startswith("model/"):
            is_kernel = "conv" in name or name == "model/head.fc.weight"
            assert torch.equal(value, before[name] * (0.5 if is_kernel else 1.0)), name


def test_adam_is_that_of_torch_with_the_decay_on_kernels_and_waits_with_a_step_that_is_left_out() -> None:
    model, other = new_model("R14x0.5", 3, seed=0), new_model("R14x0.5", 3, seed=0)
    optimizer = MasterOptimizer(model, momentum=0.8, weight_decay=0.5, kind="adam")
    groups = [
        {"params": [each for each in other.parameters() if each.ndim > 1], "weight_decay": 0.5},
        {"params": [each for each in other.parameters() if each.ndim <= 1]},
    ]
    expected = torch.optim.Adam(groups, betas=(0.8, 0.999), foreach=False)
    for step, is_finite in enumerate((True, False, True)):
        for one, two in zip(model.parameters(), other.parameters(), strict=True):
            values = torch.randn(one.shape, generator=torch.Generator().manual_seed(one.numel() + step))
            one.grad, two.grad = (torch.empty_like(each).copy_(values) for each in (one, two))  # laid out alike
        optimizer.gradient_norm()
        optimizer.step(learning_rate=0.01, only_if=torch.tensor(is_finite))
        if is_finite:
            expected.param_groups[0]["lr"] = expected.param_groups[1]["lr"] = 0.01
            expected.step()
        for one, two in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one, two)


def test_decays_keep_their_place_in_a_schedule_of_another_length() -> None:
    recipe = with_epochs(bit_s(), 9)
    assert recipe == bit_s().model_copy(update={"epochs": 9, "decay_epochs": (3.0, 6.0, 8.0)})
    assert with_epochs(bit_l(), 40) == bit_l()


def test_big_visions_recipe_is_that_of_its_configuration() -> None:
    recipe, images = bv_i21k().model_copy(update={"batch_size": 4096}), 12_743_321
    steps = total_steps(recipe, images)
    assert recipe.base_lr == pytest.approx(0.03 / 256 * 4096)
    assert recipe.base_lr * recipe.weight_decay == pytest.approx(3e-5 / 256 * 4096)  # config.wd
    assert pretrain_learning_rate(recipe, 2_500, images) == pytest.approx(recipe.base_lr / 2)
    assert pretrain_learning_rate(recipe, 5_000, images) == pytest.approx(recipe.base_lr)
    half = 5_000 + (steps - 5_000) // 2
    assert pretrain_learning_rate(recipe, half, images) == pytest.approx(recipe.base_lr / 2, rel=1e-3)
    assert pretrain_learning_rate(recipe, steps, images) == pytest.approx(0.0, abs=1e-12)


def test_decoupled_decay_goes_past_the_momentum_and_waits_with_a_step_that_is_left_out() -> None:
    model = new_model("R14x0.5", 3, seed=0)
    optimizer = MasterOptimizer(model, momentum=0.9, weight_decay=0.5, decoupled=True)
    before = {name: value.clone() for name, value in optimizer.state().items()}
    for is_finite, shrunk in ((False, 1.0), (True, 0.95), (True, 0.95**2)):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.gradient_norm()
        optimizer.step(learning_rate=0.1, only_if=torch.tensor(is_finite))
        for name, value in optimizer.state().items():
            if name.startswith("model/"):
                is_kernel = "conv" in name or name == "model/head.fc.weight"
                torch.testing.assert_close(value, before[name] * (shrunk if is_kernel else 1.0))
            else:
                assert not value.any()  # nothing of the decay is in the momentum
