"""A driver that is killed is started again; one that ends on purpose, or without getting on, is not."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cluster.submission.supervise import Next, what_next
from pipeline.dataset.dataset import Dataset
from pipeline.store.url import open_store
from tests.trainer.runs import assert_equal, final_state
from trainer.checkpoint.record import latest

SETTINGS = (
    "recipe.epochs=8", "recipe.decay_epochs=[6]", "recipe.batch_size=24", "recipe.warmup_steps=2",
    "recipe.resolution_px=32", "num_lanes=2", "checkpoint_every_steps=3", "log_every_steps=1",
)  # fmt: skip
NOTHING, ONE = frozenset[str](), frozenset(["checkpoints/000000003.json"])


def command(dataset: Dataset, out: Path, *more: str) -> list[str]:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return ["pretrain", dataset.store.url, str(out), "--model", "R14x0.5", "--recipe", "bit-s", "--workers", "0",
            *settings, *more]  # fmt: skip


@contextmanager
def supervised(out: Path, arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    entry_point = [sys.executable, "-m", "cluster.submission.supervise", str(out), *arguments]
    with subprocess.Popen(entry_point, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def until(process: subprocess.Popen[str], pattern: str) -> str:
    assert process.stdout
    said = ""
    for line in process.stdout:
        said += line
        if re.search(pattern, line):
            return said
    raise AssertionError(said)


def test_a_killed_driver_is_started_again_and_the_run_ends_as_if_nothing_had_been(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    with supervised(tmp_path / "killed", command(small_dataset, tmp_path / "killed")) as process:
        until(process, "step [5-9]/30")
        (driver,) = psutil.Process(process.pid).children()
        driver.send_signal(signal.SIGKILL)
        said = process.communicate()[0]
        assert process.returncode == 0, said
    assert "the driver has ended (killed by SIGKILL); starting it again" in said
    assert "resumed from step 3" in said or "resumed from step 6" in said
    with supervised(tmp_path / "whole", command(small_dataset, tmp_path / "whole")) as process:
        assert process.wait() == 0
    assert_equal(final_state(tmp_path / "killed"), final_state(tmp_path / "whole"))


def test_a_stop_is_not_undone(small_dataset: Dataset, tmp_path: Path) -> None:
    with supervised(tmp_path / "out", command(small_dataset, tmp_path / "out")) as process:
        until(process, "step [2-9]/30")
        for each in (process, *psutil.Process(process.pid).children()):  # as `cluster stop` and terminals do
            each.send_signal(signal.SIGTERM)
        said = process.communicate()[0]
    assert process.returncode == 130, said
    assert "stopped after step" in said
    record = latest(open_store(str(tmp_path / "out")))
    assert record is not None
    assert record.step < 30


def test_an_error_that_would_come_again_is_not_met_twice(small_dataset: Dataset, tmp_path: Path) -> None:
    with supervised(tmp_path / "out", command(small_dataset, tmp_path / "out", "--set", "seed=many")) as process:
        said = process.communicate()[0]
    assert process.returncode == 2
    assert said.count("error: --set seed") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("code", "stopped", "progress", "then"),
    [
        (0, False, [NOTHING, ONE], Next.END),
        (1, False, [NOTHING, ONE], Next.END),
        (130, False, [NOTHING, ONE], Next.END),
        (75, False, [NOTHING, ONE], Next.AGAIN),  # the cluster lost it
        (None, False, [NOTHING, ONE], Next.AGAIN),  # killed
        (None, True, [NOTHING, ONE], Next.END),
        (None, False, [ONE] * 5, Next.AGAIN),
        (None, False, [ONE] * 6, Next.IN_VAIN),
        (None, False, [*[NOTHING] * 5, ONE], Next.AGAIN),
    ],
)
def test_what_follows_the_end_of_a_driver(
    code: int | None, stopped: bool, progress: list[frozenset[str]], then: Next
) -> None:
    assert what_next(code, stopped=stopped, progress=progress) == then


@pytest.mark.parametrize(("code", "then"), [(1, Next.AGAIN), (None, Next.AGAIN), (0, Next.END)])
def test_a_driver_that_an_outage_of_the_store_may_have_ended_is_started_again(code: int | None, then: Next) -> None:
    assert what_next(code, stopped=False, progress=[ONE] * 9, is_outage=True) == then
    assert what_next(code, stopped=True, progress=[ONE], is_outage=True) == Next.END


def test_the_supervisor_is_small(tmp_path: Path) -> None:
    program = "import sys, cluster.submission.supervise; print([m for m in ('torch', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "[]\n"
