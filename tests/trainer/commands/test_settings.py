"""`--set`: names that are none, values that do not fit, and how fast one hears of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.base.errors import ConfigError
from pipeline.dataset.dataset import Dataset
from tests.conftest import run_cli
from trainer.commands.settings import build, parsed
from trainer.jobs.config import FinetuneConfig, PretrainConfig


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("recipe.epoch=3", "there is no setting recipe.epoch; did you mean recipe.epochs"),
        ("epochs=3", "did you mean recipe.epochs?"),
        ("batchsize=3", "did you mean microbatch_size or recipe.batch_size?"),
        ("loader.workers=3", "did you mean loader.num_workers?"),
        ("loader.zzz=3", "settings of loader are num_workers, budget_bytes"),
        ("momentum=0.5", "did you mean recipe.momentum?"),
        ("zzz=1", "settings are seed, num_lanes"),
        ("recipe.epochs", "write NAME=VALUE"),
    ],
)
def test_a_name_that_is_none_gets_the_nearest_ones(setting: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parsed(PretrainConfig, "--set", (setting,))
    assert said in str(error.value)
    assert setting.partition("=")[0] in str(error.value)


FIELDS = {"data": "/d", "data_version": 1, "out": "/o", "model": "R50x1"}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("recipe.momentum=-3", "--set recipe.momentum: Input should be greater than or equal to 0 (got -3)"),
        ("recipe.momentum=1.5", "--set recipe.momentum: Input should be less than 1 (got 1.5)"),
        ("recipe.epochs=many", "--set recipe.epochs: Input should be a valid number"),
        ("recipe.epochs=1e308", "--set recipe.epochs: Input should be less than or equal to 1000000"),
        ("recipe.epochs=Infinity", "--set recipe.epochs: Input should be less than or equal to 1000000"),
        ("recipe.lr_per_256=1e400", "--set recipe.lr_per_256: Input should be a finite number"),
        ("recipe.batch_size=100000000000", "--set recipe.batch_size: Input should be less than or equal to 16777216"),
        ("recipe.resolution_px=100000", "--set recipe.resolution_px: Input should be less than or equal to 8192"),
        ("recipe.batch_size=0", "--set recipe.batch_size: Input should be greater than 0"),
        ("precision=float16", "--set precision: Input should be 'float32' or 'bfloat16' (got 'float16')"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_setting(setting: str, said: str) -> None:
    values = parsed(PretrainConfig, "--set", (setting,))
    recipe = {"loss": "softmax", "epochs": 1, "decay_epochs": [1]}
    with pytest.raises(ConfigError) as error:
        build(PretrainConfig, {**FIELDS, "recipe": recipe}, values)
    assert said in str(error.value)
    assert "decay_epochs" not in str(error.value)  # no dump of what is right


def test_a_value_below_one_that_is_no_record_replaces_it() -> None:
    values = parsed(PretrainConfig, "--set", ("recipe=5", "recipe.epochs=3"))
    with pytest.raises(ConfigError, match=r"recipe.loss: Field required"):
        build(PretrainConfig, dict(FIELDS), values)


def test_settings_reach_into_records_that_are_not_there_yet() -> None:
    values = parsed(FinetuneConfig, "--set", ("shortened.steps=6", "shortened.batch_size=24"))
    fields = {
        "init": "scratch", "model": "R50x1", "train": "/a", "train_version": 1, "test": "/b", "test_version": 1,
        "out": "/o", "shortened": None,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"shortened.resize_px: Field required"):
        build(FinetuneConfig, fields, values)


def test_a_wrong_setting_is_refused_before_torch_is_imported(small_dataset: Dataset, tmp_path: Path) -> None:
    program = (
        "import sys; sys.argv = ['trainer', 'pretrain', sys.argv[1], 'out', '--set', 'recipe.epoch=3']\n"
        "from trainer.cli import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, 'ray' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, small_dataset.store.url],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout.split() == ["False", "False"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["recipe.momentum=-3"], "recipe.momentum"),
        (["recipe.batch_size=30"], "not a multiple of 16 lanes"),
    ],
)
def test_what_is_refused_leaves_no_run_folder(small_dataset: Dataset, tmp_path: Path, settings, said) -> None:
    options = [part for setting in settings for part in ("--set", setting)]
    command = ("pretrain", small_dataset.store.url, "out", "--model", "R14x0.5", "--workers", "0", *options)
    done = run_cli("trainer", *command, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "internal error" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_batch_norm_over_a_single_picture_is_refused_before_it_starts(small_dataset: Dataset, tmp_path: Path) -> None:
    options = ["--set", "recipe.batch_size=16", "--set", "microbatch_size=1"]
    command = ("pretrain", small_dataset.store.url, "out", "--model", "R14x0.5-BN", "--workers", "0", *options)
    done = run_cli("trainer", *command, cwd=tmp_path)
    assert done.returncode == 2
    assert "one would hold a single picture" in done.stderr
    assert list(tmp_path.iterdir()) == []
