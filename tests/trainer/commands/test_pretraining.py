"""Recipes on the command line: they scale with what is set, and nothing of them changes without a word."""

import json
from pathlib import Path

import pytest

from pipeline.dataset.dataset import Dataset
from pipeline.store.url import open_store
from tests.conftest import run_cli
from tests.trainer.runs import RECIPE, config
from trainer.commands.pretraining import _recipe
from trainer.jobs.pretrain import pretrain
from trainer.recipes.pretrain import bit_s
from trainer.run.metrics import read_metrics
from trainer.step.ranks import alone


def test_epochs_batch_and_set_scale_the_whole_schedule(small_dataset: Dataset, tmp_path: Path) -> None:
    done = run_cli(
        "trainer", "pretrain", small_dataset.store.url, str(tmp_path / "run"), "--recipe", "bit-s", "--dry-run",
        "--set", "recipe.epochs=900", "--set", "recipe.batch_size=32", "--set", "recipe.warmup_steps=10",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("schedule: 2,531 steps of 32,")
    for line in (  # 0.03 x 32/256; decays at 30, 60 and 80 of 90
        "learning rate 0.00375 from step 10 ", "learning rate 0.000375 from step 844 (epoch 300)",
        "learning rate 3.75e-05 from step 1,688 (epoch 600)", "learning rate 3.75e-06 from step 2,250 (epoch 800)",
    ):  # fmt: skip
        assert line in done.stdout
    assert "warning" not in done.stderr


def test_a_run_of_an_older_release_keeps_the_decays_it_began_with() -> None:
    class Present:
        recipe = bit_s().model_copy(update={"epochs": 9})

    values = {"recipe.epochs": 9}
    assert _recipe("bit-s", values, Present)["decay_epochs"] == (30, 60, 80)
    assert _recipe("bit-s", values, None)["decay_epochs"] == (3, 6, 8)
    Present.recipe = Present.recipe.model_copy(update={"decay_epochs": (3, 6, 8)})
    assert _recipe("bit-s", values, Present)["decay_epochs"] == (3, 6, 8)
    assert _recipe("bit-s", values | {"recipe.decay_epochs": [5]}, None)["decay_epochs"] == (
        30,
        60,
        80,
    )  # --set follows


def test_a_decay_after_the_end_is_named(small_dataset: Dataset, tmp_path: Path) -> None:
    done = run_cli(
        "trainer", "pretrain", small_dataset.store.url, str(tmp_path / "run"), "--dry-run", "--set", "recipe.epochs=9",
        "--set", "recipe.decay_epochs=[8,9,30]",
    )  # fmt: skip
    assert "the run ends after 9 epochs, before the learning rate is divided by ten at epoch 9, 30; set" in done.stderr


def test_a_branch_keeps_its_recipe_unless_another_is_given_and_then_says_what_differs(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    pretrain(config(small_dataset, tmp_path / "run"), alone(), lambda row: None)
    branch = ("trainer", "pretrain", small_dataset.store.url, str(tmp_path / "new"), "--dry-run", "--workers", "0",
              "--branch", str(tmp_path / "run"))  # fmt: skip
    kept = run_cli(*branch)
    assert kept.returncode == 0, kept.stderr
    assert "the recipe is not" not in kept.stderr
    assert f"steps of {RECIPE.batch_size}," in kept.stdout
    other = run_cli(*branch, "--recipe", "bit-m")
    assert f"the recipe is not that of {tmp_path / 'run'}: loss was softmax, is sigmoid; epochs was 2.0, is 90.0; " in (
        other.stderr
    )
    assert "batch_size was 24, is 4096" in other.stderr
    one = run_cli(*branch, "--set", "recipe.epochs=3")
    assert f"the recipe is not that of {tmp_path / 'run'}: epochs was 2.0, is 3.0\n" in one.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("more", "clip_norm"), [([], 1.0), (["--set", "clip_norm=2"], 2.0)])
def test_big_visions_recipe_clips_and_begins_with_small_probabilities(
    small_dataset: Dataset, tmp_path: Path, more: list[str], clip_norm: float
) -> None:
    done = run_cli(
        "trainer", "pretrain", small_dataset.store.url, str(tmp_path / "run"), "--recipe", "bv-i21k", "--workers", "0",
        "--model", "R14x0.5", "--set", "recipe.epochs=0.5", "--set", "recipe.batch_size=24", "--set",
        "recipe.resolution_px=32", "--set", "num_lanes=2", "--set", "log_every_steps=1", *more,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    store = open_store(str(tmp_path / "run"))
    assert json.loads(store.read("run.json"))["clip_norm"] == clip_norm
    assert read_metrics(store)[0]["loss"] == pytest.approx(10.0, abs=0.01)  # bias -10: one label a picture costs 10
