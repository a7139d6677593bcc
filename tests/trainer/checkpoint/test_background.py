"""Checkpoints that are written while training goes on."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from pipeline.base.errors import Denied, Fenced, StorageError, Unreachable
from pipeline.store.lease import Lease
from pipeline.store.local import LocalStore
from pipeline.store.url import open_store
from trainer.checkpoint.background import BackgroundSaver
from trainer.checkpoint.record import latest, read_record, steps
from trainer.checkpoint.retention import Retention
from trainer.checkpoint.sharded import load
from trainer.step.ranks import World, alone

CPU = torch.device("cpu")


class SlowStore(LocalStore):
    """Waits before it writes a checkpoint's files, until it is let."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.may_write = threading.Event()

    def writer(self, key: str):
        self.may_write.wait(60)
        return super().writer(key)


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_change_it(tmp_path: Path) -> None:
    store = SlowStore(tmp_path)
    saver = BackgroundSaver(store, alone(), "a", None, Retention(newest=3))
    weights = torch.ones(1000)
    saver.start({"model/a": weights}, step=1, stream={"step": 1}, about={"model": "R"})
    assert steps(store) == []
    weights.fill_(2.0)  # the next step
    store.may_write.set()
    saver.wait()
    state = {"model/a": torch.zeros(1000)}
    load(store, alone(), latest(store), state)
    assert (state["model/a"] == 1).all()
    assert latest(store).stream == {"step": 1}


def test_a_last_checkpoint_is_written_from_the_tensors_themselves_without_a_copy(tmp_path: Path) -> None:
    store = SlowStore(tmp_path)
    saver = BackgroundSaver(store, alone(), "a", None, Retention(newest=3))
    weights = torch.ones(1000)
    saver.start({"model/a": weights}, step=1, stream={}, about={}, is_final=True)
    weights.fill_(2.0)  # a copy would not see it
    store.may_write.set()
    saver.wait()
    state = {"model/a": torch.zeros(1000)}
    load(store, alone(), latest(store), state)
    assert (state["model/a"] == 2).all()


def test_ranks_meet_in_the_store_and_share_the_writing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    state = {f"model/{name}": torch.full((500,), float(number)) for number, name in enumerate("abcd")}
    savers = [BackgroundSaver(store, World(rank, 3, CPU), "a", None, Retention(newest=3)) for rank in range(3)]
    for saver in savers[:2]:
        saver.start(state, step=1, stream={}, about={})
    savers[1].wait()
    assert steps(store) == []  # one rank is missing
    savers[2].start(state, step=1, stream={}, about={})
    for saver in savers:
        saver.wait()
    record = latest(store)
    assert [file.name for file in record.files] == [f"rank{r}.{kind}" for r in range(3) for kind in ("chunks", "json")]
    assert sum(file.num_bytes for file in record.files if file.name.endswith("chunks")) == 4 * 2000
    blank = {name: torch.zeros(500) for name in state}
    load(store, alone(), record, blank)
    assert all(torch.equal(blank[name], state[name]) for name in state)


class Broken(LocalStore):
    """A store whose writers fail, once it is told with what."""

    error: StorageError | None = None

    def writer(self, key: str):
        if self.error:
            raise self.error
        return super().writer(key)


def test_what_a_save_fails_with_is_raised_by_the_next_call_and_the_one_before_stays(tmp_path: Path) -> None:
    store = Broken(tmp_path)
    saver = BackgroundSaver(store, alone(), "a", None, Retention(newest=3))
    saver.start({"model/a": torch.ones(3)}, step=1, stream={}, about={})
    saver.wait()
    store.error = Denied("no right")
    saver.start({"model/a": torch.ones(3)}, step=2, stream={}, about={})
    with pytest.raises(Denied, match="no right"):
        saver.start({"model/a": torch.ones(3)}, step=3, stream={}, about={})
    assert steps(store) == [1]


def test_a_save_that_an_outage_took_is_made_up_for_by_the_next_one_but_not_again_and_again(tmp_path: Path) -> None:
    store = Broken(tmp_path)
    saver = BackgroundSaver(store, alone(), "a", None, Retention(newest=3))
    store.error = Unreachable("no answer")
    for step in (1, 2):
        saver.start({"model/a": torch.ones(3)}, step=step, stream={}, about={})
    store.error = None
    saver.start({"model/a": torch.ones(3)}, step=3, stream={}, about={})
    saver.wait()
    assert steps(store) == [3]
    store.error = Unreachable("no answer")
    for step in (4, 5, 6):
        saver.start({"model/a": torch.ones(3)}, step=step, stream={}, about={})
    with pytest.raises(Unreachable, match="no answer"):
        saver.start({"model/a": torch.ones(3)}, step=7, stream={}, about={})
    assert steps(store) == [3]


def test_a_fenced_start_commits_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    lease = Lease.take(store)
    saver = BackgroundSaver(store, alone(), "a", lease, Retention(newest=3))
    Lease.take(store)
    saver.start({"model/a": torch.ones(3)}, step=1, stream={}, about={})
    with pytest.raises(Fenced):
        saver.wait()
    assert steps(store) == []


KILLED = """
import os, signal, sys
import torch
from pipeline.store.url import open_store
from trainer.checkpoint import sharded
from trainer.checkpoint.sharded import save
from trainer.step.ranks import alone

store = open_store(sys.argv[1])
save(store, alone(), {"model/a": torch.ones(100)}, step=1, attempt="a", stream={}, about={})
where, cut = sys.argv[2], sharded.cut
if where == "in a file":
    sharded.cut = lambda part: os.kill(os.getpid(), signal.SIGKILL)
if where == "before the record":
    sharded.commit = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
save(store, alone(), {"model/a": torch.zeros(100)}, step=2, attempt="a", stream={}, about={})
"""


@pytest.mark.parametrize("where", ["in a file", "before the record"])
def test_a_kill_in_the_middle_leaves_the_checkpoint_before(tmp_path: Path, where: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), where], check=False)
    assert done.returncode == -9
    store = open_store(str(tmp_path))
    assert steps(store) == [1]
    state = {"model/a": torch.zeros(100)}
    load(store, alone(), read_record(store, 1), state)
    assert (state["model/a"] == 1).all()
