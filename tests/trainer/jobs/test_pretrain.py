"""Pretraining in one process: bitwise resume, learning, refusals. No Ray."""

import json
from pathlib import Path
from typing import Literal

import pytest
import torch

from pipeline.base.errors import ConfigError, NonFinite, ResumeMismatch
from pipeline.dataset.dataset import Dataset, open_dataset
from pipeline.store.url import open_store
from tests.conftest import class_folders, pack, run_cli
from tests.trainer.runs import RECIPE, Stopped, assert_equal, config, final_state
from trainer.checkpoint.record import committed, latest, read_record, steps
from trainer.checkpoint.sharded import load
from trainer.checkpoint.weights import load_chosen_model
from trainer.jobs.checks import check_pretrain, pretrain_warnings
from trainer.jobs.config import Branch
from trainer.jobs.pretrain import pretrain
from trainer.model.build import new_model
from trainer.recipes.held_out import HeldOut, ProbeSet
from trainer.recipes.pretrain import PretrainRecipe
from trainer.run.metrics import read_metrics
from trainer.run.progress import metrics_line
from trainer.step.optimizer import MasterOptimizer
from trainer.step.ranks import alone


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_resume_from_every_checkpoint_is_bitwise_equal(
    small_dataset: Dataset, tmp_path: Path, optimizer: Literal["sgd", "adam"]
) -> None:
    recipe = RECIPE.model_copy(update={"optimizer": optimizer})
    whole, broken = (
        config(small_dataset, tmp_path / name).model_copy(update={"recipe": recipe}) for name in ("whole", "broken")
    )
    pretrain(whole, alone(), lambda row: None)
    expected = final_state(whole.out, optimizer)

    def stop_after(step: int) -> object:
        def report(row: dict[str, object]) -> None:
            if row["step"] >= step:
                raise Stopped

        return report

    for step in (2, 4, 6):
        with pytest.raises(Stopped):
            pretrain(broken, alone(), stop_after(step))
    pretrain(broken, alone(), lambda row: None)
    assert_equal(expected, final_state(broken.out, optimizer))
    steps = [row["step"] for row in read_metrics(open_store(broken.out))]
    assert steps == [2, 4, 6, 8]


def test_a_finished_run_started_again_changes_nothing(small_dataset: Dataset, tmp_path: Path) -> None:
    pretrain(config(small_dataset, tmp_path), alone(), lambda row: None)
    before = [record.model_dump() for record in committed(open_store(str(tmp_path)))]
    pretrain(config(small_dataset, tmp_path), alone(), lambda row: None)
    assert before == [record.model_dump() for record in committed(open_store(str(tmp_path)))]


def test_other_settings_on_the_same_folder_are_refused_by_name(small_dataset: Dataset, tmp_path: Path) -> None:
    pretrain(config(small_dataset, tmp_path), alone(), lambda row: None)
    with pytest.raises(ResumeMismatch, match="seed was 0, is 1"):
        pretrain(config(small_dataset, tmp_path, seed=1), alone(), lambda row: None)


def test_training_learns(small_dataset: Dataset, tmp_path: Path) -> None:
    longer = RECIPE.model_copy(update={"epochs": 12.0, "decay_epochs": (10.0,), "lr_per_256": 0.1})
    rows: list[dict[str, object]] = []
    settings = config(small_dataset, tmp_path).model_copy(update={"recipe": longer})
    pretrain(settings, alone(), rows.append)
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]


def test_a_run_that_diverges_names_the_step_and_its_samples(small_dataset: Dataset, tmp_path: Path) -> None:
    wild = RECIPE.model_copy(update={"lr_per_256": 1e30, "warmup_steps": 0})
    settings = config(small_dataset, tmp_path).model_copy(update={"recipe": wild})
    with pytest.raises(NonFinite, match=r"step 1, rank 0, lanes 0 to 11, samples 0000.*nothing was updated"):
        pretrain(settings, alone(), lambda row: None)
    assert latest(open_store(str(tmp_path))) is None


def test_the_average_of_the_weights_is_kept_through_a_restart_and_is_what_others_load(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    def weights(out: Path, step: int, prefix: str) -> dict[str, torch.Tensor]:
        record = read_record(open_store(str(out)), step)
        model = new_model("R14x0.5", 3, seed=1)
        state = {
            name: value.detach().clone()
            for name, value in MasterOptimizer(model, 0.9, 0.0, average_decay=0.5).state().items()
        }
        load(open_store(str(out)), alone(), record, state)
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    averaged = {"average_decay": 0.75, "checkpoint_every_steps": 1, "keep_checkpoints": 20}
    pretrain(config(small_dataset, whole).model_copy(update=averaged), alone(), lambda row: None)

    def stop(row: dict[str, object]) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        pretrain(config(small_dataset, broken).model_copy(update=averaged), alone(), stop)
    pretrain(config(small_dataset, broken).model_copy(update=averaged), alone(), lambda row: None)
    last = steps(open_store(str(whole)))[-1]
    expected = weights(whole, 1, "average/")
    for step in range(2, last + 1):
        now = weights(whole, step, "model/")
        expected = {name: value * 0.75 + now[name] * 0.25 for name, value in expected.items()}
    found = weights(whole, last, "average/")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    assert_equal(found, weights(broken, last, "average/"))
    model, _ = load_chosen_model(open_store(str(broken)), alone(), None)
    assert_equal(found, {name: value.detach() for name, value in model.named_parameters()})


def test_no_more_steps_are_left_out_than_may_be_however_often_the_run_is_started(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    wild = RECIPE.model_copy(update={"lr_per_256": 1e30, "warmup_steps": 0})
    settings = config(small_dataset, tmp_path, max_skipped_steps=2).model_copy(
        update={"recipe": wild, "checkpoint_every_steps": 100, "log_every_steps": 1}
    )
    for _ in range(2):
        with pytest.raises(NonFinite, match=r"step 3, rank 0, lanes 0 to 11, samples 0000.*nothing was updated"):
            pretrain(settings, alone(), metrics_line)
        kept = [json.loads(path.read_bytes()) for path in sorted((tmp_path / "skipped").iterdir())]
        assert [row["step"] for row in kept] == [1, 2]
        assert all("loss" in row["why"] for row in kept)


@pytest.mark.parametrize(
    ("fields", "workers", "said"),
    [
        ({"model": "R51x1"}, 1, "R51x1"),
        ({"num_lanes": 5}, 1, "not a multiple of 5 lanes"),
        ({"num_lanes": 2}, 5, "5 workers cannot share 2 lanes"),
        ({"model": "R14x0.5-BN", "recomputes": True}, 1, "counts statistics of R14x0.5-BN twice a step"),
    ],
)
def test_what_could_not_run_is_refused_before_it_starts(small_dataset, fields, workers, said) -> None:
    with pytest.raises(ConfigError, match=said):
        check_pretrain(config(small_dataset, "x").model_copy(update=fields), workers)


def test_starts_and_measurements_that_do_not_fit_are_refused_before_they_begin(
    small_dataset: Dataset, pretrained: Path, tmp_path: Path
) -> None:
    picture = next(class_folders(tmp_path / "in", classes=1, each=1).rglob("*.jpg"))
    (tmp_path / "in" / "zebra").mkdir()
    picture.rename(tmp_path / "in" / "zebra" / "0.jpg")
    others = pack(tmp_path / "in", str(tmp_path / "others"))
    run, step = str(pretrained), steps(open_store(str(pretrained)))[-1]
    there = {"data": others.store.url, "data_version": 1}
    branch = Branch(run=run, step=step, epochs_done=1.0)
    probe = ProbeSet(name="p", train=small_dataset.store.url, train_version=1, test=others.store.url, test_version=1)
    wrong: list[tuple[dict[str, object], str]] = [
        ({"model": "R26x1", "init": run, "init_step": step}, "--init .* holds R14x0.5, the run is of R26x1"),
        ({"model": "R26x1", "branch": branch}, "--branch .* holds R14x0.5, the run is of R26x1"),
        ({"branch": branch, **there}, "--branch .* has learned other classes than those of"),
        ({"held_out": HeldOut(**there)}, "zebra"),
        ({"probes": (probe,)}, "zebra"),
    ]
    for fields, said in wrong:
        with pytest.raises(ConfigError, match=said):
            check_pretrain(config(small_dataset, tmp_path / "out").model_copy(update=fields), 1)


def test_a_disk_without_room_for_checkpoints_is_said_in_a_sentence(small_dataset: Dataset, tiny_disk: Path) -> None:
    settings = ("recipe.epochs=1", "recipe.batch_size=16", "recipe.warmup_steps=0", "recipe.resolution_px=32")
    options = [part for setting in settings for part in ("--set", setting)]
    command = ("pretrain", small_dataset.store.url, str(tiny_disk / "out"), "--model", "R14x0.5", "--recipe", "bit-s")
    done = run_cli("trainer", *command, "--workers", "0", *options)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"{tiny_disk}" in line
    assert "free and the run needs" in line
    assert "Traceback" not in done.stderr
    assert steps(open_store(str(tiny_disk / "out"))) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("recipe.batch_size=512",), "an epoch (90 pictures) is shorter than a batch (512)"),
        (("recipe.batch_size=32", "recipe.warmup_steps=5000"), "the warm-up (5,000 steps) is longer than the run"),
    ],
)
def test_settings_with_which_little_is_learned_get_a_warning_with_the_numbers(
    small_dataset: Dataset, settings: tuple[str, ...], said: str
) -> None:
    values = {"loss": "softmax", "epochs": 2, "decay_epochs": (1,), "resolution_px": 32}
    values |= {
        name.removeprefix("recipe."): int(value) for name, _, value in (each.partition("=") for each in settings)
    }
    found = config(small_dataset, "x").model_copy(update={"recipe": PretrainRecipe(**values), "num_lanes": 16})
    assert [warning for warning in pretrain_warnings(found) if said in warning]


def test_softmax_on_pictures_of_several_labels_gets_a_notice(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "in", classes=2, each=3)
    rows = [{"image": str(path), "label": [path.parent.name, "both"]} for path in sorted(folder.rglob("*.jpg"))]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run_cli("pipeline", "shard", str(tmp_path / "labels.jsonl"), str(tmp_path / "set"))
    assert done.returncode == 0, done.stderr
    found = [*pretrain_warnings(config(open_dataset(str(tmp_path / "set")), "x"))]
    assert [warning for warning in found if "several labels: softmax shares the target" in warning]
