"""A group of workers shrinks with its cluster and grows with it, by itself, and no step is lost or made twice."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.stack.services import Stack
from pipeline.store.url import open_store
from tests.conftest import pack, running_stack
from tests.nodes import add_node, kill_node
from tests.trainer.run.test_fault_tolerance import start, wait_for_checkpoint
from tests.waiting import wait_until
from trainer.run.events import attempts

# Checkpoints so far apart that one at a resize is there for its sake.
SETTINGS = {"recipe.epochs": 300, "recipe.decay_epochs": [299], "checkpoint_every_steps": 40}


@pytest.fixture
def three_nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stack]:
    monkeypatch.setenv("BIT_RESIZE_SECONDS", "10")
    with running_stack(tmp_path / "stack", [1, 1, 1]) as stack:
        yield stack


@pytest.mark.timeout(600)
def test_the_group_goes_on_without_a_lost_node_and_grows_again_after_a_save(
    three_nodes: Stack, small_folder: Path, s3_url: Callable[[str], str]
) -> None:
    data, out = s3_url("data"), s3_url("out")
    pack(small_folder, data, shard_bytes=150_000, block_bytes=40_000)
    store = open_store(out)
    process = start(data, out, "1:3", **SETTINGS)

    def num_ranks() -> list[int]:
        assert process.poll() is None, process.communicate()[0].decode()
        return [len(each["ranks"]) for each in attempts(store)]

    wait_for_checkpoint(store, process, 40)
    kill_node(three_nodes, 2)
    wait_until(lambda: num_ranks() == [3, 2], "a group of two", 240)
    wait_for_checkpoint(store, process, attempts(store)[1]["first_step"] + 40)
    add_node(three_nodes, 3)
    wait_until(lambda: num_ranks() == [3, 2, 3], "a group of three", 240)
    process.terminate()
    printed = process.communicate()[0].decode()
    (said,) = re.findall(r"the group goes from 2 ranks to 3: saved after step ([\d,]+)", printed)
    assert attempts(store)[2]["first_step"] >= int(said.replace(",", "")), printed
    assert "rank 0 ended: RuntimeError" in printed or "rank 1 ended: RuntimeError" in printed
    assert "state-dump" not in printed  # Ray's noise stays in its logs
