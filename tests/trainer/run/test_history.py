"""What a run keeps of its settings, what may differ from start to start, and what is changed on purpose."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import ConfigError, ResumeMismatch
from pipeline.dataset.dataset import Dataset
from pipeline.store.url import open_store
from tests.conftest import run_cli
from tests.trainer.runs import RECIPE, Stopped, assert_equal, config, final_state
from trainer.jobs.config import FinetuneConfig, PretrainConfig
from trainer.jobs.pretrain import pretrain
from trainer.run.folder import read_metrics
from trainer.run.history import changed, current_config, read_changes, settle
from trainer.step.ranks import alone


def stop_at(step: int) -> Callable[[dict[str, Any]], None]:
    def report(row: dict[str, Any]) -> None:
        if row["step"] == step:
            raise Stopped

    return report


@pytest.fixture
def begun(small_dataset: Dataset, tmp_path: Path) -> PretrainConfig:
    """A run that has a checkpoint of step 3."""
    settings = config(small_dataset, tmp_path / "run")
    with pytest.raises(Stopped):
        pretrain(settings, alone(), stop_at(4))
    return settings


def test_what_decides_how_a_run_is_computed_may_differ_and_changes_nothing(
    small_dataset: Dataset, begun: PretrainConfig, tmp_path: Path
) -> None:
    other = {"microbatch_size": 7, "checkpoint_every_steps": 2, "log_every_steps": 1, "keep_checkpoints": 9}
    pretrain(begun.model_copy(update={**other, "recomputes": True}), alone(), lambda row: None)
    pretrain(config(small_dataset, tmp_path / "whole"), alone(), lambda row: None)
    whole, resumed = final_state(tmp_path / "whole"), final_state(tmp_path / "run")
    for name, value in whole.items():
        assert (value - resumed[name]).abs().max() < 1e-4, name


def test_a_copied_run_goes_on_where_it_lies(small_dataset: Dataset, begun: PretrainConfig, tmp_path: Path) -> None:
    (tmp_path / "run").rename(tmp_path / "moved")
    rows: list[dict[str, Any]] = []
    pretrain(begun.model_copy(update={"out": str(tmp_path / "moved")}), alone(), rows.append)
    assert rows[0]["step"] == 4
    assert rows[-1]["step"] == 8


def test_what_differs_is_named_alone_with_the_way_to_change_it(begun: PretrainConfig) -> None:
    longer = begun.model_copy(update={"recipe": RECIPE.model_copy(update={"epochs": 3.0}), "seed": 1})
    with pytest.raises(ResumeMismatch) as error:
        pretrain(longer, alone(), lambda row: None)
    assert "recipe.epochs was 2.0, is 3.0; seed was 0, is 1" in str(error.value)
    assert "--change recipe.epochs=3.0" in str(error.value)
    assert "decay_epochs" not in str(error.value)


def test_before_the_first_checkpoint_nothing_is_fixed(small_dataset: Dataset, tmp_path: Path) -> None:
    settings = config(small_dataset, tmp_path, seed=1)
    with pytest.raises(Stopped):
        pretrain(settings, alone(), stop_at(2))
    pretrain(config(small_dataset, tmp_path, seed=2), alone(), lambda row: None)
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 2


def test_another_commands_folder_is_refused(begun: PretrainConfig) -> None:
    with pytest.raises(ConfigError, match="holds something else"):
        current_config(open_store(begun.out), FinetuneConfig)


def test_runs_of_a_release_without_a_field_go_on(begun: PretrainConfig) -> None:
    path = Path(begun.out) / "run.json"
    stored = json.loads(path.read_text())
    for name in ("recomputes", "sharded", "init", "branch", "loader_log", "precision"):
        del stored[name]
    del stored["recipe"]["flip"]
    path.write_text(json.dumps(stored))
    pretrain(begun, alone(), lambda row: None)
    assert read_metrics(open_store(begun.out))[-1]["step"] == 8


def test_a_changed_learning_rate_holds_from_its_step_on_and_the_first_command_keeps_working(
    begun: PretrainConfig,
) -> None:
    store = open_store(begun.out)
    new = changed(store, settle(store, begun), {"recipe.lr_per_256": 0.06}, epochs_done=1.0)
    assert new.recipe.lr_per_256 == 0.06
    assert [(change.step, change.before, change.after) for change in read_changes(store)] == [
        (3, {"recipe.lr_per_256": 0.03}, {"recipe.lr_per_256": 0.06})
    ]
    rows: list[dict[str, Any]] = []
    pretrain(begun, alone(), rows.append)  # the command that began it
    rates = {row["step"]: row["learning_rate"] for row in rows}
    assert rates[6] == pytest.approx(2 * 0.03 * 24 / 256)
    assert settle(store, begun).recipe.lr_per_256 == 0.06


def test_what_a_run_is_cannot_be_changed(begun: PretrainConfig) -> None:
    store = open_store(begun.out)
    with pytest.raises(ConfigError, match="a run keeps its model"):
        changed(store, begun, {"model": "R26x1"}, epochs_done=0.0)
    with pytest.raises(ConfigError, match=r"--change recipe.momentum: .* \(got 2\)"):
        changed(store, begun, {"recipe.momentum": 2}, epochs_done=0.0)
    assert read_changes(store) == []


def test_another_batch_goes_on_at_the_same_place_of_the_schedule(begun: PretrainConfig) -> None:
    store = open_store(begun.out)
    # Three steps of 24 of 90 pictures: 0.8 epochs. With 12 a batch the whole run would have 15 steps, six of them done.
    changed(store, settle(store, begun), {"recipe.batch_size": 12}, epochs_done=0.8)
    rows: list[dict[str, Any]] = []
    pretrain(begun, alone(), rows.append)
    assert rows[-1]["num_steps"] == rows[-1]["step"] == 3 + 15 - 6
    decayed = [row["step"] for row in rows if row["learning_rate"] < 0.03 * 12 / 256 * 0.5]
    assert min(decayed) >= 3 + 11 - 6  # the rate falls at 1.5 epochs, 11 steps of 12
    pretrain(begun, alone(), lambda row: None)  # and again, it is finished


def test_a_branch_is_the_run_it_leaves(small_dataset: Dataset, begun: PretrainConfig, tmp_path: Path) -> None:
    pretrain(config(small_dataset, tmp_path / "whole"), alone(), lambda row: None)
    done = run_cli(
        "trainer", "pretrain", small_dataset.store.url, str(tmp_path / "branch"), "--branch", f"{begun.out}@3",
        "--workers", "0", "--set", "checkpoint_every_steps=3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "resumed from step 3 of 8" in done.stderr
    assert_equal(final_state(tmp_path / "whole"), final_state(tmp_path / "branch"))
    stored = json.loads((tmp_path / "branch" / "run.json").read_text())
    assert stored["branch"] == {"run": begun.out, "step": 3, "skip_steps": 0}


def test_a_branch_leaves_out_batches_and_takes_other_settings(
    small_dataset: Dataset, begun: PretrainConfig, tmp_path: Path
) -> None:
    command = (
        "trainer", "pretrain", small_dataset.store.url, str(tmp_path / "branch"), "--branch", begun.out,
        "--workers", "0", "--set", "checkpoint_every_steps=2",
    )  # fmt: skip
    done = run_cli(*command, "--skip-steps", "2", "--set", "recipe.lr_per_256=0.01")
    assert done.returncode == 0, done.stderr
    record = json.loads(sorted((tmp_path / "branch" / "checkpoints").glob("*.json"))[-1].read_text())
    assert (record["step"], record["stream"]["step"]) == (8, 10)
    assert read_metrics(open_store(str(tmp_path / "branch")))[-1]["learning_rate"] < 0.01 * 24 / 256 + 1e-9


def test_weights_of_a_run_are_a_start_with_a_schedule_of_its_own(
    small_dataset: Dataset, begun: PretrainConfig, tmp_path: Path
) -> None:
    options = [f"recipe.{name}={json.dumps(value)}" for name, value in RECIPE.model_dump(mode="json").items()]
    settings = [part for option in (*options, "num_lanes=12") for part in ("--set", option)]
    command = ("trainer", "pretrain", small_dataset.store.url, str(tmp_path / "new"), "--workers", "0", *settings)
    done = run_cli(*command, "--init", begun.out)
    assert done.returncode == 0, done.stderr
    assert "starting from the weights of" in done.stderr
    assert "from step 0 of 8" in done.stderr
    stored = json.loads((tmp_path / "new" / "run.json").read_text())
    assert (stored["init"], stored["init_step"], stored["model"]) == (begun.out, 3, "R14x0.5")
    again = run_cli(*command)
    assert again.returncode == 0, again.stderr
    assert "finished already at step 8" in again.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--init", "nowhere"], "holds no checkpoint"),
        (["--init", "{run}@5"], "has no checkpoint of step 5; it has those of steps 3"),
        (["--branch", "{run}@5"], "has no checkpoint of step 5"),
        (["--branch", "{run}", "--init", "{run}"], "not from both"),
        (["--init", "{run}", "--model", "R26x1"], "holds R14x0.5, the run is of R26x1"),
        (["--change", "recipe.epochs=3"], "has no checkpoint yet"),
    ],
)
def test_a_start_that_cannot_be_gets_one_sentence(
    small_dataset: Dataset, begun: PretrainConfig, tmp_path: Path, options: list[str], said: str
) -> None:
    filled = [option.format(run=begun.out) for option in options]
    short = ["--set", "recipe.batch_size=16", "--recipe", "bit-s", "--workers", "0"]
    done = run_cli("trainer", "pretrain", small_dataset.store.url, str(tmp_path / "new"), *filled, *short)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
