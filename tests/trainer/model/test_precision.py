"""Lower precisions stay near float64: logits within documented bounds, norms to a rounding."""

import pytest
import torch
from torch import Tensor, nn

from tests.trainer.model.test_golden import A_LOGITS, INPUT_A, golden_model, numbers
from trainer.model.group_norm import GroupNorm
from trainer.step.optimizer import MasterOptimizer
from trainer.step.step import in_precision


def test_lower_precisions_stay_within_documented_bounds() -> None:
    model = golden_model("R50x1")
    expected = torch.tensor(numbers(A_LOGITS["R50x1"]), dtype=torch.float64).reshape(2, 10)
    model.float()
    images = INPUT_A.float()
    with torch.no_grad():
        assert (model(images) - expected).abs().max() < 2e-4
        optimizer = MasterOptimizer(model, 0.9, 0.0)
        with optimizer.kernels():
            assert (model(images) - expected).abs().max() < 2e-4
        with in_precision("bfloat16", images.device), optimizer.kernels(torch.bfloat16):
            assert (model(images) - expected).abs().max() < 0.5


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [64, 512])  # on either side of what is normalised in float32
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])  # of the gradient
def test_a_norm_of_half_precision_is_that_of_float64_rounded(
    precision: torch.dtype, channels: int, layout: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(1)

    def pictures() -> Tensor:
        values = 3 * torch.randn((3, channels, 5, 7), generator=generator) + 1
        return values.to(precision).to(memory_format=torch.channels_last)

    norm = GroupNorm(channels)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 1.0, 0.5, generator=generator)
    x, gradient = pictures().requires_grad_(), pictures().contiguous(memory_format=layout)
    out = norm(x)
    found = torch.autograd.grad(out, (x, *norm.parameters()), gradient)
    exact = nn.GroupNorm(32, channels).double()
    exact.load_state_dict(norm.state_dict())
    x64 = x.detach().double().requires_grad_()
    truth = exact(x64)
    due = torch.autograd.grad(truth, (x64, *exact.parameters()), gradient.double())
    assert out.dtype == precision
    assert out.is_contiguous(memory_format=torch.channels_last)
    for value, true in zip((out, *found), (truth, *due), strict=True):
        assert (value.double() - true).abs().max() <= 2 * torch.finfo(precision).eps * true.abs().max()


def test_a_norm_of_half_precision_takes_a_single_picture_whatever_its_stride() -> None:
    # Convolutions with contiguous kernels, those of sharded models, give such outputs: no picture follows the first.
    values = torch.randn(32 * 8 * 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    x = values.as_strided((1, 32, 8, 8), (32, 1, 256, 32)).requires_grad_()
    norm, plain = GroupNorm(32), x.detach().clone(memory_format=torch.channels_last).requires_grad_()
    found, due = (torch.autograd.grad(norm(each).square().sum(), each)[0] for each in (x, plain))
    assert torch.equal(norm(x), norm(plain))
    assert torch.equal(found, due)
