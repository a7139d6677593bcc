"""One optimizer step: micro-batches, ranks, figures that are not finite."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from pipeline.base.errors import NonFinite
from pipeline.dataset.dataset import label_matrix
from pipeline.streaming.stream import Batch
from tests.trainer.runs import assert_equal, batch_of
from trainer.model.build import new_model
from trainer.run.settings import RunSettings
from trainer.step.losses import softmax_loss
from trainer.step.optimizer import MasterOptimizer
from trainer.step.step import microbatches, train_step
from trainer.step.tensors import TensorBatch, to_device


@pytest.mark.parametrize("microbatch_size", [1, 3, 5])
def test_accumulation_gives_the_gradient_of_the_whole_batch(microbatch_size: int) -> None:
    norms, states = [], []
    for size in (8, microbatch_size):
        model = new_model("R14x0.5", 3, seed=1).double()
        torch.nn.init.normal_(model.head.fc.weight, generator=torch.Generator().manual_seed(2))
        result = train_step(model, MasterOptimizer(model, 0.9, 1e-4), batch_of(8), softmax_loss, 0.1, size).result()
        norms.append(result.gradient_norm)
        states.append(model.state_dict())
    assert norms[0] == pytest.approx(norms[1], rel=1e-9)
    for name in states[0]:
        assert torch.allclose(states[0][name], states[1][name], rtol=1e-7, atol=1e-10), name


@given(num_samples=st.integers(1, 300), most=st.integers(1, 300))
def test_micro_batches_are_as_few_as_can_be_and_of_two_sizes_at_most(num_samples: int, most: int) -> None:
    parts = microbatches(num_samples, math.ceil(num_samples / most))
    sizes = [stop - start for start, stop in parts]
    assert [start for start, _ in parts] == [0, *(stop for _, stop in parts[:-1])]
    assert sum(sizes) == num_samples
    assert len(sizes) == math.ceil(num_samples / most)
    assert max(sizes) - min(sizes) <= 1


@given(num_lanes=st.integers(1, 40), each=st.integers(1, 9), most=st.integers(1, 50), data=st.data())
def test_all_ranks_make_equally_many_micro_batches_and_none_is_empty(
    num_lanes: int, each: int, most: int, data: st.DataObject
) -> None:
    num_ranks = data.draw(st.integers(1, num_lanes))
    settings = RunSettings(num_lanes=num_lanes, microbatch_size=most)
    num_parts = settings.num_microbatches(num_lanes * each, num_ranks)
    for num_samples in settings.samples_by_rank(num_lanes * each, num_ranks):
        sizes = [stop - start for start, stop in microbatches(num_samples, num_parts)]
        assert len(sizes) == num_parts
        assert min(sizes) >= 1
        assert max(sizes) <= max(most, 2)


def test_a_batch_comes_to_the_device_as_pixels_and_targets_with_a_one_for_each_label() -> None:
    pixels = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)
    labels = ((2, 0), (), (1,))
    tensors = to_device(Batch(images=pixels, labels=labels, places=np.empty((3, 4), np.int64)), 3, torch.device("cpu"))
    assert torch.equal(tensors.images_BCHW.permute(0, 2, 3, 1), torch.from_numpy(pixels))
    assert tensors.images_BCHW.is_contiguous(memory_format=torch.channels_last)
    assert tensors.targets_BK.tolist() == label_matrix([list(each) for each in labels], 3).tolist()


def test_ranks_with_uneven_parts_average_to_the_gradient_of_the_whole_batch() -> None:
    def gradient(samples: slice, share: float) -> dict[str, Tensor]:
        model = new_model("R14x0.5", 3, seed=1).double()
        torch.nn.init.normal_(model.head.fc.weight, generator=torch.Generator().manual_seed(2))
        whole = batch_of(8)
        part = TensorBatch(whole.images_BCHW[samples], whole.targets_BK[samples])
        optimizer = MasterOptimizer(model, 0.9, 0.0)
        train_step(model, optimizer, part, softmax_loss, 0.1, 8, share=share)
        return optimizer.gradients()

    parts = [slice(0, 2), slice(2, 5), slice(5, 8)]
    of_ranks = [gradient(part, (part.stop - part.start) * len(parts) / 8) for part in parts]
    for name, expected in gradient(slice(0, 8), 1.0).items():
        averaged = sum(each[name] for each in of_ranks) / len(parts)
        assert torch.allclose(averaged, expected, rtol=1e-7, atol=1e-10), name


def test_a_loss_that_is_not_finite_stops_before_the_update() -> None:
    model = new_model("R14x0.5", 3, seed=1).double()
    optimizer = MasterOptimizer(model, 0.9, 0.0)
    before = {name: value.clone() for name, value in optimizer.state().items()}
    batch = batch_of(4)
    batch.images_BCHW[2, 0, 0, 0] = float("nan")
    with pytest.raises(NonFinite, match="nothing was updated"):
        train_step(model, optimizer, batch, softmax_loss, 0.1, 4).result()
    assert_equal(before, optimizer.state())
