"""The loader: its processes may die, its memory is bounded, and nothing of that changes a batch."""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from cluster.services import Stack
from pipeline.augment import PretrainView
from pipeline.dataset import SIDECAR_CACHE_BYTES, Dataset, open_dataset
from pipeline.errors import ConfigError, ServiceError
from pipeline.loader.prefetch import Prefetcher
from pipeline.order import OrderConfig
from pipeline.stream import WORKER_BYTES, Batch, LoaderConfig, Source, Stream
from pipeline.view import View
from tests.conftest import pack
from tests.faults import FaultProxy
from tests.soak.damage import upload

ORDER = OrderConfig(seed=11, batch_size=18, num_lanes=6, window_blocks=2)  # five steps an epoch of 90
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - the kernel's own
FEW_SECONDS = 60.0  # on a busy machine


@pytest.fixture(scope="module")
def folder(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 pictures in blocks of about 7, which lanes share at their borders."""
    target = tmp_path_factory.mktemp("loader") / "set"
    pack(small_folder, str(target), max_samples_per_shard=25, block_bytes=40_000)
    return target


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return open_dataset(str(folder))


def stream_of(source: Dataset | View | list[Source], *, order: OrderConfig = ORDER, **loader: Any) -> Stream:
    view = View(source) if isinstance(source, Dataset) else source
    return Stream(view, order, PretrainView(16), loader=LoaderConfig(**loader))


def taken(stream: Stream, count: int) -> list[Batch]:
    try:
        return [next(stream) for _ in range(count)]
    finally:
        stream.close()


def assert_same(batches: list[Batch], others: list[Batch]) -> None:
    for one, other in zip(batches, others, strict=True):
        assert np.array_equal(one.places, other.places)
        assert np.array_equal(one.images, other.images)
        assert one.labels == other.labels


def keys_of(batches: list[Batch], epoch: int) -> list[tuple[int, int]]:
    rows = [row for batch in batches for row in batch.places.tolist()]
    return sorted((shard, row) for _, of_epoch, shard, row in rows if of_epoch == epoch)


def least_bytes(view: View, order: OrderConfig = ORDER) -> int:
    """Gives the smallest budget that is accepted, as the refusal tells it."""
    batches = 4 * order.batch_size * 16 * 16 * 3
    windows = order.num_lanes * order.window_blocks * view.max_block_bytes
    sidecars = SIDECAR_CACHE_BYTES if view.reads_sidecars else 0
    return min(windows, view.num_bytes) + batches + sidecars


def worker_pids(of: int | None = None) -> list[int]:
    """Gives the loader processes that a process has started and that live."""
    found = []
    for child in psutil.Process(of).children():
        with suppress(psutil.Error):
            if "pipeline.loader.worker" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child.pid)
    return found


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + FEW_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


# Processes


def test_killed_loader_workers_are_started_again_and_the_batches_are_the_same(dataset: Dataset) -> None:
    expected = taken(stream_of(dataset), 16)
    stream = stream_of(dataset, num_workers=2)
    batches = []
    try:
        for step in range(16):
            if step in (2, 7, 8):
                wait_until(lambda: len(worker_pids()) == 2)  # the one killed before may be on its way
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
from pipeline.augment import PretrainView
from pipeline.dataset import open_dataset
from pipeline.order import OrderConfig
from pipeline.stream import LoaderConfig, Stream
from pipeline.view import View
order = OrderConfig(seed=1, batch_size=12, num_lanes=6, window_blocks=2)
dataset = open_dataset(sys.argv[1])
dataset.shards, dataset.blocks
stream = Stream(View(dataset), order, PretrainView(16), loader=LoaderConfig(num_workers=2))
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
        wait_until(lambda: not any(map(is_alive, pids)))


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
            wait_until(lambda: proxy.faults["stalled"] >= 2)
            pids = worker_pids(rank.pid)
            assert len(pids) == 2
            rank.kill()
            rank.wait()
            wait_until(lambda: not any(map(is_alive, pids)))
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
        time.sleep(pause_seconds)
        stream.close()
        assert not worker_pids()


def test_descriptors_and_threads_do_not_grow_with_restarts(dataset: Dataset) -> None:
    stream = stream_of(dataset)
    taken(stream, 1)
    open_before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        taken(stream, 1)
    gc.collect()
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= open_before + 2)
    wait_until(lambda: sum(thread.name.startswith(("loader", "read-")) for thread in threading.enumerate()) == 0)


def test_a_stream_never_ends(dataset: Dataset) -> None:
    batches = taken(stream_of(dataset), 26)  # five epochs and a step
    for epoch in range(5):
        assert keys_of(batches, epoch) == [(shard, row) for shard, row in keys_of(batches, 0)]
        assert len(set(keys_of(batches, epoch))) == 90
    assert all(batch.images.shape == (18, 16, 16, 3) for batch in batches)


# Memory


def started(stream: Stream) -> tuple[Batch, Prefetcher]:
    """Gives the first batch, and the prefetcher of a stream that reads in threads of this process."""
    batch = next(stream)
    [found] = [one for one in gc.get_objects() if type(one) is Prefetcher and not one._closed]
    return batch, found


def lent_by(stream: Stream, images: np.ndarray) -> bool:
    """Tells whether pictures lie in the memory that the stream shares with its workers."""
    desk = stream._desk
    assert desk
    return np.shares_memory(images, desk._slots)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_is_handed_over_without_a_copy_and_its_memory_used_again_when_the_last_view_is_gone(
    dataset: Dataset, num_workers: int
) -> None:
    expected = taken(stream_of(dataset), 30)
    stream = stream_of(dataset, num_workers=num_workers)
    places = set()
    view = np.empty(0)
    try:
        for step in range(30):
            images = next(stream).images
            assert lent_by(stream, images)
            assert np.array_equal(images, expected[step].images)
            if step:
                assert np.array_equal(view, expected[step - 1].images[3, :, ::-1])  # alone keeps its batch
            places.add(images.__array_interface__["data"][0])
            images[0] = 0  # the caller's to write to
            view = torch.from_numpy(images).numpy()[3, :, ::-1]
        assert len(places) == 4
    finally:
        stream.close()


@pytest.mark.parametrize("seed", range(3))
def test_whatever_a_caller_keeps_and_drops_no_kept_batch_changes_through_kills_and_after_the_end(
    dataset: Dataset, seed: int
) -> None:
    random = Random(seed)
    expected = taken(stream_of(dataset), 40)
    stream = stream_of(dataset, num_workers=2)
    kept: dict[int, np.ndarray] = {}
    try:
        for step in range(40):
            kept[step] = next(stream).images
            assert sum(lent_by(stream, images) for images in kept.values()) <= 2
            for dropped in random.sample(sorted(kept), random.randrange(len(kept) + 1)):
                del kept[dropped]
            if step in (9, 21):
                os.kill(random.choice(worker_pids()), signal.SIGKILL)
            for number, images in kept.items():
                assert np.array_equal(images, expected[number].images)
        kept[40] = next(stream).images
    finally:
        stream.close()
    assert next(stream).places.shape == (18, 4)  # other workers, other memory
    stream.close()
    del kept[40]
    for number, images in kept.items():
        assert np.array_equal(images, expected[number].images)


def test_a_forked_child_that_drops_a_batch_does_not_give_its_parents_memory_back(dataset: Dataset) -> None:
    expected = taken(stream_of(dataset), 12)
    stream = stream_of(dataset, num_workers=1)
    try:
        first = next(stream)
        child = os.fork()
        if not child:
            del first
            gc.collect()
            os._exit(0)
        os.waitpid(child, 0)
        for step in range(1, 12):
            assert np.array_equal(next(stream).images, expected[step].images)
            assert np.array_equal(first.images, expected[0].images)
    finally:
        stream.close()


@pytest.mark.parametrize(
    ("num_lanes", "window_blocks", "spare"), [(2, 1, 0), (2, 2, 20_000), (3, 1, 0), (1, 3, 60_000)]
)
def test_a_slow_consumer_never_makes_the_loader_hold_more_than_its_budget(
    dataset: Dataset, num_lanes: int, window_blocks: int, spare: int
) -> None:
    order = OrderConfig(seed=2, batch_size=6, num_lanes=num_lanes, window_blocks=window_blocks)
    budget = least_bytes(View(dataset), order) + spare
    stream = stream_of(dataset, order=order, budget_bytes=budget)
    first, prefetcher = started(stream)
    highest = [0]
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            highest[0] = max(highest[0], prefetcher.held_bytes)
            time.sleep(0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    batches = [first]
    try:
        for step in range(44):
            batches.append(next(stream))
            if step % 10 == 3:  # holds what it has while the loader may go on
                time.sleep(0.1)
    finally:
        is_over.set()
        watcher.join()
        stream.close()
    for_batches = 4 * order.batch_size * 16 * 16 * 3
    assert 0 < highest[0] <= budget - for_batches
    assert len(set(keys_of(batches, 0))) == len(set(keys_of(batches, 1))) == 90
    assert stream.counts.bytes_read > 2.5 * View(dataset).num_bytes  # it read anew, so it did not keep all


def test_a_budget_too_small_is_refused_with_the_figures_and_the_smallest_one_works(dataset: Dataset) -> None:
    least = least_bytes(View(dataset))
    with pytest.raises(ConfigError) as raised:
        stream_of(dataset, budget_bytes=least - 1)
    told = str(raised.value)
    assert f"needs {least / 1e6:.1f} MB" in told
    assert f"its budget is {least / 1e6:.1f} MB" in told
    for way_out in ("raise budget_bytes", "window_blocks (2)", "6 lanes"):
        assert way_out in told
    assert_same(taken(stream_of(dataset, budget_bytes=least), 12), taken(stream_of(dataset), 12))


def test_the_disk_cache_changes_no_batch_and_later_epochs_ask_storage_nothing(
    s3: Stack, s3_url: Callable[[str], str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(folder, s3_url("set"))
    gets: list[str] = []
    port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
    proxy = FaultProxy(port, lambda method, path: gets.append(path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    try:
        dataset = open_dataset(s3_url("set"))
        order = OrderConfig(seed=2, batch_size=6, num_lanes=2, window_blocks=2)
        tight: dict[str, Any] = {"order": order, "budget_bytes": least_bytes(View(dataset), order), "read_threads": 1}
        plain = taken(stream_of(dataset, **tight), 30)
        assert len(gets) > 25  # no cache: every epoch asks anew
        gets.clear()
        stream = stream_of(dataset, **tight, cache_folder=str(tmp_path / "cache"))
        batches = [next(stream) for _ in range(15)]  # an epoch
        assert gets
        gets.clear()
        batches += taken(stream, 15)
        assert gets == []
        assert stream.counts.cache_hits > 0
        assert_same(batches, plain)
        again = taken(stream_of(dataset, **tight, cache_folder=str(tmp_path / "cache")), 30)  # another process's cache
        assert not [path for path in gets if ".tar" in path]
        assert_same(again, plain)
    finally:
        proxy.close()


def reference(dataset: Dataset) -> dict[tuple[int, int], np.ndarray]:
    """Gives the pixels of each sample in epoch 0, by shard and row: they are keyed by these and not by the order."""
    batches = taken(stream_of(dataset), 5)
    return {
        (address.shard, address.row): image
        for batch in batches
        for address, image in zip(batch.addresses, batch.images, strict=True)
    }


@pytest.mark.parametrize(
    ("kind", "with_cache", "num_workers"),
    [
        *(("few", False, 0), ("few", True, 0), ("few", False, 2)),
        *(("many", False, 0), ("many", True, 0), ("many", True, 2)),
        *(("excluded", False, 0), ("excluded", True, 0), ("all but one", False, 0)),
    ],
)
def test_a_view_streams_exactly_its_rows_with_the_pixels_they_have_in_the_whole(
    dataset: Dataset, kind: str, with_cache: bool, num_workers: int, tmp_path: Path
) -> None:
    everything = [(shard["shard"], row) for shard in dataset.shards for row in range(shard["num_samples"])]
    left_out = [(0, 0), (0, 1), (0, 12), (1, 24), (3, 3)] if kind == "excluded" else [(2, 5)]
    wanted = {
        "few": [key for key in everything if key[1] % 6 == 1],  # about one of a block
        "many": [key for key in everything if key[1] % 6 != 1],  # most of a block
    }.get(kind, [key for key in everything if key not in left_out])

    def by_shard(keys: list[tuple[int, int]]) -> dict[int, list[int]]:
        return {shard: [row for of, row in keys if of == shard] for shard in {shard for shard, _ in keys}}

    if kind in ("few", "many"):
        view = View(dataset, by_shard(wanted))
    else:
        view = View(dataset, excluded_by_shard=by_shard(left_out))
    assert view.num_samples == len(wanted)
    pixels = reference(dataset)
    order = OrderConfig(seed=ORDER.seed, batch_size=3, num_lanes=3, window_blocks=1)
    num_batches = -(-2 * len(wanted) // 3)
    cache = {"cache_folder": str(tmp_path / "cache")} if with_cache else {}
    for budget in (least_bytes(view, order) + 100_000 + num_workers * (WORKER_BYTES + SIDECAR_CACHE_BYTES), 1 << 30):
        stream = stream_of(view, order=order, num_workers=num_workers, budget_bytes=budget, **cache)
        batches = taken(stream, num_batches)
        assert keys_of(batches, 0) == keys_of(batches, 1) == sorted(wanted)
        for batch in batches:
            for (_, epoch, shard, row), image in zip(batch.places.tolist(), batch.images, strict=True):
                assert epoch or np.array_equal(image, pixels[shard, row])


def test_state_with_twenty_sources_stays_below_a_kilobyte(dataset: Dataset) -> None:
    sources = [Source(View(dataset), weight=1.0 + number / 7) for number in range(20)]
    stream = stream_of(sources, order=OrderConfig(seed=2**63, batch_size=4096 * 16, num_lanes=4096))
    stream.load_state_dict(stream.state_dict() | {"step": 10**12})
    assert len(json.dumps(stream.state_dict())) < 1000


def test_a_transform_of_a_script_is_refused_by_workers_with_the_remedy(dataset: Dataset, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\n"
        "from pipeline.augment import Placement\n"
        "from pipeline.dataset import open_dataset\n"
        "from pipeline.order import OrderConfig\n"
        "from pipeline.stream import LoaderConfig, Stream\n"
        "from pipeline.view import View\n"
        "def corner(height, width, random):\n"
        "    return Placement((0, 0, 8, 8), 8)\n"
        "view, order = View(open_dataset(sys.argv[1])), OrderConfig(batch_size=4, num_lanes=2)\n"
        "with_thread = Stream(view, order, corner)\n"
        "print(next(with_thread).images.shape)\n"
        "with_thread.close()\n"
        "next(Stream(view, order, corner, loader=LoaderConfig(num_workers=1)))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), dataset.store.url], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "(4, 8, 8, 3)\n"
    assert done.returncode == 1
    assert "define a transform of your own in a module" in done.stderr


class _OwnError(Exception):
    """An exception that cannot be copied by pickle."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__("told")


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
    stream = Stream(View(dataset), ORDER, _failing_with(error))
    with pytest.raises((EOFError, BrokenPipeError, ServiceError), match=r"of the transform|_OwnError: told"):
        list(stream)
    stream.close()


def test_a_transform_that_cannot_be_sent_works_in_a_thread_and_is_refused_by_processes(dataset: Dataset) -> None:
    def transform(height: int, width: int, random: Any) -> Any:
        return PretrainView(16)(height, width, random)

    thread = Stream(View(dataset), ORDER, transform)
    assert len(next(thread).labels) == ORDER.batch_size
    thread.close()
    before = psutil.Process().num_fds()
    for _ in range(3):
        with pytest.raises(ConfigError, match="define a transform of your own in a module"):
            next(Stream(View(dataset), ORDER, transform, loader=LoaderConfig(num_workers=1)))
    assert psutil.Process().num_fds() <= before
    assert worker_pids() == []


def test_workers_are_not_misled_by_modules_in_the_current_folder(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("raise RuntimeError('another package of this name')")
    monkeypatch.chdir(tmp_path)
    stream = Stream(View(dataset), ORDER, PretrainView(16), loader=LoaderConfig(num_workers=1))
    assert len(next(stream).labels) == ORDER.batch_size
    stream.close()
