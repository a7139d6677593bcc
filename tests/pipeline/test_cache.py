"""The block cache of a node: least recently used, never over its limit, never a torn body, never an error."""

import errno
import hashlib
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import pipeline.cache
from pipeline.cache import BlockCache
from pipeline.errors import ConfigError

SPAWN = multiprocessing.get_context("spawn")


def body_of(key: str, num_bytes: int) -> bytes:
    """Gives a body that tells its key and is recognized when cut or mixed."""
    return (hashlib.sha256(key.encode()).digest() * (num_bytes // 32 + 1))[:num_bytes]


def files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("??/*") if path.is_file()]


def bytes_there(folder: Path) -> int:
    """Sums what is there while others may remove it."""
    total = 0
    for path in files(folder):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def counted(cache: BlockCache) -> int | None:
    with cache._ledger() as ledger:
        return ledger.read()


def age(path: Path, seconds: float) -> None:
    modified = path.stat().st_mtime - seconds
    os.utime(path, (modified, modified))


def test_a_body_comes_back_in_this_and_in_another_copy(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "new" / "folder", 1000)
    assert cache.get("a") is None
    cache.put("a", b"body")
    cache.put("empty", b"")
    copy = pickle.loads(pickle.dumps(cache))
    assert (copy.get("a"), copy.get("empty"), cache.get("a")) == (b"body", b"", b"body")
    assert (cache.hits, cache.misses, cache.num_bytes_written) == (1, 1, 4)
    assert (copy.hits, copy.misses, copy.num_bytes_written) == (2, 0, 0)


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 1000)
    for key in "abcde":
        cache.put(key, body_of(key, 200))
    cache.get("a")
    cache.put("b", body_of("b", 200))  # is there: used again
    cache.put("f", body_of("f", 200))
    assert {key for key in "abcdef" if cache.get(key)} == set("abdef")


def test_an_eviction_makes_room_for_many_puts(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 1000)
    for number in range(101):
        cache.put(str(number), body_of(str(number), 10))
    assert bytes_there(tmp_path) == 960  # 5 % below the limit, and the new one
    assert [number for number in range(101) if not cache.get(str(number))] == [0, 1, 2, 3, 4]


def test_a_body_above_the_limit_is_not_cached_and_removes_nothing(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 100)
    cache.put("small", b"small")
    cache.put("large", bytes(101))
    assert (cache.get("small"), cache.get("large")) == (b"small", None)
    cache.put("exact", bytes(100))
    assert cache.get("exact") == bytes(100)


def test_a_discarded_entry_is_gone_and_may_come_again(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 100)
    cache.discard("a")
    cache.put("a", b"wrong")
    cache.discard("a")
    assert cache.get("a") is None
    assert counted(cache) == 0
    cache.put("a", b"right")
    assert cache.get("a") == b"right"


def test_a_smaller_limit_holds_from_the_start(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 1000)
    for number in range(10):
        cache.put(str(number), bytes(100))
    smaller = BlockCache(tmp_path, 500)
    assert bytes_there(tmp_path) <= 500
    assert smaller.get("9") == bytes(100)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"another boot".ljust(36) + b"/" + b"0" * 20, b"\xff" * 80])
def test_a_lost_or_old_count_is_made_again(tmp_path: Path, content: bytes) -> None:
    cache = BlockCache(tmp_path, 1000)
    for number in range(9):
        cache.put(str(number), bytes(100))
    (tmp_path / pipeline.cache._COUNTER_NAME).write_bytes(content)
    for number in range(9, 14):
        cache.put(str(number), bytes(100))
        assert bytes_there(tmp_path) <= 1000
    assert counted(cache) == bytes_there(tmp_path)


def test_files_of_others_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    others = [tmp_path / "ab" / "notes.txt", tmp_path / "pictures" / "a.jpg", tmp_path / "tar", tmp_path / "zz"]
    for other in others[:2]:
        other.parent.mkdir()
    for other in others:
        other.write_bytes(bytes(5000))
        age(other, 1e6)
    cache = BlockCache(tmp_path, 1000)
    for number in range(50):
        cache.put(str(number), bytes(100))
    assert all(other.exists() for other in others)
    assert cache.get("49") == bytes(100)


def test_what_dead_writers_left_is_removed_when_old(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 1000)
    (tmp_path / "ab").mkdir()
    old, young = tmp_path / "ab" / ".tmp-old", tmp_path / "ab" / ".tmp-young"
    for path in (old, young):
        path.write_bytes(bytes(300))
    age(old, pipeline.cache._ABANDONED_SECONDS + 60)
    for number in range(20):
        cache.put(str(number), bytes(100))
    (tmp_path / pipeline.cache._COUNTER_NAME).write_bytes(b"")
    cache.put("more", bytes(100))
    assert not old.exists()
    assert young.exists()
    assert bytes_there(tmp_path) <= 1000  # with the young one: its writer may be at work
    assert counted(cache) == bytes_there(tmp_path)


def test_a_writer_that_slept_too_long_adds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, other = BlockCache(tmp_path, 1000), BlockCache(tmp_path, 1000)
    fill = pipeline.cache._fill

    def fill_slowly(path: Path, body: bytes) -> None:
        fill(path, body)
        age(path, pipeline.cache._ABANDONED_SECONDS + 60)
        (tmp_path / pipeline.cache._COUNTER_NAME).write_bytes(b"")
        BlockCache(tmp_path, 1000)

    monkeypatch.setattr(pipeline.cache, "_fill", fill_slowly)
    cache.put("a", bytes(500))
    monkeypatch.undo()
    assert (cache.get("a"), cache.num_bytes_written, cache.num_failed_writes) == (None, 0, 0)
    assert counted(other) == 0
    cache.put("a", bytes(500))
    assert cache.get("a") == bytes(500)


def test_of_two_writers_of_a_key_one_entry_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, other = BlockCache(tmp_path, 1000), BlockCache(tmp_path, 1000)
    fill = pipeline.cache._fill

    def overtaken(path: Path, body: bytes) -> None:
        monkeypatch.undo()
        other.put("a", body)
        fill(path, body)

    monkeypatch.setattr(pipeline.cache, "_fill", overtaken)
    cache.put("a", bytes(500))
    assert (cache.num_bytes_written, other.num_bytes_written) == (0, 500)
    assert [path.stat().st_size for path in files(tmp_path)] == [500]
    assert counted(cache) == 500


def test_a_body_without_room_beside_one_being_written_is_not_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, other = BlockCache(tmp_path, 1000), BlockCache(tmp_path, 1000)
    fill = pipeline.cache._fill

    def beside(path: Path, body: bytes) -> None:
        monkeypatch.undo()
        other.put("b", bytes(600))
        assert bytes_there(tmp_path) == counted(other) == 600
        fill(path, body)

    monkeypatch.setattr(pipeline.cache, "_fill", beside)
    cache.put("a", bytes(600))
    assert (cache.get("a"), cache.get("b")) == (bytes(600), None)
    assert (cache.num_failed_writes, other.num_failed_writes) == (0, 0)


def test_writes_that_fail_at_once_warn_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache, keys = BlockCache(tmp_path, 1000), iter("bc")

    def failing(path: Path, body: bytes) -> None:
        for key in keys:
            cache.put(key, body)
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(pipeline.cache, "_fill", failing)
    cache.put("a", bytes(10))
    assert cache.num_failed_writes == 3
    assert ["Disk quota exceeded" in record.message for record in caplog.records] == [True]
    assert counted(cache) == bytes_there(tmp_path) == 0


def test_an_interrupted_put_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = BlockCache(tmp_path, 1000)

    def interrupted(path: Path, body: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.cache, "_fill", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.put("a", bytes(500))
    assert files(tmp_path) == []
    assert counted(cache) == 0


def test_a_full_disk_ends_writing_and_not_reading(tiny_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = BlockCache(tiny_disk / "cache", 1 << 20)
    with caplog.at_level(logging.WARNING):
        for number in range(12):
            cache.put(str(number), body_of(str(number), 30_000))
    assert ["No space left" in record.message for record in caplog.records] == [True]
    assert cache.num_failed_writes == 1
    kept = [number for number in range(12) if cache.get(str(number))]
    assert 1 <= len(kept) < 12
    assert all(cache.get(str(number)) == body_of(str(number), 30_000) for number in kept)
    assert bytes_there(tiny_disk / "cache") == 30_000 * len(kept)
    cache.discard(str(kept[0]))
    cache.put("after", b"small")
    assert (cache.get(str(kept[0])), cache.get("after")) == (None, None)


def test_a_disk_that_is_full_at_the_start_is_no_error(tiny_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (tiny_disk / "filler").open("wb", buffering=0) as filler:
        assert filler.write(bytes(1 << 20)) < 1 << 20  # a file system writes what it has room for
    cache = BlockCache(tiny_disk / "cache", 1 << 20)
    cache.put("a", b"body")
    assert cache.get("a") is None
    assert len(caplog.records) == 1


def test_a_folder_that_cannot_be_written_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"cache folder .*file cannot be used .* give a folder"):
        BlockCache(tmp_path / "file", 1000)


def test_a_folder_of_another_user_is_refused_with_a_remedy() -> None:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.seteuid(65534)
        with pytest.raises(ConfigError, match=r"Permission denied.*give a folder"):
            BlockCache(folder, 1000)
    finally:
        if is_root:
            os.seteuid(0)
        shutil.rmtree(folder)


def _write_many(folder: Path, max_bytes: int, writer: int, count: int) -> None:
    cache = BlockCache(folder, max_bytes)
    for number in range(count):
        key = f"{writer}-{number}"
        cache.put(key, body_of(key, 1000 + (number * 37 + writer) % 3000))
        shared = f"shared-{number}"
        cache.put(shared, body_of(shared, 2000))
    assert cache.num_failed_writes == 0
    assert cache.num_bytes_written > 0


def test_four_processes_writing_at_once_stay_within_the_limit(tmp_path: Path) -> None:
    limit = 100_000
    writers = [SPAWN.Process(target=_write_many, args=(tmp_path, limit, writer, 150)) for writer in range(4)]
    for writer in writers:
        writer.start()
    cache, highest = BlockCache(tmp_path, limit), 0
    while any(writer.is_alive() for writer in writers):
        # Nobody can add or remove meanwhile: the sum over a folder that changes is of no moment.
        with cache._ledger() as ledger:
            assert bytes_there(tmp_path) <= (ledger.read() or 0) <= limit
            highest = max(highest, bytes_there(tmp_path))
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert bytes_there(tmp_path) == counted(cache)
    assert highest > 0.8 * limit
    assert not [path for path in files(tmp_path) if path.name.startswith(".tmp-")]


def _write_endlessly(folder: Path, max_bytes: int, seed: int) -> None:
    cache, number = BlockCache(folder, max_bytes), 0
    while True:
        key = f"{seed}-{number % 97}"
        cache.put(key, body_of(key, 50_000))
        cache.discard(f"{seed}-{(number - 50) % 97}")
        number += 1


def test_kill_9_in_the_middle_of_puts_leaves_a_sound_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 1_000_000
    cache = BlockCache(tmp_path, limit)
    for seed in range(6):
        writer = SPAWN.Process(target=_write_endlessly, args=(tmp_path, limit, seed))
        writer.start()
        while not any(cache.get(f"{seed}-{number}") for number in range(97)):
            assert writer.is_alive()
        threading.Event().wait(0.01 * seed)  # another moment in each round
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()
        # Not below: what a killed writer counted and did not write is over-counted.
        assert bytes_there(tmp_path) <= (counted(cache) or 0) <= limit
        for number in range(97):
            assert cache.get(f"{seed}-{number}") in (None, body_of(f"{seed}-{number}", 50_000))
    monkeypatch.setattr(pipeline.cache, "_ABANDONED_SECONDS", -1.0)
    for number in range(100):
        cache.put(f"after-{number}", bytes(50_000))
    assert not [path for path in files(tmp_path) if path.name.startswith(".tmp-")]
    assert bytes_there(tmp_path) == counted(cache)
    assert cache.get("after-99") == bytes(50_000)


@pytest.mark.parametrize("moment", ["truncate", "write", "utime", "rename"])
def test_a_death_at_any_point_of_a_put_leaves_no_partial_entry(tmp_path: Path, moment: str) -> None:
    BlockCache(tmp_path, 1000).put("before", bytes(100))
    writer = SPAWN.Process(target=_die_in_put, args=(tmp_path, moment))
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    cache = BlockCache(tmp_path, 1000)
    assert cache.get("before") == bytes(100)
    assert cache.get("torn") is None
    assert bytes_there(tmp_path) <= (counted(cache) or 0) <= 1000
    for number in range(30):
        cache.put(str(number), bytes(100))
        assert bytes_there(tmp_path) <= (counted(cache) or 0) <= 1000
    assert cache.get("29") == bytes(100)


def _die_in_put(folder: Path, moment: str) -> None:
    cache = BlockCache(folder, 1000)

    def die(*arguments: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def die_in_write(path: Path, body: bytes) -> None:
        with path.open("r+b") as file:
            file.write(body[: len(body) // 2])
        die()

    deaths: dict[str, Callable[[], None]] = {
        "truncate": lambda: setattr(Path, "open", die),
        "write": lambda: setattr(pipeline.cache, "_fill", die_in_write),
        "utime": lambda: setattr(pipeline.cache, "_touch", die),
        "rename": lambda: setattr(Path, "rename", die),
    }
    if moment == "utime":
        pipeline.cache._is_touched = lambda path: False  # only the touch of the file being written is to be fatal
    deaths[moment]()
    cache.put("torn", bytes(range(200)))


def _read_until_many_hits(folder: Path, max_bytes: int) -> None:
    cache = BlockCache(folder, max_bytes)
    while cache.hits < 500:
        for number in range(20):
            assert cache.get(str(number)) in (None, body_of(str(number), 100_000))


def test_reads_while_entries_are_evicted_are_never_partial(tmp_path: Path) -> None:
    limit = 1_000_000  # half of what is put
    cache = BlockCache(tmp_path, limit)
    readers = [SPAWN.Process(target=_read_until_many_hits, args=(tmp_path, limit)) for _ in range(2)]
    for reader in readers:
        reader.start()
    number = 0
    while any(reader.is_alive() for reader in readers) or cache.num_bytes_written < 2 * limit:
        cache.put(str(number % 20), body_of(str(number % 20), 100_000))
        number += 1
    assert [reader.exitcode for reader in readers] == [0, 0]
    assert cache.num_failed_writes == 0


def test_many_threads_share_one_copy(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 50_000)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(_put_and_get, [cache] * 8, range(8)))
    assert cache.hits + cache.misses == 8 * 100
    assert cache.num_failed_writes == 0
    assert counted(cache) == bytes_there(tmp_path) <= 50_000


def _put_and_get(cache: BlockCache, start: int) -> None:
    for number in range(start, start + 100):
        key = str(number % 30)
        cache.put(key, body_of(key, 5000))
        assert cache.get(key) in (None, body_of(key, 5000))


class LeastRecentlyUsed(RuleBasedStateMachine):
    """The cache against an ordered dictionary."""

    keys = st.sampled_from("abcdefghijklmnop")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.cache = BlockCache(self.folder, 100)
        self.model: OrderedDict[str, bytes] = OrderedDict()

    @rule(key=keys, num_bytes=st.integers(0, 110))
    def put(self, key: str, num_bytes: int) -> None:
        self.cache.put(key, body_of(key, num_bytes))
        if num_bytes > 100:
            return
        if key not in self.model:
            if self.total() + num_bytes > 100:
                while self.model and self.total() > 100 - max(5, num_bytes):
                    self.model.popitem(last=False)
            self.model[key] = body_of(key, num_bytes)
        self.model.move_to_end(key)

    @rule(key=keys)
    def get(self, key: str) -> None:
        assert self.cache.get(key) == self.model.get(key)
        if key in self.model:
            self.model.move_to_end(key)

    @rule(key=keys)
    def discard(self, key: str) -> None:
        self.cache.discard(key)
        self.model.pop(key, None)

    @rule()
    def reopen(self) -> None:
        self.cache = BlockCache(self.folder, 100)

    @invariant()
    def counts_what_is_there(self) -> None:
        assert counted(self.cache) == bytes_there(self.folder) == self.total() <= 100

    def total(self) -> int:
        return sum(map(len, self.model.values()))

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


TestLeastRecentlyUsed = LeastRecentlyUsed.TestCase
TestLeastRecentlyUsed.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
