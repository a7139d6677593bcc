"""The block cache of a node under full disks, deaths and many processes: never a torn body, never an error."""

import errno
import logging
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import pipeline.store.block_cache
from pipeline.base.errors import ConfigError
from pipeline.store.block_cache import BlockCache
from tests.caching import body_of, bytes_there, counted, files

SPAWN = multiprocessing.get_context("spawn")


def test_writes_that_fail_at_once_warn_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache, keys = BlockCache(tmp_path, 1000), iter("bc")

    def failing(path: Path, body: bytes) -> None:
        for key in keys:
            cache.put(key, body)
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(pipeline.store.block_cache, "_fill", failing)
    cache.put("a", bytes(10))
    assert cache.num_failed_writes == 3
    assert ["Disk quota exceeded" in record.message for record in caplog.records] == [True]
    assert counted(cache) == bytes_there(tmp_path) == 0


def test_an_interrupted_put_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = BlockCache(tmp_path, 1000)

    def interrupted(path: Path, body: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.store.block_cache, "_fill", interrupted)
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
    with pytest.raises(ConfigError, match=r"cache folder .*file cannot be used .* choose a folder"):
        BlockCache(tmp_path / "file", 1000)


def test_a_folder_of_another_user_is_refused_with_a_remedy() -> None:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.seteuid(65534)
        with pytest.raises(ConfigError, match=r"Permission denied.*choose a folder"):
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
    highest = max(highest, bytes_there(tmp_path))
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
        time.sleep(0.01 * seed)  # the point: another moment in each round
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()
        # Not below: what a killed writer counted and did not write is over-counted.
        assert bytes_there(tmp_path) <= (counted(cache) or 0) <= limit
        for number in range(97):
            assert cache.get(f"{seed}-{number}") in (None, body_of(f"{seed}-{number}", 50_000))
    monkeypatch.setattr(pipeline.store.block_cache, "_ABANDONED_SECONDS", -1.0)
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
        "write": lambda: setattr(pipeline.store.block_cache, "_fill", die_in_write),
        "utime": lambda: setattr(pipeline.store.block_cache, "_touch", die),
        "rename": lambda: setattr(Path, "rename", die),
    }
    if moment == "utime":
        pipeline.store.block_cache._is_touched = lambda path: (
            False
        )  # only the touch of the file being written is to be fatal
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
