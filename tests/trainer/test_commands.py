"""The command line: wrong arguments."""

from pathlib import Path

import pytest

from pipeline.dataset.dataset import Dataset
from tests.conftest import run_cli


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "{data}", "out", "--model", "R99x1", "--workers", "0"], "model 'R99x1' is unknown"),
        (["pretrain", "{data}", "out", "--recipe", "bit-xl"], "recipe 'bit-xl' is unknown"),
        (["pretrain", "{data}", "out", "--set", "recipe.epochs=many"], "recipe.epochs"),
        (["pretrain", "{data}", "out", "--set", "epochs=3"], "did you mean recipe.epochs"),
        (["pretrain", "{data}", "out", "--set", "epochs"], "write NAME=VALUE"),
        (["pretrain", "{data}", "out", "--mix", "{data}=0"], "write URL=WEIGHT"),
        (["pretrain", "{data}", "out", "--exclude", "nowhere.parquet"], "nowhere.parquet"),
        (["pretrain", "nowhere", "out"], "holds no published dataset"),
        (["finetune", "scratch", "{data}", "{data}", "out"], "needs --model"),
        (["finetune", "nowhere", "{data}", "{data}", "out"], "holds no checkpoint"),
        (["finetune", "scratch", "{data}", "{data}", "out", "--model", "R14x0.5", "--shots", "five"], "--shots 'five'"),
        (["evaluate", "nowhere", "{data}", "out", "--workers", "0"], "holds no checkpoint"),
    ],
)
def test_wrong_arguments_get_one_sentence(small_dataset: Dataset, tmp_path: Path, arguments, message) -> None:
    done = run_cli("trainer", *(a.replace("{data}", small_dataset.store.url) for a in arguments), cwd=tmp_path)
    assert done.returncode in (1, 2)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert message in errors[0]
    assert "Traceback" not in done.stderr


def test_a_gpu_that_is_not_there_is_said_at_once(small_dataset: Dataset, tmp_path: Path) -> None:
    short = ("--set", "recipe.batch_size=16", "--model", "R14x0.5")
    done = run_cli(
        "trainer", "pretrain", small_dataset.store.url, str(tmp_path / "out"), "--workers", "0", "--gpu", *short
    )
    assert done.returncode == 2
    assert "error: --gpu: torch finds no GPU on this machine" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("pretrain", "{data}", "{folder}", "--model", "R14x0.5", "--set", "recipe.batch_size=16"),
        ("finetune", "scratch", "{data}", "{data}", "{folder}", "--model", "R14x0.5", "--set", "num_lanes=4"),
    ],
)
def test_a_folder_of_other_things_is_no_place_for_a_run(
    small_dataset: Dataset, small_folder: Path, command: tuple[str, ...]
) -> None:
    before = sorted(small_folder.rglob("*"))
    filled = [part.format(data=small_dataset.store.url, folder=small_folder) for part in command]
    done = run_cli("trainer", *filled, "--workers", "0")
    assert done.returncode == 2, done.stderr
    assert sorted(small_folder.rglob("*")) == before


def test_results_are_not_written_into_a_dataset(small_dataset: Dataset, pretrained: Path) -> None:
    done = run_cli("trainer", "evaluate", str(pretrained), small_dataset.store.url, small_dataset.store.url)
    assert done.returncode == 2
    assert "holds other things and no result" in done.stderr
