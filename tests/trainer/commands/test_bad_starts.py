"""A run that could not get anywhere is refused in one sentence, before any worker starts.

Each start would fail at RAY_ADDRESS, where nothing answers, if it got as far as that.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.stack.services import Stack
from pipeline.dataset.dataset import Dataset
from tests.conftest import run_cli
from tests.trainer.runs import config
from trainer.jobs.pretrain import pretrain
from trainer.step.ranks import alone

Start = Callable[..., str]


@pytest.fixture
def refused(small_dataset: Dataset) -> Start:
    """Start a run on two workers and return the sentence with which it is refused."""

    def start(out: Path | str, *more: str, **environment: str) -> str:
        done = run_cli(
            "trainer", "pretrain", small_dataset.store.url, str(out), "--recipe", "bit-s", "--model", "R14x0.5",
            "--workers", "2", "--set", "recipe.batch_size=32", *more, RAY_ADDRESS="127.0.0.1:9", **environment,
        )  # fmt: skip
        assert done.returncode in (1, 2)
        assert "Traceback" not in done.stderr
        (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        return error

    return start


def test_what_is_left_to_refuse_is_the_missing_cluster(refused: Start, tmp_path: Path) -> None:
    assert "no Ray cluster answers at 127.0.0.1:9" in refused(tmp_path / "out")


def test_more_workers_than_lanes(refused: Start, tmp_path: Path) -> None:
    assert "64 workers cannot share 16 lanes" in refused(tmp_path / "out", "--workers", "64")


@pytest.mark.parametrize("more", [["--set", "sharded=true", "--set", "ranks_per_replica=3"],
                                  ["--set", "ranks_per_replica=2"]])  # fmt: skip
def test_groups_of_ranks_that_do_not_fit(refused: Start, tmp_path: Path, more: list[str]) -> None:
    assert "it needs sharded=true, and has to divide their number" in refused(tmp_path / "out", *more)


def test_the_folder_of_another_run(refused: Start, small_dataset: Dataset, tmp_path: Path) -> None:
    pretrain(config(small_dataset, tmp_path / "out"), alone(), lambda row: None)
    error = refused(tmp_path / "out")
    assert "was started with other settings: " in error
    assert "recipe.batch_size was 24, is 32" in error


def test_a_disk_without_room_for_the_checkpoints_that_are_kept(refused: Start, tiny_disk: Path) -> None:
    error = refused(tiny_disk / "out")
    assert "a checkpoint takes 16.1 MB, and there will be 4 of them at a time" in error


def test_a_folder_that_cannot_be_written(refused: Start, tiny_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    assert "is on a file system that is mounted for reading only" in refused(tiny_disk / "out")


def test_a_store_that_is_down(refused: Start, s3: Stack) -> None:
    error = refused("s3://tests/out", AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert "no answer from S3" in error


def test_credentials_that_are_wrong(refused: Start, s3: Stack) -> None:
    assert "AWS_" in refused("s3://tests/out", AWS_SECRET_ACCESS_KEY="of-somebody-else")
