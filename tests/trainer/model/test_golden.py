"""The model is BiT: parameter counts of the paper, and logits, losses and gradients of independent golden vectors.

The vectors were computed in float64 from a deterministic fill of parameters and inputs and matched against timm's
resnetv2_50x1_bit; see docs/model.md.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.base.errors import ConfigError
from trainer.model.architecture import PAPER_MODELS, parse_architecture
from trainer.model.network import ResNetV2
from trainer.step.losses import sigmoid_loss, softmax_loss

A_LOGITS = {
    "R50x1": """
        -0.789803728 0.140171926 0.351789065 1.230367202 -2.042119883 0.440689853 -1.601614991 -0.720799596
        -0.504522687 0.923650307
        -0.205488458 -0.017994550 -0.304745912 -0.300853576 -2.460813071 0.853215423 -1.338211146 -1.635253436
        -0.541997483 -0.890176173
    """,
    "R101x1": """
        0.232020011 -0.200452623 -0.017140163 -0.298687452 -0.558341101 -0.063556589 0.563834161 -0.655475822
        -0.179423314 -0.904498775
        -1.460576403 -0.431283690 0.213880293 0.312522282 -0.418958852 1.234810938 -0.752939165 -0.747474478
        -0.718825826 -0.511039892
    """,
}
B_LOGITS = {
    "R50x1": """
        -0.565141931 0.917006593 -0.386885136 0.855156908 -2.837590360 -0.010165539 -1.094990551 -1.386656428
        -0.711939348 -0.799913795
    """,
    "R101x1": """
        1.151056554 -0.182091402 0.509880949 1.080265597 -1.671584549 -0.064999773 -1.072481072 -1.473566568
        0.955315314 -0.888080651
    """,
}
STEMS = {"R50x1": (323240.655195, 9.867853383), "R101x1": (322816.947780, 9.854439014)}
# (softmax loss, its gradient norm, sigmoid loss, its gradient norm)
LOSSES = {
    "R50x1": (2.426448257, 94.595488900, 6.240165105, 145.248326148),
    "R101x1": (2.743896665, 265.335941392, 6.496242025, 381.329597965),
}
PARAMETERS = {  # without a head, and with 1,000 and 21,843 classes
    "R50x1": (23_500_352, 25_549_352, 68_256_659),
    "R50x3": (211_174_080, 217_319_080, 345_399_315),
    "R101x1": (42_492_480, 44_541_480, 87_248_787),
    "R101x3": (381_789_888, 387_934_888, 516_015_123),
    "R152x2": (232_238_208, 236_335_208, 321_728_979),
    "R152x4": (928_340_224, 936_533_224, 1_107_299_923),
}


def fill(count: int, key: int) -> np.ndarray:
    """Return the deterministic fill of the golden vectors, float64 in [-1, 1)."""
    low = np.uint64(0xFFFFFFFF)
    a = (np.arange(count, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(key * 40503)) & low
    a ^= a >> np.uint64(16)
    a = (a * np.uint64(2246822519)) & low
    a ^= a >> np.uint64(13)
    a = (a * np.uint64(3266489917)) & low
    a ^= a >> np.uint64(16)
    return a.astype(np.float64) / 2**31 - 1


def filled(shape: tuple[int, ...], key: int) -> Tensor:
    return torch.from_numpy(fill(int(np.prod(shape)), key)).reshape(shape)


def golden_model(name: str) -> ResNetV2:
    model = ResNetV2(parse_architecture(name), 10).double()
    state = model.state_dict()
    for key, parameter in enumerate(sorted(state), start=1):
        values = filled(tuple(state[parameter].shape), key)
        if parameter.startswith("head.fc"):
            values = 0.1 * values
        elif "norm" in parameter:
            values = 0.1 * values + (1.0 if parameter.endswith("weight") else 0.0)
        state[parameter].copy_(values)
    return model


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split()]


@pytest.fixture(scope="module", params=["R50x1", "R101x1"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(name: str) -> ResNetV2:
    return golden_model(name)


INPUT_A, INPUT_B = filled((2, 3, 64, 64), 1001), filled((1, 3, 33, 47), 1002)


def test_golden_fill_is_the_one_the_vectors_were_made_with() -> None:
    assert fill(5, 1).tolist() == [
        -0.6934084631502628, 0.1358746704645455, 0.5958260395564139, -0.08618055516853929, -0.9866534783504903,
    ]  # fmt: skip
    assert fill(3, 7).tolist() == [0.14992522494867444, 0.09483224572613835, -0.6390014248900115]


def test_golden_stem(name: str, model: ResNetV2) -> None:
    with torch.no_grad():
        stem = model.stem(INPUT_A)
    assert stem.shape == (2, 64, 16, 16)
    assert stem.sum().item() == pytest.approx(STEMS[name][0], abs=1e-5)
    assert stem.abs().mean().item() == pytest.approx(STEMS[name][1], abs=1e-8)


def test_golden_logits(name: str, model: ResNetV2) -> None:
    with torch.no_grad():
        logits = model(INPUT_A)
    assert logits.flatten().tolist() == pytest.approx(numbers(A_LOGITS[name]), abs=2e-9)


def test_golden_logits_of_an_odd_size(name: str, model: ResNetV2) -> None:
    with torch.no_grad():
        assert model.stem(INPUT_B).shape == (1, 64, 9, 12)
        assert model(INPUT_B)[0].tolist() == pytest.approx(numbers(B_LOGITS[name]), abs=2e-9)


def test_golden_losses_and_gradients(name: str, model: ResNetV2) -> None:
    single, several = torch.zeros(2, 10, dtype=torch.float64), torch.zeros(2, 10, dtype=torch.float64)
    single[0, 3] = single[1, 7] = 1.0
    several[0, 3] = several[1, 2] = several[1, 7] = 1.0
    measured = []
    for loss_function, targets in ((softmax_loss, single), (sigmoid_loss, several)):
        model.zero_grad()
        loss = loss_function(model(INPUT_A), targets)
        loss.backward()
        norm = torch.stack([p.grad.square().sum() for p in model.parameters()]).sum().sqrt()
        measured += [loss.item(), norm.item()]
    model.zero_grad()
    assert measured == pytest.approx(LOSSES[name], abs=1e-6)
    assert measured[::2] == pytest.approx(LOSSES[name][::2], abs=2e-9)


@pytest.mark.parametrize("paper_model", PAPER_MODELS)
def test_parameter_counts_are_the_papers(paper_model: str) -> None:
    architecture = parse_architecture(paper_model)
    with torch.device("meta"):
        counts = [sum(p.numel() for p in ResNetV2(architecture, k).parameters()) for k in (1000, 21_843)]
    body = counts[0] - 1000 * (architecture.num_features + 1)
    assert (body, *counts) == PARAMETERS[paper_model]


def test_a_new_model_predicts_all_classes_equally() -> None:
    model = ResNetV2(parse_architecture("R14x0.5"), 7)
    assert (model(torch.randn(2, 3, 32, 32)) == 0).all()


@pytest.mark.parametrize("wrong", ["R51x1", "R50", "R50x0", "R50x0.3", "r50x1", "R50x1.25", ""])
def test_unknown_models_are_refused_by_name(wrong: str) -> None:
    with pytest.raises(ConfigError, match="is unknown; write DEPTHxWIDTH"):
        parse_architecture(wrong)
