"""The network's variants and the two ways to compute a step: plain, and with standardised kernels once a step."""

from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, strategies as st
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pipeline.base.errors import ConfigError, NonFinite
from pipeline.store.local import LocalStore
from trainer.checkpoint.record import latest
from trainer.checkpoint.sharded import load, save
from trainer.model.build import new_model
from trainer.model.conv import Conv2d, standardize
from trainer.model.group_norm import GroupNorm
from trainer.model.network import Bottleneck, ResNetV2
from trainer.step.losses import softmax_loss
from trainer.step.optimizer import MasterOptimizer, model_state
from trainer.step.precision import Precision
from trainer.step.ranks import World, average_buffers, distributed
from trainer.step.step import train_step
from trainer.step.tensors import TensorBatch

SMALL = "R14x0.5"
LARGE_PARTS = "R26x0.5"  # half of it is more than its largest unit


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def trained_head(model: ResNetV2) -> ResNetV2:
    """Return the model with a head that lets gradients through."""
    with torch.no_grad():
        values = torch.randn(model.head.fc.weight.shape, generator=torch.Generator().manual_seed(2))
        part = model.head.fc.weight
        if isinstance(part, DTensor):
            mesh = part.device_mesh
            num_shards = mesh.size(mesh.ndim - 1)
            part.to_local().copy_(values.chunk(num_shards)[dist.get_rank() % num_shards])
        else:
            part.copy_(values)
    return model


def pictures(count: int, px: int = 32) -> TensorBatch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, px, px, generator=generator, dtype=torch.float64)
    return TensorBatch(images, F.one_hot(torch.arange(count) % 3, 3).double())


def close(one: Tensor, other: Tensor, within: float = 1e-9) -> bool:
    return bool(torch.linalg.vector_norm(one - other) <= within * torch.linalg.vector_norm(other))


@given(
    size=st.sampled_from([1, 3, 7]),
    stride=st.sampled_from([1, 2]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    count=st.integers(1, 3),
)
def test_a_product_of_matrices_is_the_convolution(size: int, stride: int, height: int, width: int, count: int) -> None:
    generator = torch.Generator().manual_seed(size * height)
    few, many = Conv2d(4, 6, size, stride), Conv2d(96, 2048, 1, stride)
    for conv, channels in ((few, 4), (many, 96)):
        conv.double()
        x = torch.randn(count, channels, height, width, generator=generator, dtype=torch.float64)
        expected = F.conv2d(x, standardize(conv.weight), None, stride, conv.padding)
        assert torch.allclose(conv(x), expected, rtol=1e-10, atol=1e-10)
        assert conv(x).shape == expected.shape


def test_gradients_of_standardisation_and_products_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(3, 2, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(standardize, (kernel,))
    conv = Conv2d(64, 64, 3, 2).double()  # large enough against one position to be computed as a product
    nn.init.normal_(conv.weight, generator=generator)
    x = torch.randn(1, 64, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(conv, (x,))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("model_name", [SMALL, "R14x0.5-GN", "R14x0.5-BN-WS"])
def test_standardising_once_a_step_takes_the_steps_of_plain_sgd(layout: torch.memory_format, model_name: str) -> None:
    plain, owned = (trained_head(new_model(model_name, 3, seed=1)).double().to(memory_format=layout) for _ in range(2))
    kernels = [parameter for parameter in plain.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in plain.parameters() if parameter.ndim <= 1]
    sgd = torch.optim.SGD([{"params": kernels, "weight_decay": 1e-2}, {"params": others}], lr=0.05, momentum=0.9)
    optimizer = MasterOptimizer(owned, 0.9, 1e-2)
    batch = pictures(6)
    for _ in range(3):
        sgd.zero_grad()
        softmax_loss(plain(batch.images_BCHW), batch.targets_BK).backward()
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in plain.parameters()])
        sgd.step()
        result = train_step(owned, optimizer, batch, softmax_loss, 0.05, 6).result()
        assert result.gradient_norm == pytest.approx(norm.item(), rel=1e-9)
        # A gradient with a graph behind it would keep as much memory again until the next step.
        assert {gradient.grad_fn for gradient in optimizer.gradients().values()} == {None}
    expected = model_state(plain)
    for name, value in model_state(owned).items():
        assert close(value.double(), expected[name].double()), name
    for module in owned.modules():
        if isinstance(module, Conv2d):
            assert module.weight.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("recomputes", [False, True])
def test_for_a_step_the_network_computes_with_ready_kernels_and_keeps_its_raw_ones(recomputes: bool) -> None:
    model = trained_head(new_model(SMALL, 3, seed=1, recomputes=recomputes)).double().train()
    images = pictures(2).images_BCHW
    raw = {name: value.clone() for name, value in model_state(model).items()}
    convs = [module for module in model.modules() if isinstance(module, Conv2d)]
    with torch.no_grad():
        before = model(images)
        optimizer = MasterOptimizer(model, 0.9, 0.0)
        with optimizer.kernels():
            # To recompute is to save memory: then no copies are made.
            assert {conv.kernel is None for conv in convs} == {recomputes}
            assert torch.allclose(model(images), before, rtol=1e-12, atol=1e-12)
    assert {conv.kernel for conv in convs} == {None}
    for name, value in model_state(model).items():
        assert torch.equal(value, raw[name]), name


@pytest.mark.parametrize("model_name", [SMALL, f"{SMALL}-BN"])
def test_an_error_in_a_step_leaves_raw_kernels_and_statistics_in_the_network(model_name: str) -> None:
    model = new_model(model_name, 3, seed=1).train()
    optimizer = MasterOptimizer(model, 0.9, 0.0)
    batch = pictures(2)
    wrong = TensorBatch(batch.images_BCHW.float() * float("nan"), batch.targets_BK.float())
    raw = {name: value.clone() for name, value in model_state(model).items()}
    with pytest.raises(NonFinite):
        train_step(model, optimizer, wrong, softmax_loss, 0.1, 2).result()
    assert {module.kernel for module in model.modules() if isinstance(module, Conv2d)} == {None}
    for name, value in model_state(model).items():
        assert torch.equal(value, raw[name]) or name.endswith("num_batches_tracked"), name


def test_decay_to_the_start_pulls_every_parameter_back() -> None:
    model = new_model(SMALL, 3, seed=1)
    optimizer = MasterOptimizer(model, 0.0, 0.0, decay_to_start=0.25)
    start = {name: value.clone() for name, value in optimizer.state().items() if name.startswith("model/")}
    for value in start:
        optimizer.state()[value].add_(1.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.gradient_norm()
    optimizer.step(learning_rate=1.0, only_if=torch.tensor(True))
    for name, value in start.items():
        assert torch.allclose(optimizer.state()[name], value + 0.75, atol=1e-5), name


def gradients(
    batch: TensorBatch, microbatch_size: int, precision: Precision = "float32", name: str = SMALL, **options: bool
) -> dict[str, Tensor]:
    model = trained_head(new_model(name, 3, seed=1, **options)).to(batch.images_BCHW.dtype)
    optimizer = MasterOptimizer(model, 0.0, 0.0)
    train_step(model.train(), optimizer, batch, softmax_loss, 0.0, microbatch_size, precision=precision)
    return optimizer.gradients()


@pytest.mark.parametrize("options", [{"recomputes": True}, {"microbatch_size": 2}])
def test_recomputing_and_accumulating_give_the_gradients_of_the_plain_model(options: dict[str, object]) -> None:
    expected = gradients(pictures(8), 8)
    for name, value in gradients(pictures(8), **{"microbatch_size": 8, **options}).items():
        assert close(value, expected[name]), name


def test_bfloat16_gradients_point_where_those_of_float32_do() -> None:
    batch = pictures(8)
    batch = TensorBatch(batch.images_BCHW.float(), batch.targets_BK.float())
    expected = gradients(batch, 4)
    for recomputes in (False, True):
        found = gradients(batch, 4, "bfloat16", recomputes=recomputes)
        one, other = (torch.cat([value.flatten() for value in each.values()]) for each in (expected, found))
        assert other.dtype == torch.float32
        assert F.cosine_similarity(one, other, dim=0) > 0.9


def _rank_that_shares(rank: int, num_ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/ranks", rank=rank, world_size=num_ranks)
    world, batch = World(rank, num_ranks, torch.device("cpu")), pictures(8)
    for recomputes, precision, dtype, least in (
        (False, "float32", torch.float64, 1 - 1e-12),
        (True, "float32", torch.float64, 1 - 1e-12),
        (False, "bfloat16", torch.float32, 0.8),
        (True, "bfloat16", torch.float32, 0.8),
    ):
        both = TensorBatch(batch.images_BCHW.to(dtype), batch.targets_BK.to(dtype))
        mine = slice(5) if rank == 0 else slice(5, 8)  # as where the ranks do not divide the lanes
        own = TensorBatch(both.images_BCHW[mine], both.targets_BK[mine])
        expected = gradients(both, 2, precision, LARGE_PARTS)
        model = trained_head(new_model(LARGE_PARTS, 3, seed=1, sharded=True, recomputes=recomputes)).to(dtype)
        optimizer = MasterOptimizer(model, 0.0, 0.0)
        with optimizer.kernels(torch.bfloat16 if precision == "bfloat16" else None):  # a second copy, or none
            assert [conv.weight_is_raw for conv in convolutions(model)] == [recomputes] * len(convolutions(model))
        module, of_lanes = distributed(world, model).train(), {"num_microbatches": 3, "share": len(own.targets_BK) / 4}
        train_step(module, optimizer, own, softmax_loss, 0.0, 2, precision=precision, **of_lanes)
        found = {name: whole(value) for name, value in optimizer.gradients().items()}
        one, other = (torch.cat([each[name].flatten() for name in expected]) for each in (expected, found))
        assert F.cosine_similarity(one, other, dim=0) > least, (recomputes, precision)
    dist.destroy_process_group()


def convolutions(model: ResNetV2) -> list[Conv2d]:
    return [module for module in model.modules() if isinstance(module, Conv2d) and module.standardized]


def test_ranks_that_share_a_model_give_its_gradients_whether_they_recompute_or_not(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank_that_shares, (2, str(tmp_path)), nprocs=2)


def _rank(rank: int, num_ranks: int, folder: str, ranks_per_replica: int | None) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/ranks", rank=rank, world_size=num_ranks)
    world = World(rank, num_ranks, torch.device("cpu"))
    batch = pictures(8)
    own = TensorBatch(batch.images_BCHW[rank::num_ranks], batch.targets_BK[rank::num_ranks])
    expected = gradients(batch, 8)
    kinds: tuple[tuple[bool, Literal["sgd", "adam"]], ...] = ((False, "sgd"), (True, "sgd"), (True, "adam"))
    for sharded, kind in kinds:
        model = new_model(SMALL, 3, seed=1, sharded=sharded, ranks_per_replica=ranks_per_replica, recomputes=True)
        model = trained_head(model).double()
        fresh = trained_head(new_model(SMALL, 3, seed=1)).double()
        for name, value in model.state_dict().items():
            assert torch.equal(whole(value), fresh.state_dict()[name]), name
        optimizer = MasterOptimizer(model, 0.9, 1e-4, kind=kind)
        if sharded:  # every rank holds its part of weights, moments and gradients
            local = sum(part(value).numel() for value in optimizer.state().values())
            assert local < 0.52 * sum(value.numel() for value in optimizer.state().values())
        if num_ranks == 2 and not sharded:
            model.compile(backend="aot_eager", fullgraph=True, dynamic=False)
        module = distributed(world, model)
        result = train_step(module.train(), optimizer, own, softmax_loss, 0.1, 8 // num_ranks // 2).result()
        for name, value in optimizer.gradients().items():
            assert close(whole(value), expected[name]), (sharded, name)
        norm = torch.nn.utils.get_total_norm(list(expected.values()))
        assert result.gradient_norm == pytest.approx(norm.item(), rel=1e-9)
        store = LocalStore(Path(folder) / f"run-{sharded}-{kind}")
        save(store, world, optimizer.state(), step=1, attempt="a", stream={}, about={})
        # A checkpoint of shards fills a model that is whole, and the other way round.
        other = new_model(SMALL, 3, seed=9, sharded=not sharded).double()
        loaded = MasterOptimizer(other, 0.9, 1e-4, kind=kind)
        record = latest(store)
        load(store, world, record, loaded.state())
        stored = sum(file.num_bytes for file in record.files if file.name.endswith(".chunks"))
        each_once = sum(value.numel() * value.element_size() for value in optimizer.state().values())
        assert stored == each_once
        for name, value in optimizer.state().items():
            assert torch.equal(whole(loaded.state()[name]), whole(value)), name
    batch_norm = new_model("R14x0.5-BN", 3, seed=1)
    for buffer in batch_norm.buffers():
        buffer.fill_(rank)
    average_buffers(world, batch_norm)
    assert batch_norm.norm.running_mean.unique().tolist() == [(num_ranks - 1) / 2]
    with pytest.raises(ConfigError, match="SyncBN works on GPUs only"):
        distributed(world, new_model("R14x0.5-SyncBN", 3, seed=1))
    dist.destroy_process_group()


# Four ranks: two copies of the model, each shared by two ranks.
@pytest.mark.parametrize(("num_ranks", "ranks_per_replica"), [(2, None), (4, 2)])
def test_replicated_and_sharded_ranks_give_the_weights_and_gradients_of_one(
    tmp_path: Path, num_ranks: int, ranks_per_replica: int | None
) -> None:
    torch.multiprocessing.spawn(_rank, (num_ranks, str(tmp_path), ranks_per_replica), nprocs=num_ranks)


def test_a_compiled_network_gives_the_gradients_of_the_plain_one() -> None:
    batch = pictures(3)  # the second micro-batch has another size
    expected = gradients(batch, 2)
    model = trained_head(new_model(SMALL, 3, seed=1)).double().train()
    optimizer = MasterOptimizer(model, 0.0, 0.0)
    # All of compilation but the C++ compiler, which not every machine has.
    model.compile(backend="aot_eager", dynamic=False)
    train_step(model, optimizer, batch, softmax_loss, 0.0, 2)
    for name, value in optimizer.gradients().items():
        assert close(value, expected[name]), name


@pytest.mark.parametrize(
    ("name", "norm", "standardized"),
    [
        ("R14x0.5", GroupNorm, True),
        ("R14x0.5-GN", GroupNorm, False),
        ("R14x0.5-BN", nn.BatchNorm2d, False),
        ("R14x0.5-BN-WS", nn.BatchNorm2d, True),
        ("R14x0.5-SyncBN", nn.SyncBatchNorm, False),
    ],
)
def test_names_choose_normalisation_and_standardisation(name: str, norm: type, standardized: bool) -> None:
    model = new_model(name, 3, seed=0)
    norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm | nn.modules.batchnorm._NormBase)]
    convs = [module for module in model.modules() if isinstance(module, Conv2d)]
    assert {type(module) for module in norms} == {norm}
    assert {module.standardized for module in convs} == {standardized}
    assert len(norms) == 13
    assert model.head(torch.zeros(2, 1024, 1, 1)).shape == (2, 3)


def test_features_and_stage_maps_are_those_of_the_forward_pass() -> None:
    model = trained_head(new_model(SMALL, 3, seed=1)).eval()
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        maps = model.feature_maps(images)
        assert [tuple(one.shape[1:]) for one in maps] == [(128, 16, 24), (256, 8, 12), (512, 4, 6), (1024, 2, 3)]
        features = F.relu(model.norm(maps[-1])).mean(dim=(2, 3), keepdim=True)
        assert torch.equal(features, model.features(images))
        assert torch.equal(model.head(features), model(images))


def test_dropout_is_on_the_features_and_only_in_training() -> None:
    model = trained_head(new_model(SMALL, 3, seed=1, dropout=0.5))
    images = pictures(2).images_BCHW.float()
    seen: list[Tensor] = []
    model.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.train()(images)
        model.eval()(images)
    dropped = ((seen[0] == 0) & (seen[1] != 0)).sum() / (seen[1] != 0).sum()
    assert 0.3 < dropped < 0.7


def test_recomputing_keeps_only_the_inputs_of_units() -> None:
    kept: dict[bool, int] = {}
    for recomputes in (False, True):
        model = new_model(SMALL, 3, seed=1, recomputes=recomputes).train()
        saved: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, saved=saved: saved.update({tensor.data_ptr(): tensor.nbytes}) or tensor,
            lambda tensor: tensor,
        ):
            model(torch.randn(2, 3, 64, 64))
        kept[recomputes] = sum(saved.values())
    assert kept[True] < 0.5 * kept[False]
    assert len([module for module in model.modules() if isinstance(module, Bottleneck)]) == 4
