"""What a run keeps of its settings, what may differ from start to start, and what is changed on purpose."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from pipeline.base.errors import ConfigError, ResumeMismatch
from pipeline.dataset.dataset import Dataset
from pipeline.store.url import open_store
from tests.conftest import class_folders, pack, run_cli
from tests.trainer.runs import RECIPE, Stopped, assert_equal, config, final_state
from trainer.checkpoint.record import require_latest
from trainer.checkpoint.weights import load_chosen_model
from trainer.formats.places import holds_weights
from trainer.jobs.config import Branch, FinetuneConfig, PretrainConfig
from trainer.jobs.pretrain import pretrain
from trainer.model.build import new_model
from trainer.run.classes import stored_classes, write_classes
from trainer.run.history import changed, current_config, read_changes, settle, with_changes
from trainer.run.metrics import read_metrics
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
    assert rows[-1]["epoch"] == 2.0
    decayed = [row["step"] for row in rows if row["learning_rate"] < 0.03 * 12 / 256 * 0.5]
    assert min(decayed) >= 3 + 11 - 6  # the rate falls at 1.5 epochs, 11 steps of 12
    pretrain(begun, alone(), lambda row: None)  # and again, it is finished


def test_after_a_damaged_checkpoint_a_new_order_begins_once(begun: PretrainConfig) -> None:
    store = open_store(begun.out)
    pretrain(begun, alone(), lambda row: None)  # checkpoints of steps 3, 6, 8
    changed(store, settle(store, begun), {"recipe.batch_size": 12, "recipe.epochs": 3}, epochs_done=8 * 24 / 90)
    for step in (6, 8):
        folder = json.loads(store.read(f"checkpoints/{step:09d}.json"))["folder"]
        next((Path(begun.out) / folder).iterdir()).unlink()
    with pytest.raises(Stopped):
        pretrain(begun, alone(), stop_at(8))  # from step 3; it has a checkpoint of step 6, before that of the change
    pretrain(begun, alone(), lambda row: None)
    newest = require_latest(store)
    assert (newest.stream["batch_size"], newest.stream["step"]) == (12, newest.step - 3)


def test_a_change_that_could_not_run_is_not_recorded(begun: PretrainConfig, small_dataset: Dataset) -> None:
    command = ("trainer", "pretrain", small_dataset.store.url, begun.out, "--workers", "0", "--change")
    for change, said in (
        ("recipe.batch_size=17", "a batch of 17 is not a multiple of 12 lanes"),
        ("out=elsewhere", "a run keeps its out"),
        ("recipe.optimizer=adam", "a run keeps its recipe.optimizer"),
    ):
        done = run_cli(*command, change)
        assert done.returncode == 2
        assert said in done.stderr
    assert read_changes(open_store(begun.out)) == []


def test_a_whole_record_is_changed_field_by_field(begun: PretrainConfig) -> None:
    store, recipe = open_store(begun.out), begun.recipe.model_copy(update={"batch_size": 12})
    new = changed(store, settle(store, begun), {"recipe": recipe.model_dump(mode="json")}, epochs_done=0.8)
    assert new.recipe.batch_size == 12
    (change,) = read_changes(store)
    assert (change.after, change.begins_order) == ({"recipe.batch_size": 12}, True)


def test_a_record_that_was_not_there_or_is_to_go_is_changed_as_a_whole(begun: PretrainConfig) -> None:
    store, held_out = open_store(begun.out), {"num_samples": 5, "data": None, "data_version": 1, "seed": 0}
    first = settle(store, begun)
    new = changed(store, first, {"held_out": held_out}, epochs_done=0.8)
    assert new.held_out is not None
    assert current_config(store, PretrainConfig) == new
    assert changed(store, new, {"held_out": None}, epochs_done=0.8) == first
    assert current_config(store, PretrainConfig) == first
    assert read_changes(store)[-1].before == {"held_out": held_out}


def test_a_branch_cannot_be_changed_away(begun: PretrainConfig, tmp_path: Path) -> None:
    left = Branch(run=begun.out, step=3, epochs_done=0.8)
    branch = begun.model_copy(update={"out": str(tmp_path / "branch"), "branch": left})
    with pytest.raises(ConfigError, match="a run keeps its branch"):
        with_changes(branch, {"branch": None})


def test_the_header_of_the_first_command_has_the_steps_of_the_changed_run(
    begun: PretrainConfig, small_dataset: Dataset
) -> None:
    store = open_store(begun.out)
    changed(store, settle(store, begun), {"recipe.epochs": 3, "recipe.batch_size": 12}, epochs_done=0.8)
    options = [f"recipe.{name}={json.dumps(value)}" for name, value in RECIPE.model_dump(mode="json").items()]
    settings = [part for option in (*options, "num_lanes=12") for part in ("--set", option)]
    done = run_cli(
        "trainer", "pretrain", small_dataset.store.url, begun.out, "--model", "R14x0.5", "--workers", "0", *settings
    )
    assert done.returncode == 0, done.stderr
    assert "19 steps of 12 pictures, 3 epochs" in done.stderr  # three of 24, 16 of 12 and what is left of 22 by then
    assert "step 19/19" in done.stdout


def test_a_start_that_learned_nothing_leaves_no_class_names(tmp_path: Path) -> None:
    names = ("ant", "bee", "wasp")
    first, second = (pack(class_folders(tmp_path / name, each=8), str(tmp_path / f"{name}-set")) for name in "ab")
    write_classes(open_store(str(tmp_path / "run")), names)
    pretrain(config(first, tmp_path / "run"), alone(), lambda row: None)
    assert stored_classes(open_store(str(tmp_path / "run"))) == first.classes
    other = class_folders(tmp_path / "c", each=8)
    (other / "class1").rename(other / "wasp")
    done = run_cli(
        "trainer", "pretrain", pack(other, str(tmp_path / "c-set")).store.url, str(tmp_path / "run"), "--workers", "0",
        "--change", f"data={tmp_path / 'c-set'}",
    )  # fmt: skip
    assert done.returncode == 2
    assert "has other classes than those that" in done.stderr
    assert second.classes == first.classes


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
    assert stored["branch"] == {"run": begun.out, "step": 3, "epochs_done": 0.8, "skip_steps": 0}


def test_a_branch_goes_on_with_the_clipping_and_the_averages_of_the_other_run(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    settings = config(small_dataset, tmp_path / "whole", clip_norm=0.5, average_decay=0.75)
    pretrain(settings, alone(), lambda row: None)
    done = run_cli(
        "trainer", "pretrain", small_dataset.store.url, str(tmp_path / "branch"), "--branch", f"{settings.out}@3",
        "--workers", "0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_equal(final_state(tmp_path / "whole"), final_state(tmp_path / "branch"))
    averaged = [
        load_chosen_model(open_store(str(tmp_path / name)), alone(), None)[0].state_dict()
        for name in ("whole", "branch")
    ]
    assert_equal(*averaged)


def test_a_branch_with_a_recipe_of_its_own_is_clipped_as_that_one_asks(
    small_dataset: Dataset, begun: PretrainConfig, tmp_path: Path
) -> None:
    options = ("recipe.epochs=0.8", "recipe.batch_size=24", "recipe.warmup_steps=0", "recipe.resolution_px=32")
    done = run_cli(
        "trainer", "pretrain", small_dataset.store.url, str(tmp_path / "branch"), "--branch", begun.out,
        "--workers", "0", "--recipe", "bv-i21k", *(part for option in options for part in ("--set", option)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "branch" / "run.json").read_text())["clip_norm"] == 1.0


def test_a_branch_with_another_optimizer_is_refused_since_what_it_remembers_does_not_fit(
    small_dataset: Dataset, begun: PretrainConfig, tmp_path: Path
) -> None:
    done = run_cli(
        "trainer", "pretrain", small_dataset.store.url, str(tmp_path / "branch"), "--branch", begun.out,
        "--workers", "0", "--set", "recipe.optimizer=adam",
    )  # fmt: skip
    assert done.returncode == 2
    assert "was trained with sgd, whose momentum does not fit recipe.optimizer=adam" in done.stderr
    assert f"or begin with the weights alone: --init {begun.out}" in done.stderr
    assert not (tmp_path / "branch").exists()


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


def test_a_branch_of_a_changed_run_goes_on_at_its_place_of_the_schedule(
    small_dataset: Dataset, begun: PretrainConfig, tmp_path: Path
) -> None:
    store = open_store(begun.out)
    changed(store, settle(store, begun), {"recipe.batch_size": 12}, epochs_done=0.8)
    pretrain(begun, alone(), lambda row: None)
    whole = final_state(begun.out)
    options = ("--workers", "0", "--set", "checkpoint_every_steps=3", "--set", "log_every_steps=1")
    command = ("trainer", "pretrain", small_dataset.store.url)
    done = run_cli(*command, str(tmp_path / "same"), "--branch", f"{begun.out}@9", *options)
    assert done.returncode == 0, done.stderr
    assert "resumed from step 9 of 12" in done.stderr
    assert_equal(whole, final_state(tmp_path / "same"))
    wide = ("--branch", f"{begun.out}@9", "--set", "recipe.batch_size=24", *options)
    other = run_cli(*command, str(tmp_path / "wide"), *wide)
    assert other.returncode == 0, other.stderr
    assert "a new order of samples begins" in other.stderr
    last = read_metrics(open_store(str(tmp_path / "wide")))[-1]
    assert (last["step"], last["num_steps"]) == (11, 11)  # 12 pictures x 12 steps are 1.6 epochs: 6 of 8 steps of 24
    assert last["epoch"] == pytest.approx(2.0, abs=0.2)


def test_a_run_that_has_begun_needs_its_source_no_longer(
    small_dataset: Dataset, begun: PretrainConfig, tmp_path: Path
) -> None:
    options = ("--workers", "0", "--set", "checkpoint_every_steps=3")
    for start in ("--branch", "--init"):
        command = ("trainer", "pretrain", small_dataset.store.url, str(tmp_path / start), start, begun.out, *options)
        recipe = [f"--set=recipe.{name}={json.dumps(value)}" for name, value in RECIPE.model_dump(mode="json").items()]
        rest = () if start == "--branch" else (*recipe, "--set", "num_lanes=12")
        assert run_cli(*command, *rest).returncode == 0
        source = Path(begun.out).rename(tmp_path / "moved")
        again = run_cli(*command, *rest)
        source.rename(begun.out)
        assert again.returncode == 0, again.stderr
        assert "finished already at step 8" in again.stderr


def test_weights_of_a_folder_of_another_code_base_are_a_start_as_those_of_a_file(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    model = new_model("R14x0.5", 3, seed=5)
    folder = tmp_path / "theirs"
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    assert holds_weights(str(folder))
    for name, init in (("file", folder / "model.safetensors"), ("folder", folder), ("scratch", None)):
        chosen = config(small_dataset, tmp_path / name, init=str(init) if init else None)
        pretrain(chosen, alone(), lambda row: None)
    assert_equal(final_state(tmp_path / "file"), final_state(tmp_path / "folder"))
    with pytest.raises(AssertionError):
        assert_equal(final_state(tmp_path / "file"), final_state(tmp_path / "scratch"))


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
