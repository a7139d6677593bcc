"""The loader: its processes may die, its memory is bounded, and nothing of that changes a batch."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.stack.services import Stack
from pipeline.base.errors import ConfigError, ServiceError
from pipeline.dataset.dataset import Dataset
from pipeline.image.transforms import PretrainView
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import LoaderConfig, Stream
from tests.faults import FaultProxy
from tests.loading import (
    ORDER,
    assert_same,
    keys_of,
    stream_of,
    taken,
    worker_pids,
)
from tests.processes import is_running
from tests.soak.damage import upload
from tests.waiting import wait_until

SHARED_MEMORY = "/dev/shm"  # noqa: S108 - the kernel's own


def test_killed_loader_workers_are_started_again_and_the_batches_are_the_same(dataset: Dataset) -> None:
    expected = taken(stream_of(dataset), 16)
    stream = stream_of(dataset, num_workers=2)
    batches = []
    try:
        for step in range(16):
            if step in (2, 7, 8):
                wait_until(lambda: len(worker_pids()) == 2, "the worker that was killed before to be started again")
                pids = worker_pids()
                for pid in pids if step == 8 else pids[:1]:
                    os.kill(pid, signal.SIGKILL)
                # What they had made ahead is still handed out; then the new ones must deliver.
            batches.append(next(stream))
    finally:
        stream.close()
    assert_same(batches, expected)


def test_a_worker_that_dies_again_and_again_ends_in_an_error_that_says_so(dataset: Dataset) -> None:
    stream = stream_of(dataset, num_workers=1)
    is_over = threading.Event()

    def kill_all() -> None:
        while not is_over.is_set():
            for pid in worker_pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            is_over.wait(0.01)

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        with pytest.raises(ServiceError, match=r"died 3 times without a batch \(exit code -9.*out of memory") as raised:
            taken(stream, 1000)
    finally:
        is_over.set()
        killer.join()
    assert "lower the number of loader workers" in str(raised.value)
    step = stream.state_dict()["step"]
    assert not worker_pids()
    assert_same(taken(stream, 2), taken(stream_of(dataset), step + 2)[step:])  # the caller may go on


RANK = """
import json, sys, time
from pipeline.image.transforms import PretrainView
from pipeline.dataset.dataset import open_dataset
from pipeline.streaming.order import OrderConfig
from pipeline.streaming.stream import LoaderConfig, Stream
from pipeline.streaming.selection import Selection
order = OrderConfig(seed=1, batch_size=12, num_lanes=6, window_blocks=2)
dataset = open_dataset(sys.argv[1])
dataset.shards, dataset.blocks
stream = Stream(Selection(dataset), order, PretrainView(16), loader=LoaderConfig(num_workers=2))
print("opened", flush=True)
sys.stdin.readline()
next(stream)
print("streaming", flush=True)
while True:
    next(stream)
"""


@contextmanager
def rank_process(url: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", RANK, url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as rank:
        assert rank.stdin
        assert rank.stdout
        try:
            assert rank.stdout.readline() == "opened\n"
            rank.stdin.write("go\n")
            rank.stdin.flush()
            yield rank
        finally:
            rank.kill()


def test_a_killed_rank_leaves_neither_processes_nor_shared_memory(folder: Path) -> None:
    shared_before = set(os.listdir(SHARED_MEMORY))
    with rank_process(str(folder)) as rank:
        assert rank.stdout
        assert rank.stdout.readline() == "streaming\n"
        pids = worker_pids(rank.pid)
        assert len(pids) == 2
        for pid in (rank.pid, *pids):
            # Anonymous memory: it has no name that could stay behind, and ends with its last holder.
            assert "/memfd:bit-batches (deleted)" in Path(f"/proc/{pid}/maps").read_text()
        assert not any(str(rank.pid) in name for name in set(os.listdir(SHARED_MEMORY)) - shared_before)
        rank.kill()
        rank.wait()
        wait_until(lambda: not any(map(is_running, pids)), "the workers of the killed rank to end")


def test_a_rank_killed_while_storage_does_not_answer_leaves_no_process(
    s3: Stack, s3_url: Callable[[str], str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(folder, s3_url("set"))
    is_stalled = threading.Event()
    port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
    proxy = FaultProxy(port, lambda method, path: "stalled" if is_stalled.is_set() else None, stall_seconds=600.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    try:
        is_stalled.clear()
        command = [sys.executable, "-c", RANK, s3_url("set")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as rank:
            assert rank.stdin
            assert rank.stdout
            assert rank.stdout.readline() == "opened\n"
            is_stalled.set()
            rank.stdin.write("go\n")
            rank.stdin.flush()
            wait_until(lambda: proxy.faults["stalled"] >= 2, "both workers to be at a read that stalls")
            pids = worker_pids(rank.pid)
            assert len(pids) == 2
            rank.kill()
            rank.wait()
            wait_until(lambda: not any(map(is_running, pids)), "the workers of the killed rank to end")
    finally:
        proxy.close()


def test_close_ends_the_workers_may_be_called_twice_and_the_next_batch_goes_on(dataset: Dataset) -> None:
    expected = taken(stream_of(dataset), 4)
    stream = stream_of(dataset, num_workers=2)
    stream.close()
    batches = [next(stream), next(stream)]
    assert len(worker_pids()) == 2
    stream.close()
    stream.close()
    assert not worker_pids()
    assert stream.state_dict()["step"] == 2
    batches += taken(stream, 2)
    assert_same(batches, expected)


def test_closing_while_a_killed_worker_is_started_again_leaves_no_process(dataset: Dataset) -> None:
    stream = stream_of(dataset, num_workers=2)
    for pause_seconds in (0.0, 0.005, 0.02):
        next(stream)
        for pid in worker_pids():
            os.kill(pid, signal.SIGKILL)
        time.sleep(pause_seconds)  # the point: another moment of the restart in each round
        stream.close()
        assert not worker_pids()


def test_descriptors_and_threads_do_not_grow_with_restarts(dataset: Dataset) -> None:
    stream = stream_of(dataset)
    taken(stream, 1)
    open_before, threads_before = len(os.listdir("/proc/self/fd")), set(threading.enumerate())
    for _ in range(10):
        taken(stream, 1)
    gc.collect()
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= open_before + 2, "the descriptors to be closed")
    wait_until(lambda: not set(threading.enumerate()) - threads_before, "the threads to end")


def test_a_stream_never_ends(dataset: Dataset) -> None:
    batches = taken(stream_of(dataset), 26)  # five epochs and a step
    for epoch in range(5):
        assert keys_of(batches, epoch) == [(shard, row) for shard, row in keys_of(batches, 0)]
        assert len(set(keys_of(batches, epoch))) == 90
    assert all(batch.images.shape == (18, 16, 16, 3) for batch in batches)


def test_a_transform_of_a_script_is_refused_by_workers_with_the_remedy(dataset: Dataset, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\n"
        "from pipeline.image.transforms import Placement\n"
        "from pipeline.dataset.dataset import open_dataset\n"
        "from pipeline.streaming.order import OrderConfig\n"
        "from pipeline.streaming.stream import LoaderConfig, Stream\n"
        "from pipeline.streaming.selection import Selection\n"
        "def corner(height, width, random):\n"
        "    return Placement((0, 0, 8, 8), 8)\n"
        "selection, order = Selection(open_dataset(sys.argv[1])), OrderConfig(batch_size=4, num_lanes=2)\n"
        "with_thread = Stream(selection, order, corner)\n"
        "print(next(with_thread).images.shape)\n"
        "with_thread.close()\n"
        "next(Stream(selection, order, corner, loader=LoaderConfig(num_workers=1)))\n"
    )
    done = subprocess.run([sys.executable, str(script), dataset.store.url], capture_output=True, text=True, check=False)
    assert done.stdout == "(4, 8, 8, 3)\n"
    assert done.returncode == 1
    assert "define a transform of your own in a module" in done.stderr


class _OwnError(Exception):
    """An exception that cannot be copied by pickle."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__("no pickle")


def _failing_with(error: Exception) -> Any:
    drawn = []

    def transform(height: int, width: int, random: Any) -> Any:
        drawn.append(height)
        if len(drawn) > 10:
            raise error
        return PretrainView(16)(height, width, random)

    return transform


@pytest.mark.parametrize("error", [EOFError("of the transform"), BrokenPipeError("of the transform"), _OwnError(1, 2)])
def test_whatever_a_transform_raises_comes_out_of_the_stream(dataset: Dataset, error: Exception) -> None:
    stream = Stream(Selection(dataset), ORDER, _failing_with(error))
    with pytest.raises((EOFError, BrokenPipeError, ServiceError), match=r"of the transform|_OwnError: no pickle"):
        list(stream)
    stream.close()


def test_a_transform_that_cannot_be_sent_works_in_a_thread_and_is_refused_by_processes(dataset: Dataset) -> None:
    def transform(height: int, width: int, random: Any) -> Any:
        return PretrainView(16)(height, width, random)

    thread = Stream(Selection(dataset), ORDER, transform)
    assert len(next(thread).labels) == ORDER.batch_size
    thread.close()
    before = psutil.Process().num_fds()
    for _ in range(3):
        with pytest.raises(ConfigError, match="define a transform of your own in a module"):
            next(Stream(Selection(dataset), ORDER, transform, loader=LoaderConfig(num_workers=1)))
    assert psutil.Process().num_fds() <= before
    assert worker_pids() == []


def test_workers_are_not_misled_by_modules_in_the_current_folder(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("raise RuntimeError('another package of this name')")
    monkeypatch.chdir(tmp_path)
    stream = Stream(Selection(dataset), ORDER, PretrainView(16), loader=LoaderConfig(num_workers=1))
    assert len(next(stream).labels) == ORDER.batch_size
    stream.close()
