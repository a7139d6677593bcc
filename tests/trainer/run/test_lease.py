"""Two starts on one folder: the newer one wins, the older one ends with a sentence, and nothing is lost."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.base.errors import Fenced
from pipeline.dataset.dataset import Dataset
from pipeline.store.lease import Lease
from pipeline.store.url import open_store
from tests.trainer.run.test_signals import command
from tests.trainer.runs import assert_equal, config, final_state
from trainer.checkpoint.record import steps
from trainer.jobs.pretrain import pretrain
from trainer.run.controls import Controls
from trainer.step.ranks import alone


def test_an_older_start_ends_before_it_touches_a_checkpoint(small_dataset: Dataset, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    older = Controls(Lease.take(store))
    Lease.take(store)
    with pytest.raises(Fenced, match=r"a newer run .* has taken over"):
        pretrain(config(small_dataset, tmp_path), alone(), lambda row: None, older)
    assert steps(store) == []


def begin(line: list[str]) -> "subprocess.Popen[str]":
    """Start a run, and return it after its first step."""
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for said in process.stderr:
        if said.startswith("step "):
            break
    return process


def test_of_two_starts_the_newer_one_finishes_to_the_same_bits(small_dataset: Dataset, tmp_path: Path) -> None:
    settings = ["--set", "checkpoint_every_steps=5", "--set", "log_every_steps=5"]
    line = [*command(small_dataset.store.url, tmp_path / "run"), *settings]
    older = begin(line)
    os.kill(older.pid, signal.SIGSTOP)  # or it may be done before the newer one is there
    newer = begin(line)
    os.kill(older.pid, signal.SIGCONT)
    rest, said = older.communicate()[1], newer.communicate()[1]
    assert older.returncode == 1, rest
    assert "error: " in rest
    assert "has taken over" in rest
    assert newer.returncode == 0, said
    trainer = str(Path(sys.executable).parent / "trainer")
    whole = [trainer, *command(small_dataset.store.url, tmp_path / "whole")[1:], *settings]
    assert subprocess.run(whole, capture_output=True, check=False).returncode == 0
    assert_equal(final_state(tmp_path / "whole"), final_state(tmp_path / "run"))
