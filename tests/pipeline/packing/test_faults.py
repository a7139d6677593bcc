"""Packing through a broken network, beside a second driver, over dead workers: the dataset is the undisturbed one."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

import pipeline.store.s3
from cluster.stack.services import Stack
from pipeline.base.errors import Conflict, Unreachable
from pipeline.store.base import commit
from pipeline.store.url import open_store
from tests.conftest import BUCKET, class_folders, cli, run_cli, running_stack
from tests.faults import FaultProxy, first, sometimes
from tests.processes import running_children
from tests.soak.shard_kill import contents, soak
from tests.waiting import wait_until

_OPTIONS = ("--shard-mb", "0.1", "--block-mib", "0.04")
_WORKER = "spawn_main"  # in the command line of a process of `multiprocessing`


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_folders(tmp_path_factory.mktemp("faults") / "in", each=40)


@pytest.fixture(scope="module")
def calm(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The undisturbed dataset."""
    target = tmp_path_factory.mktemp("calm") / "set"
    assert run_cli("pipeline", "shard", str(source), str(target), *_OPTIONS).returncode == 0
    return contents(str(target))


@pytest.fixture
def endpoint(s3: Stack) -> str:
    """The server in use: that of the cluster, once there is one."""
    return os.environ["AWS_ENDPOINT_URL"]


@pytest.fixture
def proxied(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FaultProxy]]:
    """Put a proxy between the client and the server."""
    started = []

    def start(choose: Callable[[str, str], str | None], stall_seconds: float = 5.0) -> FaultProxy:
        proxy = FaultProxy(int(endpoint.rpartition(":")[2]), choose, stall_seconds)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        started.append(proxy)
        return proxy

    yield start
    for proxy in started:
        proxy.close()


@pytest.mark.parametrize("kind", ["reset", "truncated", "lost answer", "flipped byte", "500", "503"])
def test_packing_through_a_broken_network(
    kind: str,
    source: Path,
    calm: dict[str, bytes],
    s3_url: Callable[[str], str],
    proxied: Callable[..., FaultProxy],
    monkeypatch: pytest.MonkeyPatch,
    endpoint: str,
) -> None:
    proxy = proxied(sometimes(kind, 0.15))
    done = run_cli("pipeline", "shard", str(source), s3_url("set"), *_OPTIONS, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert proxy.faults[kind] >= 3
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert contents(s3_url("set")) == calm


def test_a_server_that_stalls_is_asked_again(
    s3_url: Callable[[str], str], proxied: Callable[..., FaultProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.store.s3, "_READ_SECONDS", 1)
    proxy = proxied(first("stalled", 2, "GET", "key"), stall_seconds=30.0)
    store = open_store(s3_url("x"))
    store.create("key", b"body")
    assert store.read("key") == b"body"
    assert proxy.faults["stalled"] == 2


@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_an_answer_lost_after_the_object_was_created_is_success_once(
    method: str, s3_url: Callable[[str], str], proxied: Callable[..., FaultProxy]
) -> None:
    """The server has the object, the client does not know: asking again meets its own object, not another run's."""
    proxy = proxied(first("lost answer", 1, method, "uploadId" if method == "POST" else "key"))
    store = open_store(s3_url("x"))
    body = os.urandom(1000) if method == "PUT" else os.urandom(70 << 20)
    commit(store, "key", body)
    assert proxy.faults["lost answer"] == 1
    assert store.read("key") == body
    assert list(store.unfinished()) == []


def test_a_wrong_etag_never_replaces_what_it_does_not_name(
    s3_url: Callable[[str], str], proxied: Callable[..., FaultProxy]
) -> None:
    proxied(first("wrong etag", 1, "GET", "pointer"))
    store = open_store(s3_url("x"))
    store.create("pointer", b"one")
    _, tag = store.read_tagged("pointer")
    with pytest.raises(Conflict):
        store.replace("pointer", b"two", tag)
    assert store.read("pointer") == b"one"


def test_a_wrong_etag_of_a_part_leaves_no_object(
    s3_url: Callable[[str], str], proxied: Callable[..., FaultProxy]
) -> None:
    proxied(first("wrong etag", 1, "PUT", "partNumber"))
    store = open_store(s3_url("x"))
    with pytest.raises(Unreachable, match="a part did not arrive"):
        store.create("large", os.urandom(70 << 20))
    assert list(store.list("")) == []
    assert store.create("large", b"again")


def test_a_wrong_secret_ends_a_run_at_once(source: Path, s3_url: Callable[[str], str]) -> None:
    done = run_cli("pipeline", "shard", str(source), s3_url("set"), "--workers", "2", AWS_SECRET_ACCESS_KEY="wrong")
    assert done.returncode == 1
    assert done.stderr.count("error:") == 1
    assert "AWS_SECRET_ACCESS_KEY" in done.stderr


@pytest.mark.parametrize("place", ["local", "s3"])
def test_of_two_drivers_one_is_fenced_and_the_result_is_whole(
    place: str, source: Path, calm: dict[str, bytes], tmp_path: Path, s3_url: Callable[[str], str]
) -> None:
    dest = str(tmp_path / "set") if place == "local" else s3_url("set")
    command = [str(Path(sys.executable).parent / "pipeline"), "shard", str(source), dest, *_OPTIONS]
    older = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    store = open_store(dest)
    wait_until(lambda: list(store.list("commits/")), "the first commit")
    older.send_signal(signal.SIGSTOP)  # a driver that is cut off for a while, and comes back
    newer = subprocess.run(command, capture_output=True, text=True, check=False)
    older.send_signal(signal.SIGCONT)
    _, errors = older.communicate()
    assert newer.returncode == 0, newer.stderr
    assert older.returncode == 1
    assert "has taken over" in errors
    assert contents(dest) == calm


def test_dead_workers_cost_nothing_but_time(source: Path, calm: dict[str, bytes], tmp_path: Path) -> None:
    dest, log = tmp_path / "set", tmp_path / "log.jsonl"
    command = [str(Path(sys.executable).parent / "pipeline"), "shard", str(source), str(dest), *_OPTIONS]
    command += ["--workers", "2", "--log-jsonl", str(log)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as driver:

        def has_committed(count: int) -> bool:
            return driver.poll() is not None or len(list(dest.glob("commits/*/*.json"))) >= count

        for count in (1, 2, 3):
            wait_until(partial(has_committed, count), f"{count} commits")
            for worker in running_children(driver.pid, _WORKER)[:1]:
                with suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
        errors = driver.communicate()[1].decode()
    assert driver.returncode == 0, errors
    assert log.read_text().count('"event": "lost"') >= 1
    assert contents(str(dest)) == calm


def test_tars_are_packed_and_verified_on_ray(cluster: Stack, source: Path, tmp_path: Path) -> None:
    """Planning, packing and checking as Ray tasks; the bytes are those of local workers."""
    packed, again = f"s3://{BUCKET}/on-ray/set", f"s3://{BUCKET}/on-ray/again"
    cli("shard", source, packed, *_OPTIONS)
    done = run_cli("pipeline", "shard", packed, again, *_OPTIONS, "--ray")
    assert done.returncode == 0, done.stderr
    cli("shard", packed, tmp_path / "again", *_OPTIONS)
    assert contents(again) == contents(str(tmp_path / "again"))
    checked = run_cli("pipeline", "verify", again, "--level", "decode", "--ray")
    assert checked.returncode == 0, checked.stderr


@pytest.mark.timeout(300)
def test_kills_of_workers_drivers_nodes_and_server(tmp_path: Path) -> None:
    """A short form of the soak, on a cluster of its own, since what it kills is not what was started."""
    source = class_folders(tmp_path / "in", each=150)
    with running_stack(tmp_path / "stack", [1, 1]) as stack:
        outcome = soak(stack, source, num_kills=5, seed=3, bucket=BUCKET)
        assert sum(outcome.kills.values()) == 5
        assert outcome.num_datasets >= 1
