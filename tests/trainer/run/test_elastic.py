"""A group of workers on a cluster that changes: nodes are lost, come back and are drained, a process is stopped.

Nobody helps: the run goes on with what is left, saves before it grows or a node goes, and ends a rank that hangs.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.stack.services import Stack
from pipeline.base.logs import FORMAT_VARIABLE
from pipeline.store.base import Store
from pipeline.store.url import open_store
from tests.conftest import pack, running_stack
from tests.nodes import add_node, alive_nodes, drain_node, kill_node
from tests.trainer.run.test_fault_tolerance import start, wait_for_checkpoint
from tests.waiting import STORE_POLL_SECONDS, wait_until
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
_MOST_SECONDS = 900  # for a test; nodes that do not start in time on a busy machine take three minutes more


pytestmark = pytest.mark.alone  # Ray gives a node that joins 30 s to start, whatever else the machine does


class Nodes:
    """The nodes of a cluster that changes; the head is number 0 and stays."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._leaving: set[int] = set()
        self._next = 3

    def kill(self, number: int) -> None:
        kill_node(self._stack, number)
        self._leaving.add(number)

    def drain(self, seconds: int) -> None:
        """Announce that the newest node will be taken away."""
        number = max(set(alive_nodes(self._stack)) - self._leaving)
        drain_node(self._stack, number, seconds)
        self._leaving.add(number)

    def add(self) -> None:
        add_node(self._stack, self._next)
        self._next += 1

    def restore(self) -> None:
        """Have three nodes once more."""
        wait_until(lambda: not self._leaving & set(alive_nodes(self._stack)), "the nodes to leave", _WAIT_SECONDS)
        for _ in range(3 - len(alive_nodes(self._stack))):
            self.add()


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RESIZE_SECONDS_VARIABLE, "10")
        patch.setenv(STALL_SECONDS_VARIABLE, str(STALL_SECONDS))
        patch.setenv(FORMAT_VARIABLE, "json")
        for name, value in _SOON.items():
            patch.setenv(name, value)
        with running_stack(tmp_path_factory.mktemp("changing"), [1, 1, 1]) as stack:
            yield Nodes(stack)


@pytest.fixture
def nodes(changing: Nodes) -> Nodes:
    """Three nodes, with a new one in the place of each that a test before has taken away."""
    changing.restore()
    return changing


class Run:
    """A run on the changing cluster."""

    def __init__(self, folder: Path, data: str, out: str, workers: str) -> None:
        pack(folder, data, shard_bytes=150_000, block_bytes=40_000)
        self.store: Store = open_store(out)
        self.process = start(data, out, workers, **SETTINGS)
        self.said = ""

    def starts(self) -> list[dict[str, Any]]:
        """Return the starts so far, of a run that goes on."""
        assert self.process.poll() is None, self.stop()
        return attempts(self.store)

    def wait_for_start(self, num_ranks: int, after: int = 0) -> int:
        """Return the number of starts so far as soon as the newest one, of more than `after`, has so many ranks.

        There may be others in between: on a busy machine a group may be ended and start again.
        """

        def is_there() -> bool:
            starts = self.starts()
            return len(starts) > after and starts[-1]["num_ranks"] == num_ranks

        try:
            wait_until(is_there, f"a start on {num_ranks} ranks", _WAIT_SECONDS, STORE_POLL_SECONDS)
        except AssertionError as error:
            seen = [each["num_ranks"] for each in attempts(self.store)]
            raise AssertionError(f"{error}; starts on {seen} ranks\n{self.stop()}") from error
        return len(attempts(self.store))

    def wait_for_step(self, step: int) -> None:
        wait_for_checkpoint(self.store, self.process, step, _WAIT_SECONDS)

    def stop(self) -> str:
        """Stop the run, if that was not done, and return what it said."""
        if not self.said:
            self.process.terminate()
            self.said = self.process.communicate()[0].decode()
            job = re.search(r"raysubmit_\w+", self.said)
            assert job, self.said
            subprocess.run([Path(sys.executable).parent / "cluster", "stop", job[0]], check=True, capture_output=True)
        return self.said


@pytest.fixture
def begin(nodes: Nodes, small_folder: Path, s3_url: Callable[[str], str]) -> Iterator[Callable[[str], Run]]:
    """Starts a run on so many workers; what a failed test leaves behind is stopped, for the tests after it."""
    runs: list[Run] = []

    def begin_run(workers: str) -> Run:
        runs.append(Run(small_folder, s3_url("data"), s3_url("out"), workers))
        return runs[-1]

    yield begin_run
    for run in runs:
        run.stop()


@pytest.mark.timeout(_MOST_SECONDS)
def test_a_process_that_is_stopped_is_left_behind_with_the_stacks_of_all_others(
    begin: Callable[[str], Run],
) -> None:
    run = begin("3")
    run.wait_for_step(40)
    starts = run.starts()
    place = starts[-1]["ranks"][1]
    os.kill(place["pid"], signal.SIGSTOP)
    run.wait_for_start(3, after=len(starts))
    said = run.stop()
    blamed = f"rank 1 ({place['host']}, process {place['pid']}) is "
    stalled = [event for event in read_events(run.store) if event["kind"] == "stalled" and blamed in event["why"]]
    assert {event["rank"] for event in stalled} & {0, 2}  # the first to end itself takes the group down
    for event in stalled:
        assert "trainer/step/loop.py" in run.store.read(event["stacks"]).decode()  # where it waits for rank 1
    assert "rank 1 " in said
    assert "has given no sign of life" in said


@pytest.mark.timeout(_MOST_SECONDS)
def test_the_group_goes_on_without_a_lost_node_and_grows_again_after_a_save(
    nodes: Nodes, begin: Callable[[str], Run]
) -> None:
    run = begin("1:3")
    run.wait_for_start(3)
    run.wait_for_step(40)
    nodes.kill(2)
    lost = run.wait_for_start(2)
    run.wait_for_step(attempts(run.store)[lost - 1]["first_step"] + 40)
    nodes.add()
    grown = run.wait_for_start(3, after=lost)
    said = run.stop()
    (line,) = [json.loads(line) for line in said.splitlines() if "the group goes from 2 ranks to 3" in line]
    (step,) = re.findall(r"^the group goes from 2 ranks to 3: saved after step ([\d,]+)$", line["message"])
    assert attempts(run.store)[grown - 1]["first_step"] >= int(step.replace(",", "")), said
    assert "2 ranks, resumed from step" in said
    assert "state-dump" not in said  # Ray's noise stays in its logs
    (resized,) = [event for event in read_events(run.store) if event["kind"] == "resized"]
    assert (resized["ranks_before"], resized["ranks_after"]) == (2, 3)


@pytest.mark.timeout(_MOST_SECONDS)
def test_before_a_node_is_drained_the_run_saves_and_goes_on_from_there_on_what_is_left(
    nodes: Nodes, begin: Callable[[str], Run]
) -> None:
    run = begin("1:3")
    run.wait_for_start(3)
    run.wait_for_step(40)
    nodes.drain(30)
    left = run.wait_for_start(2)
    said = run.stop()
    events = [event for event in read_events(run.store) if event["kind"] == "stopping"]
    (stopping,) = [event for event in events if "a node is taken away in" in event["why"]]
    assert attempts(run.store)[left - 1]["first_step"] >= stopping["step"]
    assert "saving, and going on until then" in said
