"""A group of workers on a cluster that changes: nodes are lost, come back and are drained, a process is stopped.

Nobody helps: the run goes on with what is left, saves before it grows or a node goes, and ends a rank that hangs.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.stack.services import Stack
from pipeline.store.base import Store
from pipeline.store.url import open_store
from tests.conftest import pack, running_stack
from tests.nodes import add_node, drain_node, kill_node
from tests.trainer.run.test_fault_tolerance import start, wait_for_checkpoint
from tests.waiting import wait_until
from trainer.run.events import attempts, read_events
from trainer.run.lives import STALL_SECONDS_VARIABLE
from trainer.run.resize import RESIZE_SECONDS_VARIABLE

# Checkpoints so far apart that one at a resize is there for its sake.
SETTINGS = {"recipe.epochs": 2000, "recipe.decay_epochs": [1999], "checkpoint_every_steps": 40}
STALL_SECONDS = 15
# Ray takes half a minute to call a node lost, and as long to give up a stopped process.
_SOON = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
}
_WAIT_SECONDS = 240.0  # a lost node is noticed after a minute


@pytest.fixture(scope="module")
def three_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RESIZE_SECONDS_VARIABLE, "10")
        patch.setenv(STALL_SECONDS_VARIABLE, str(STALL_SECONDS))
        for name, value in _SOON.items():
            patch.setenv(name, value)
        with running_stack(tmp_path_factory.mktemp("changing"), [1, 1, 1]) as stack:
            yield stack


class Run:
    """A run on the changing cluster."""

    def __init__(self, folder: Path, data: str, out: str, workers: str) -> None:
        pack(folder, data, shard_bytes=150_000, block_bytes=40_000)
        self.store: Store = open_store(out)
        self.process = start(data, out, workers, **SETTINGS)

    def num_ranks(self) -> list[int]:
        """Return the ranks of each start."""
        assert self.process.poll() is None, self.process.communicate()[0].decode()
        return [each["num_ranks"] for each in attempts(self.store)]

    def wait_for_starts(self, num_ranks: list[int]) -> None:
        wait_until(lambda: self.num_ranks() == num_ranks, f"starts on {num_ranks} ranks", _WAIT_SECONDS)

    def wait_for_step(self, step: int) -> None:
        wait_for_checkpoint(self.store, self.process, step, _WAIT_SECONDS)

    def stop(self) -> str:
        """Stop the run, and return what it said."""
        self.process.terminate()
        said = self.process.communicate()[0].decode()
        job = re.search(r"raysubmit_\w+", said)
        assert job, said
        subprocess.run([Path(sys.executable).parent / "cluster", "stop", job[0]], check=True, capture_output=True)
        return said


@pytest.mark.timeout(600)
def test_a_process_that_is_stopped_is_left_behind_with_the_stacks_of_all_others(
    three_nodes: Stack, small_folder: Path, s3_url: Callable[[str], str]
) -> None:
    run = Run(small_folder, s3_url("data"), s3_url("out"), "3")
    run.wait_for_step(40)
    place = attempts(run.store)[0]["ranks"][1]
    os.kill(place["pid"], signal.SIGSTOP)
    run.wait_for_starts([3, 3])
    said = run.stop()
    stalled = [event for event in read_events(run.store) if event["kind"] == "stalled"]
    assert {event["rank"] for event in stalled} & {0, 2}  # the first to end itself takes the group down
    for event in stalled:
        assert f"rank 1 ({place['host']}, process {place['pid']}) is " in event["why"]
        assert "in train_step" in run.store.read(event["stacks"]).decode()
    assert "rank 1 " in said
    assert "has given no sign of life" in said


@pytest.mark.timeout(600)
def test_the_group_goes_on_without_a_lost_node_and_grows_again_after_a_save(
    three_nodes: Stack, small_folder: Path, s3_url: Callable[[str], str]
) -> None:
    run = Run(small_folder, s3_url("data"), s3_url("out"), "1:3")
    run.wait_for_step(40)
    kill_node(three_nodes, 2)
    run.wait_for_starts([3, 2])
    run.wait_for_step(attempts(run.store)[1]["first_step"] + 40)
    add_node(three_nodes, 3)
    run.wait_for_starts([3, 2, 3])
    said = run.stop()
    (step,) = re.findall(r"the group goes from 2 ranks to 3: saved after step ([\d,]+)", said)
    assert attempts(run.store)[2]["first_step"] >= int(step.replace(",", "")), said
    assert "2 ranks, resumed from step" in said
    assert "state-dump" not in said  # Ray's noise stays in its logs
    (resized,) = [event for event in read_events(run.store) if event["kind"] == "resized"]
    assert (resized["ranks_before"], resized["ranks_after"]) == (2, 3)


@pytest.mark.timeout(600)
def test_before_a_node_is_drained_the_run_saves_and_goes_on_from_there_on_what_is_left(
    three_nodes: Stack, small_folder: Path, s3_url: Callable[[str], str]
) -> None:
    run = Run(small_folder, s3_url("data"), s3_url("out"), "1:3")
    run.wait_for_starts([3])
    run.wait_for_step(40)
    drain_node(three_nodes, 3, 30)
    run.wait_for_starts([3, 2])
    said = run.stop()
    events = [event for event in read_events(run.store) if event["kind"] == "stopping"]
    (stopping,) = [event for event in events if "a node is taken away in" in event["why"]]
    assert attempts(run.store)[1]["first_step"] >= stopping["step"]
    assert "saving, and going on until then" in said
