"""On a GPU: the steps of the CPU, runs that go on where they stopped, the memory that was predicted."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from pipeline.dataset.dataset import Dataset
from pipeline.store.url import open_store
from pipeline.streaming.stream import Batch
from tests.trainer.runs import Stopped, batch_of, config, final_state
from trainer.checkpoint.record import latest
from trainer.checkpoint.sharded import load, save
from trainer.jobs.pretrain import pretrain
from trainer.model.architecture import parse_architecture
from trainer.model.build import new_model
from trainer.model.cost import layers, step_memory
from trainer.run.metrics import read_metrics
from trainer.step.losses import softmax_loss
from trainer.step.optimizer import MasterOptimizer
from trainer.step.ranks import World, alone
from trainer.step.step import QueuedStep, StepResult, train_step
from trainer.step.tensors import TensorBatch, to_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
CPU = World(0, 1, torch.device("cpu"))


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of one, as Ray Train would make it."""
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def small_batch(num_samples: int, device: torch.device) -> TensorBatch:
    whole = batch_of(num_samples)
    images = whole.images_BCHW.float().to(device, memory_format=torch.channels_last)
    return TensorBatch(images, whole.targets_BK.float().to(device))


def steps(world: World, count: int = 3, **options: object) -> tuple[list[StepResult], MasterOptimizer]:
    """Take steps on the same pictures, with weights that do not depend on the device."""
    precision, compiled = options.pop("precision", "float32"), options.pop("compiled", False)
    model = new_model("R26x1", 3, 0, device=world.device, **options).train()
    optimizer = MasterOptimizer(model, 0.9, 1e-4)
    if compiled:
        model.compile(dynamic=False)
    if compiled == "step":
        optimizer.compile(dynamic=False)
    batch = small_batch(13, world.device)  # in two micro-batches of different sizes
    queued = [train_step(model, optimizer, batch, softmax_loss, 0.05, 8, precision=precision) for _ in range(count)]
    return [step.result() for step in queued], optimizer


@pytest.mark.parametrize(
    ("options", "within"),
    [
        ({}, 0.01),
        ({"recomputes": True}, 0.01),
        ({"precision": "bfloat16"}, 0.05),
        ({"precision": "bfloat16", "compiled": True}, 0.05),
        ({"precision": "bfloat16", "compiled": True, "recomputes": True}, 0.05),
        ({"precision": "bfloat16", "compiled": "step"}, 0.05),
    ],
    ids=["float32", "recomputing", "bfloat16", "compiled", "compiled and recomputing", "compiled with its kernels"],
)
def test_steps_on_a_gpu_are_those_of_the_cpu(options: dict[str, object], within: float) -> None:
    on_gpu, _ = steps(alone(), **options)
    on_cpu, _ = steps(CPU)
    assert [step.loss for step in on_gpu] == pytest.approx([step.loss for step in on_cpu], rel=within, abs=within)
    assert on_gpu[0].gradient_norm == pytest.approx(on_cpu[0].gradient_norm, rel=within)


@pytest.mark.usefixtures("group")
def test_a_sharded_model_takes_the_steps_of_a_whole_one_and_its_checkpoint_fits_both(tmp_path: Path) -> None:
    whole, _ = steps(alone())
    sharded, optimizer = steps(alone(), sharded=True)
    assert [step.loss for step in sharded] == pytest.approx([step.loss for step in whole], rel=0.01, abs=0.01)
    store = open_store(str(tmp_path))
    save(store, alone(), optimizer.state(), step=3, attempt="one", stream={}, about={})
    state = MasterOptimizer(new_model("R26x1", 3, 1), 0.9, 0.0).state()
    load(store, CPU, latest(store), state)
    saved = {name: value.full_tensor().cpu() for name, value in optimizer.state().items()}
    assert [name for name in saved if not torch.equal(saved[name], state[name])] == []


@pytest.mark.usefixtures("group")
def test_ranks_whose_network_is_compiled_take_the_steps_of_one() -> None:
    losses = {}
    for is_wrapped in (False, True):
        model = new_model("R26x1", 3, 0, device=alone().device).train()
        optimizer = MasterOptimizer(model, 0.9, 1e-4)
        model.compile(dynamic=False)
        module = DistributedDataParallel(model, device_ids=[alone().device]) if is_wrapped else model
        batch = small_batch(13, alone().device)
        queued = [train_step(module, optimizer, batch, softmax_loss, 0.05, 8, precision="bfloat16") for _ in range(3)]
        losses[is_wrapped] = [step.result().loss for step in queued]
    assert losses[True] == pytest.approx(losses[False], rel=0.02, abs=0.02)


def test_batches_arrive_whole_though_their_memory_is_used_again_at_once() -> None:
    pixels, labels = np.empty((64, 128, 128, 3), np.uint8), ((0, 2),) * 64
    arrived = []
    for value in range(8):
        torch.cuda._sleep(10**7)  # the steps before keep the GPU busy
        pixels.fill(value)
        batch = Batch(images=pixels, labels=labels, places=np.empty((64, 4), np.int64))
        arrived.append(to_device(batch, 3, alone().device))
        pixels.fill(255)
    for value, batch in enumerate(arrived):
        assert (batch.images_BCHW == value).all()
        assert batch.targets_BK.unique(dim=0).tolist() == [[1.0, 0.0, 1.0]]


def test_a_run_that_stops_goes_on_and_a_cpu_can_finish_it(small_dataset: Dataset, tmp_path: Path) -> None:
    def stop(row: dict[str, object]) -> None:
        if row["step"] == 4:
            raise Stopped

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    pretrain(config(small_dataset, whole), alone(), lambda row: None)
    with pytest.raises(Stopped):
        pretrain(config(small_dataset, broken), alone(), stop)
    pretrain(config(small_dataset, broken), CPU, lambda row: None)
    rows = {out: read_metrics(open_store(str(out))) for out in (whole, broken)}
    assert [row["step"] for row in rows[broken]] == [2, 4, 6, 8]
    assert [row["loss"] for row in rows[broken]] == pytest.approx([row["loss"] for row in rows[whole]], rel=0.02)
    assert final_state(whole).keys() == final_state(broken).keys()


def test_the_result_of_a_step_does_not_wait_for_what_was_queued_after_it() -> None:
    step = QueuedStep(torch.ones(4, device="cuda"))
    torch.cuda._sleep(10**10)  # seconds
    assert step.result() == StepResult(1.0, 1.0, 1.0)
    assert not torch.cuda.current_stream().query()  # it is still at it


@pytest.mark.parametrize(
    ("name", "px", "batch", "half", "recomputes"),
    [("R50x1", 224, 32, False, False), ("R50x1", 224, 64, True, False), ("R50x3", 224, 32, True, True)],
)
def test_memory_of_a_step_is_what_is_predicted(name: str, px: int, batch: int, half: bool, recomputes: bool) -> None:
    found = layers(parse_architecture(name), 1000, px)
    expected = step_memory(found, batch, half=half, recomputes=recomputes).total
    torch.cuda.empty_cache()
    model = new_model(name, 1000, 0, device=alone().device, recomputes=recomputes).train()
    optimizer = MasterOptimizer(model, 0.9, 1e-4)
    images = torch.randn(batch, 3, px, px, device="cuda").to(memory_format=torch.channels_last)
    targets = torch.zeros(batch, 1000, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        precision = "bfloat16" if half else "float32"
        train_step(model, optimizer, TensorBatch(images, targets), softmax_loss, 0.01, batch, precision=precision)
    assert torch.cuda.max_memory_allocated() == pytest.approx(expected, rel=0.25)
