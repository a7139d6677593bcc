"""The block cache of a node: least recently used, never over its limit, never a torn body, never an error."""

import pickle
import shutil
import tempfile
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import pipeline.store.block_cache
from pipeline.store.block_cache import BlockCache
from tests.caching import age, body_of, bytes_there, counted, files


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
    (tmp_path / pipeline.store.block_cache._COUNTER_NAME).write_bytes(content)
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
    age(old, pipeline.store.block_cache._ABANDONED_SECONDS + 60)
    for number in range(20):
        cache.put(str(number), bytes(100))
    (tmp_path / pipeline.store.block_cache._COUNTER_NAME).write_bytes(b"")
    cache.put("more", bytes(100))
    assert not old.exists()
    assert young.exists()
    assert bytes_there(tmp_path) <= 1000  # with the young one: its writer may be at work
    assert counted(cache) == bytes_there(tmp_path)


def test_a_writer_that_slept_too_long_adds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, other = BlockCache(tmp_path, 1000), BlockCache(tmp_path, 1000)
    fill = pipeline.store.block_cache._fill

    def fill_slowly(path: Path, body: bytes) -> None:
        fill(path, body)
        age(path, pipeline.store.block_cache._ABANDONED_SECONDS + 60)
        (tmp_path / pipeline.store.block_cache._COUNTER_NAME).write_bytes(b"")
        BlockCache(tmp_path, 1000)

    monkeypatch.setattr(pipeline.store.block_cache, "_fill", fill_slowly)
    cache.put("a", bytes(500))
    monkeypatch.undo()
    assert (cache.get("a"), cache.num_bytes_written, cache.num_failed_writes) == (None, 0, 0)
    assert counted(other) == 0
    cache.put("a", bytes(500))
    assert cache.get("a") == bytes(500)


def test_of_two_writers_of_a_key_one_entry_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, other = BlockCache(tmp_path, 1000), BlockCache(tmp_path, 1000)
    fill = pipeline.store.block_cache._fill

    def overtaken(path: Path, body: bytes) -> None:
        monkeypatch.undo()
        other.put("a", body)
        fill(path, body)

    monkeypatch.setattr(pipeline.store.block_cache, "_fill", overtaken)
    cache.put("a", bytes(500))
    assert (cache.num_bytes_written, other.num_bytes_written) == (0, 500)
    assert [path.stat().st_size for path in files(tmp_path)] == [500]
    assert counted(cache) == 500


def test_a_body_without_room_beside_one_being_written_is_not_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, other = BlockCache(tmp_path, 1000), BlockCache(tmp_path, 1000)
    fill = pipeline.store.block_cache._fill

    def beside(path: Path, body: bytes) -> None:
        monkeypatch.undo()
        other.put("b", bytes(600))
        assert bytes_there(tmp_path) == counted(other) == 600
        fill(path, body)

    monkeypatch.setattr(pipeline.store.block_cache, "_fill", beside)
    cache.put("a", bytes(600))
    assert (cache.get("a"), cache.get("b")) == (bytes(600), None)
    assert (cache.num_failed_writes, other.num_failed_writes) == (0, 0)


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
