"""One contract for every store: create-if-absent, compare-and-swap, exact ranges; and clear words when it fails."""

import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import boto3
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from cluster.stack.ports import free_ports
from cluster.stack.services import Stack
from pipeline.base.errors import ConfigError, Conflict, CorruptShard, Denied, NotFound, StorageFull, Unreachable
from pipeline.store.base import Store, commit, exists
from pipeline.store.url import open_store
from tests.conftest import BUCKET, run_here


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "store"))
    url: Callable[[str], str] = request.getfixturevalue("s3_url")
    return open_store(url("store"))


def test_create_writes_once(store: Store) -> None:
    assert store.create("a/b.bin", b"first")
    assert not store.create("a/b.bin", b"second")
    assert store.read("a/b.bin") == b"first"
    assert store.num_bytes("a/b.bin") == 5


def test_of_eight_writers_at_once_one_wins(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda writer: store.create("raced", b"%d" % writer), range(8)))
    assert sum(won) == 1
    assert store.read("raced") == b"%d" % won.index(True)


def test_replace_needs_the_tag_of_what_is_there(store: Store) -> None:
    store.create("pointer", b"one")
    _, tag = store.read_tagged("pointer")
    store.replace("pointer", b"two", tag)
    with pytest.raises(Conflict):
        store.replace("pointer", b"three", tag)
    assert store.read("pointer") == b"two"


def test_commit_accepts_equal_and_refuses_other_bytes(store: Store) -> None:
    assert commit(store, "record", b"same")
    assert not commit(store, "record", b"same")
    with pytest.raises(Conflict, match="other content"):
        commit(store, "record", b"other")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(min_size=1, max_size=3000), data=st.data())
def test_ranges_equal_slices(store: Store, body: bytes, data: st.DataObject) -> None:
    key = f"ranged/{hash(body)}"
    store.create(key, body)
    start = data.draw(st.integers(0, len(body) - 1))
    length = data.draw(st.integers(0, len(body) - start))
    assert store.read_range(key, start, length) == body[start : start + length]


def test_a_range_past_the_end_is_an_error(store: Store) -> None:
    store.create("short", b"0123456789")
    with pytest.raises(CorruptShard):
        store.read_range("short", 5, 10)
    with pytest.raises(CorruptShard):
        store.read_range("short", 50, 10)


def test_list_gives_keys_in_order_below_the_prefix(store: Store) -> None:
    for key in ("b/2", "a/1", "b/10", "bc", "b/.hidden"):
        store.create(key, b"x")
    assert [entry.key for entry in store.list("b/")] == ["b/.hidden", "b/10", "b/2"]
    assert [entry.key for entry in store.list("")] == ["a/1", "b/.hidden", "b/10", "b/2", "bc"]
    assert exists(store, "a/1")
    assert not exists(store, "a")


def test_delete_is_final_and_repeatable(store: Store) -> None:
    store.create("gone", b"x")
    store.delete("gone")
    store.delete("gone")
    with pytest.raises(NotFound):
        store.read("gone")


def test_missing_objects_are_not_found(store: Store) -> None:
    for read in (store.read, store.num_bytes, store.read_tagged, lambda key: store.read_range(key, 0, 1)):
        with pytest.raises(NotFound):
            read("nothing/here")


def test_a_large_object_goes_up_in_parts_and_still_only_once(s3_url: Callable[[str], str]) -> None:
    store = open_store(s3_url("large"))
    body = os.urandom(1 << 20) * 70
    assert store.create("big", body)
    assert not store.create("big", body[::-1])
    assert store.read("big") == body
    pending = boto3.client("s3").list_multipart_uploads(Bucket=BUCKET, Prefix="test-a-large-object")
    assert not pending.get("Uploads")


def test_a_wrong_secret_is_named(s3_url: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(Denied, match="AWS_SECRET_ACCESS_KEY"):
        open_store(s3_url("x")).read("key")


def test_an_unknown_access_key_is_named(s3_url: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(Denied, match="AWS_ACCESS_KEY_ID"):
        open_store(s3_url("x")).read("key")


def test_a_missing_bucket_is_named(s3: Stack) -> None:
    with pytest.raises(NotFound, match="no-such-bucket"):
        open_store("s3://no-such-bucket/x").read("key")


def test_a_server_that_does_not_answer_is_named(s3: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(Unreachable, match="AWS_ENDPOINT_URL"):
        open_store(f"s3://{BUCKET}/x").read("key")


def test_a_full_disk_is_named_and_leaves_nothing(tiny_disk: Path, small_folder: Path) -> None:
    store = open_store(str(tiny_disk / "store"))
    assert store.create("small", b"x" * 1000)
    with pytest.raises(StorageFull, match="no space left"):
        store.create("large", b"x" * 1_000_000)
    assert [path.name for path in (tiny_disk / "store").iterdir()] == ["small"]
    done = run_here("shard", str(small_folder), str(tiny_disk / "set"))
    assert done.returncode == 1
    assert "no space left" in done.stderr
    assert not (tiny_disk / "set" / "MANIFEST.json").exists()


@pytest.mark.parametrize(("url", "message"), [("gs://bucket/x", "not gs://"), ("s3:///x", "names no bucket")])
def test_urls_no_store_serves_are_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_store(url)


class CuttingProxy:
    """Forwards connections to the S3 server and cuts the first `cuts` of them after `after_bytes` of answer."""

    def __init__(self, target_port: int, cuts: int, after_bytes: int) -> None:
        self._target_port, self._cuts, self._after_bytes = target_port, cuts, after_bytes
        self.num_connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.num_connections += 1
            server = socket.create_connection(("127.0.0.1", self._target_port))
            allowed = self._after_bytes if self.num_connections <= self._cuts else None
            threading.Thread(target=self._forward, args=(client, server, None), daemon=True).start()
            threading.Thread(target=self._forward, args=(server, client, allowed), daemon=True).start()

    @staticmethod
    def _forward(source: socket.socket, sink: socket.socket, allowed: int | None) -> None:
        try:
            while data := source.recv(4096):
                if allowed is not None:
                    data = data[:allowed]
                    allowed -= len(data)
                sink.sendall(data)
                if allowed == 0:
                    break
        except OSError:
            pass
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # close alone would wait for the thread that reads it


def test_a_connection_cut_in_the_middle_of_a_body_is_read_again(
    s3: Stack, s3_url: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = os.urandom(300_000)
    open_store(s3_url("x")).create("key", body)
    server_port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
    for read in (lambda store: store.read("key"), lambda store: store.read_range("key", 0, len(body))):
        proxy = CuttingProxy(server_port, cuts=2, after_bytes=100_000)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        assert read(open_store(s3_url("x"))) == body
        assert proxy.num_connections >= 3
        proxy.close()


def test_a_connection_that_is_always_cut_ends_in_one_error(
    s3: Stack, s3_url: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(s3_url("x")).create("key", os.urandom(300_000))
    proxy = CuttingProxy(int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]), cuts=10_000, after_bytes=100_000)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    with pytest.raises(Unreachable, match="no answer from S3"):
        open_store(s3_url("x")).read("key")
    proxy.close()
