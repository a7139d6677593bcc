"""Ctrl-C and SIGTERM: the state is saved, and the run goes on from there to the same bits."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.dataset.dataset import Dataset
from pipeline.store.url import open_store
from tests.trainer.runs import assert_equal, final_state
from trainer.checkpoint.record import steps
from trainer.run.events import read_events

SETTINGS = (
    "recipe.epochs=20", "recipe.decay_epochs=[15]", "recipe.batch_size=24", "recipe.warmup_steps=2",
    "recipe.resolution_px=32", "num_lanes=12",
)  # fmt: skip


def command(data: str, out: Path) -> list[str]:
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    trainer = str(Path(sys.executable).parent / "trainer")
    return [trainer, "pretrain", data, str(out), "--model", "R14x0.5", "--recipe", "bit-s", "--workers", "0", *options]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_and_the_run_goes_on_from_it(
    small_dataset: Dataset, tmp_path: Path, number: signal.Signals
) -> None:
    data = small_dataset.store.url
    process = subprocess.Popen(command(data, tmp_path / "run"), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:  # until the first step is done
        if line.startswith("step 1/"):
            break
    os.kill(process.pid, number)
    said = process.stderr.read()
    assert process.wait() == 130
    store = open_store(str(tmp_path / "run"))
    *_, stopped = steps(store)
    (event,) = [event for event in read_events(store) if event["kind"] == "stopping"]
    assert (event["step"], event["why"]) == (stopped, "the run was asked to stop")
    assert "stopping; a second Ctrl-C ends it at once" in said
    assert f"stopped after step {stopped} of 75; its state is saved" in said
    again = subprocess.run(command(data, tmp_path / "run"), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"resumed from step {stopped} of 75" in again.stderr
    whole = subprocess.run(command(data, tmp_path / "whole"), capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stderr
    assert_equal(final_state(tmp_path / "whole"), final_state(tmp_path / "run"))
