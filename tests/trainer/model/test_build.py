"""New models."""

import torch

from tests.trainer.runs import assert_equal
from trainer.model.architecture import parse_architecture
from trainer.model.build import new_model
from trainer.model.network import ResNetV2


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, other = new_model("R14x0.5", 3, seed=5), new_model("R14x0.5", 3, seed=5)
    assert_equal(one.state_dict(), other.state_dict())
    assert torch.equal(torch.rand(1), expected)


def test_a_model_of_any_width_runs_forward() -> None:
    for name in ("R14x0.5", "R26x1"):
        assert ResNetV2(parse_architecture(name), 2)(torch.zeros(1, 3, 33, 47)).shape == (1, 2)
