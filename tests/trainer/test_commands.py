"""The command line: wrong arguments."""

from pathlib import Path

import pytest

from pipeline.dataset.dataset import Dataset
from tests.conftest import run_cli


@pytest.mark.parametrize(
    ("arguments", "said"),
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
def test_wrong_arguments_get_one_sentence(small_dataset: Dataset, tmp_path: Path, arguments, said) -> None:
    done = run_cli("trainer", *(a.replace("{data}", small_dataset.store.url) for a in arguments), cwd=tmp_path)
    assert done.returncode in (1, 2)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert said in errors[0]
    assert "Traceback" not in done.stderr
