"""Measurements while a run trains: counted exactly, on any number of ranks, without a trace in what is learned."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, strategies as st
from torch import Tensor

from pipeline.dataset.dataset import Dataset, open_dataset
from pipeline.store.url import open_store
from pipeline.streaming.selection import Selection
from tests.conftest import class_folders, pack, run_cli
from tests.trainer.runs import assert_equal, config, final_state
from trainer.checkpoint.record import steps
from trainer.checkpoint.retention import Retention, kept_steps
from trainer.checkpoint.weights import load_chosen_model
from trainer.jobs.config import EvaluateConfig
from trainer.jobs.evaluate import evaluate
from trainer.jobs.pretrain import pretrain
from trainer.model.build import new_model
from trainer.recipes.held_out import HeldOut, ProbeSet
from trainer.run.evaluations import best_of, best_step, read_evaluations
from trainer.run.held_out import Evaluation, Labelled, Probe, measure
from trainer.step.losses import LOSSES
from trainer.step.optimizer import MasterOptimizer
from trainer.step.ranks import World, alone, distributed
from trainer.step.step import train_step
from trainer.step.tensors import TensorBatch


@pytest.fixture(scope="module")
def other_set(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twenty-one other pictures of the same classes."""
    folder = tmp_path_factory.mktemp("other")
    return pack(class_folders(folder / "in", each=7, seed=500), str(folder / "set"))


@pytest.mark.parametrize("average_decay", [None, 0.5])
def test_a_run_is_measured_as_evaluate_measures_its_checkpoint(
    small_dataset: Dataset, other_set: Dataset, tmp_path: Path, average_decay: float | None
) -> None:
    held_out = HeldOut(data=other_set.store.url, data_version=1)
    settings = config(
        small_dataset, tmp_path / "run", held_out=held_out, evaluate_every_steps=4, average_decay=average_decay
    )
    pretrain(settings, alone(), lambda row: None)
    rows = read_evaluations(open_store(str(tmp_path / "run")))
    assert [row["step"] for row in rows] == [4, 8]
    for row in rows:
        found: list[dict[str, object]] = []
        evaluate(
            EvaluateConfig(
                run=str(tmp_path / "run"),
                step=row["step"],
                data=other_set.store.url,
                data_version=1,
                out=str(tmp_path / f"evaluated-{row['step']}"),
            ),
            alone(),
            found.append,
        )
        names = ("accuracy", "low", "high", "num_correct", "num_test")
        assert [row["held_out"][name] for name in names] == [found[0][name] for name in names]
        model, _ = load_chosen_model(open_store(str(tmp_path / "run")), alone(), row["step"])
        labelled = Labelled(Selection(other_set), tuple(range(len(other_set.classes))))
        again = measure(model, Evaluation(4, labelled, (), 32, batch_size=8), alone(), LOSSES[settings.recipe.loss])
        assert row["held_out"]["loss"] == pytest.approx(again["held_out"]["loss"], rel=1e-5)


def test_measuring_changes_nothing_of_what_is_learned(
    small_dataset: Dataset, other_set: Dataset, tmp_path: Path
) -> None:
    held_out = HeldOut(data=other_set.store.url, data_version=1)
    probe = ProbeSet(
        name="own", train=small_dataset.store.url, train_version=1, test=other_set.store.url, test_version=1
    )
    pretrain(config(small_dataset, tmp_path / "plain"), alone(), lambda row: None)
    measured = config(small_dataset, tmp_path / "measured", held_out=held_out, probes=(probe,), evaluate_every_steps=1)
    pretrain(measured, alone(), lambda row: None)
    assert_equal(final_state(tmp_path / "plain"), final_state(tmp_path / "measured"))
    (last,) = read_evaluations(open_store(str(tmp_path / "measured")))[-1:]
    assert set(last["few_shot"]["own"]) == {"1", "5", "10", "25"}
    assert all(len(found["seeds"]) == 3 for found in last["few_shot"]["own"].values())


def test_the_best_checkpoint_is_kept_and_can_be_named(small_dataset: Dataset, tmp_path: Path) -> None:
    held_out = HeldOut(num_samples=30, data_version=1)
    chosen = config(small_dataset, tmp_path, held_out=held_out, evaluate_every_steps=1, keep_checkpoints=1)
    pretrain(chosen, alone(), lambda row: None)
    store = open_store(str(tmp_path))
    rows = read_evaluations(store)
    assert {row["held_out"]["num_test"] for row in rows} == {30}
    best = best_step(store)
    assert best == best_of(rows, [row["step"] for row in rows])
    assert set(steps(store)) == {best, rows[-1]["step"]}
    out = tmp_path / "evaluated"
    done = run_cli("trainer", "evaluate", f"{tmp_path}@best", small_dataset.store.url, str(out), "--workers", "0")
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "result.json").read_bytes())["step"] == best


def test_a_run_without_measurements_has_no_best_checkpoint(pretrained: Path, tmp_path: Path) -> None:
    done = run_cli("trainer", "evaluate", f"{pretrained}@best", "x", str(tmp_path / "out"), "--workers", "0")
    assert done.returncode == 1
    assert "has no checkpoint with a held-out accuracy, so none is the best; train with --held-out" in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [("90", "that is 90 of 90 pictures"), ("0.1%", "that is 0 of 90 pictures"), ("nowhere", "nowhere")],
)
def test_what_cannot_be_held_out_is_refused_in_a_sentence(
    small_dataset: Dataset, tmp_path: Path, text: str, said: str
) -> None:
    command = ("pretrain", small_dataset.store.url, str(tmp_path / "out"), "--workers", "0", "--held-out", text)
    done = run_cli("trainer", *command)
    assert done.returncode != 0
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


@given(
    st.lists(st.integers(1, 200), min_size=1, unique=True).map(sorted),
    st.integers(1, 5),
    st.none() | st.integers(1, 50),
    st.data(),
)
def test_the_newest_the_best_and_each_so_many_steps_are_kept(
    found: list[int], newest: int, every_steps: int | None, data: st.DataObject
) -> None:
    best = data.draw(st.sampled_from(found))
    kept = kept_steps(found, Retention(newest=newest, every_steps=every_steps), [best])
    assert {*found[-newest:], best} <= set(kept) <= set(found)
    for step in set(found) - {*found[-newest:], best}:
        assert (step in kept) == (every_steps is not None and step % every_steps == 0)


def test_steps_to_keep_are_saved_whatever_the_interval_between_checkpoints(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    by_time = config(small_dataset, tmp_path).model_copy(update={"checkpoint_every_steps": None})
    pretrain(by_time.model_copy(update={"keep_every_steps": 4, "keep_checkpoints": 1}), alone(), lambda row: None)
    found = steps(open_store(str(tmp_path)))
    assert set(range(4, found[-1] + 1, 4)) <= set(found)
    assert len(found) > 1


def test_three_ranks_measure_what_one_measures(small_dataset: Dataset, other_set: Dataset, tmp_path: Path) -> None:
    torch.save(_figures(alone(), small_dataset, other_set), tmp_path / "alone.pt")
    torch.multiprocessing.spawn(
        _rank, (3, str(tmp_path), small_dataset.store.url, other_set.store.url), nprocs=3, join=True
    )
    one = torch.load(tmp_path / "alone.pt")
    for rank in range(3):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["few_shot"] == one["few_shot"]
        assert found["held_out"].pop("loss") == pytest.approx(one["held_out"]["loss"], rel=1e-5)
        assert found["held_out"] == {name: value for name, value in one["held_out"].items() if name != "loss"}


def _figures(world: World, train: Dataset, test: Dataset) -> dict[str, object]:
    labels = tuple(range(len(train.classes)))
    model = new_model("R14x0.5", len(labels), seed=3)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(model.head.fc.weight, generator=generator)
    probe = Probe("own", Labelled(Selection(train), labels), Labelled(Selection(test), labels))
    evaluation = Evaluation(1, Labelled(Selection(test), labels), (probe,), 32, batch_size=4)
    return measure(model, evaluation, world, LOSSES["softmax"])


def _rank(rank: int, num_ranks: int, folder: str, train: str, test: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/ranks", rank=rank, world_size=num_ranks)
    try:
        world = World(rank, num_ranks, torch.device("cpu"))
        torch.save(_figures(world, open_dataset(train), open_dataset(test)), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def _weights_after_two_steps(world: World, test: Dataset, *, measured: bool, recomputes: bool) -> dict[str, Tensor]:
    model = new_model("R14x0.5", 3, seed=3, sharded=True, recomputes=recomputes)
    optimizer, module = MasterOptimizer(model, 0.9, 1e-4), distributed(world, model).train()
    evaluation = Evaluation(1, Labelled(Selection(test), (0, 1, 2)), (), 32, batch_size=4)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(world.rank))
    for _ in range(2):
        batch = TensorBatch(images, torch.eye(3)[[0, 1, 2, 0]])
        train_step(module, optimizer, batch, LOSSES["softmax"], 0.1, 2, precision="bfloat16").result()
        if measured:
            measure(model, evaluation, world, LOSSES["softmax"])
    return {name: value.full_tensor() for name, value in optimizer.state().items()}


def _rank_that_shares(rank: int, num_ranks: int, folder: str, test: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/ranks", rank=rank, world_size=num_ranks)
    try:
        world = World(rank, num_ranks, torch.device("cpu"))
        for recomputes in (False, True):
            calm, measured = (
                _weights_after_two_steps(world, open_dataset(test), measured=is_measured, recomputes=recomputes)
                for is_measured in (False, True)
            )
            assert_equal(calm, measured)
    finally:
        dist.destroy_process_group()


def test_measuring_a_network_that_ranks_share_changes_nothing_of_what_is_learned(
    other_set: Dataset, tmp_path: Path
) -> None:
    torch.multiprocessing.spawn(_rank_that_shares, (2, str(tmp_path), other_set.store.url), nprocs=2, join=True)


def test_a_network_that_trains_goes_on_training_after_a_measurement(other_set: Dataset) -> None:
    model = new_model("R14x0.5", 3, seed=0).train()
    evaluation = Evaluation(1, Labelled(Selection(other_set), (0, 1, 2)), (), 32, batch_size=8)
    figures = measure(model, evaluation, alone(), LOSSES["softmax"])
    assert model.training
    assert figures["held_out"]["loss"] == pytest.approx(np.log(3), rel=1e-6)  # a head of zeros knows nothing
