"""A cluster that is gone, too small or busy is named in one sentence, at once."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cluster.stack.services import Stack
from pipeline.base.errors import ServiceError
from pipeline.work.on_ray import require_cluster
from tests.conftest import class_folders, cli, run_cli, running_stack
from tests.soak.shard_kill import contents
from tests.waiting import wait_until


@pytest.fixture
def dead_address() -> str:
    """Return an address of this machine where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_packing_on_a_cluster_that_is_gone_says_what_to_unset(tmp_path: Path, dead_address: str) -> None:
    source = class_folders(tmp_path / "pictures", classes=1, each=1)
    done = run_cli(
        "pipeline", "shard", str(source), str(tmp_path / "packed"), "--ray",
        RAY_ADDRESS=dead_address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"),
    )  # fmt: skip
    assert done.returncode == 1
    assert f"error: no Ray cluster answers at {dead_address}" in done.stderr
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        assert name in done.stderr.split("unset ")[1]
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "packed").exists()


def test_addresses_that_ray_accepts_are_probed(monkeypatch: pytest.MonkeyPatch, dead_address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"ray://{dead_address}")
    with pytest.raises(ServiceError, match=f"ray://{dead_address}"):
        require_cluster()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:port")
    with pytest.raises(ServiceError, match="no HOST:PORT"):
        require_cluster()
    monkeypatch.setenv("RAY_ADDRESS", "local")
    require_cluster()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listening.getsockname()[1]}")
        require_cluster()


def test_a_cluster_of_the_last_ray_start_that_is_gone_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dead_address: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)  # clusters of other tests on this machine
    require_cluster()
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(dead_address)
    with pytest.raises(ServiceError, match=f":{dead_address.split(':')[1]} .*`ray start`.*ray_current_cluster"):
        require_cluster()


_CHECK = """
import ray
from pipeline.base.errors import ServiceError
from pipeline.work.on_ray import require_capacity
ray.init(log_to_driver=False, logging_level="ERROR")
print(require_capacity(2, use_gpu=False, wait=True))
print(require_capacity(3, use_gpu=False, wait=True))
try:
    require_capacity(1, use_gpu=True, wait=False)
except ServiceError as error:
    print(error)

@ray.remote(num_cpus=1)
class Other:
    def runs(self): return True

others = [Other.remote(), Other.remote()]
ray.get([other.runs.remote() for other in others])
print(require_capacity(1, use_gpu=False, wait=True))
"""


def test_what_the_cluster_has_and_what_is_missing_is_said(cluster: Stack) -> None:
    done = run_cli("python", "-c", _CHECK)
    assert done.stdout.splitlines() == [
        "None",
        "3 workers take 3 CPUs, but the cluster has 2 CPUs and 0 GPUs on 2 nodes: add 1 CPU, or give --workers 2",
        "1 worker takes 1 GPU, but the cluster has 2 CPUs and 0 GPUs on 2 nodes: add 1 GPU, or leave out --gpu",
        "1 worker takes 1 CPU; of the cluster's 2 CPUs 0 are free: `cluster status` lists its jobs",
    ], done.stderr


_REPORTS = """
import sys, time
from pathlib import Path
from pipeline.work.on_ray import OnRay
from pipeline.work.pools import report_done

def work(seen):
    report_done(3)
    report_done(4)
    while not Path(seen).exists():
        time.sleep(0.05)

pool = OnRay(1)
before, running = pool.num_reported, pool.submit(work, sys.argv[1])
while pool.num_reported < 7:
    time.sleep(0.05)
print(before, pool.num_reported, running.done())
Path(sys.argv[1]).touch()
running.result()
pool.close()
"""


def test_progress_on_ray_counts_what_running_tasks_report(cluster: Stack, tmp_path: Path) -> None:
    done = run_cli("python", "-c", _REPORTS, str(tmp_path / "seen"))
    assert done.stdout.split() == ["0", "7", "False"], done.stderr
    assert done.stderr == ""  # Ray tells the level of its log, if it can


_GPUS = """
import os, ray, sys, time
from pathlib import Path
ray.init(num_cpus=4, num_gpus=2)
from pipeline.work.on_ray import OnRay

def seen(number, folder):
    (folder / str(number)).touch()
    while len(list(folder.iterdir())) < 2:  # so that each needs a GPU of its own
        time.sleep(0.05)
    return os.environ["CUDA_VISIBLE_DEVICES"]

pool = OnRay(use_gpu=True)
calls = [pool.submit(seen, number, Path(sys.argv[1])) for number in range(2)]
print(pool.num_slots, *sorted(call.result() for call in calls))
pool.close()
"""


def test_calls_that_ask_for_a_gpu_see_one_each(tmp_path: Path) -> None:
    names = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS")
    alone = {name: value for name, value in os.environ.items() if name not in names} | {"RAY_ADDRESS": "local"}
    command = [sys.executable, "-c", _GPUS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=alone)
    assert done.stdout.split() == ["2", "0", "1"], done.stderr


def test_a_cluster_without_gpus_is_named_where_one_is_asked_for(cluster: Stack) -> None:
    done = run_cli("python", "-c", "from pipeline.work.on_ray import OnRay; OnRay(use_gpu=True)")
    assert "1 worker takes 1 GPU, but the cluster has" in done.stderr
    assert "leave out --gpu" in done.stderr


_PLACES = """
import ray, time
from ray.util.state import list_actors
from pipeline.work.on_ray import OnRay
from trainer.run.board import Board

pools = [OnRay(1) for _ in range(4)]
boards = [Board.start(str(number), 60.0) for number in range(4)]
job, alive, deadline = ray.get_runtime_context().get_job_id(), [], time.monotonic() + 120
while len(alive) < 8 and time.monotonic() < deadline:
    alive = list_actors(filters=[("state", "=", "ALIVE"), ("job_id", "=", job)], limit=1000)
    time.sleep(0.1)
print(len(alive), {actor.node_id for actor in alive} == {ray.get_runtime_context().get_node_id()})
"""


def test_actors_of_a_driver_live_beside_it_so_that_other_nodes_may_leave(cluster: Stack) -> None:
    done = run_cli("python", "-c", _PLACES)
    assert done.stdout.split() == ["8", "True"], done.stderr


REPORT = """
import time
from pipeline.work.on_ray import connect, quieten
quieten()
import ray
connect(None)
gcs = ray._private.worker.global_worker.gcs_client
ray._private.utils.publish_error_to_driver("node_died", "raylet says: [state-dump]", gcs)
time.sleep(3)
"""


def test_reports_of_ray_on_dying_nodes_are_left_to_its_files(cluster: Stack) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REPORT],
        env=os.environ | cluster.environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")


_PACKS = """
import sys
from pipeline.work import on_ray
on_ray._GONE_SECONDS = 1.0  # instead of 20
from pipeline.cli import main
main()
"""


def test_packing_whose_cluster_dies_ends_in_a_sentence_and_can_go_on(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "pictures", each=300)
    options = ["--reencode", "--shard-mb", "0.2"]
    with running_stack(tmp_path / "stack", [1]) as stack:
        run = subprocess.Popen(
            [sys.executable, "-c", _PACKS, "shard", str(source), str(tmp_path / "set"), "--ray", *options],
            stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ),
        )  # fmt: skip
        wait_until(lambda: list((tmp_path / "set").glob("commits/*/*.json")), "the first commit")
        for head in (psutil.Process(pid) for pid, _ in stack.processes):
            for child in head.children(recursive=True):
                if child.name() == "gcs_server":
                    child.kill()
        out, errors = run.communicate()
    last = errors.splitlines()[-1]
    assert last.startswith(f"error: the Ray cluster at {stack.environment['RAY_ADDRESS']} has not answered"), errors
    assert "run the same command" in last
    assert (run.returncode, out) == (1, "")
    kept = {path: path.read_bytes() for path in (tmp_path / "set").glob("commits/*/*.json")}
    cli("shard", source, tmp_path / "set", *options)
    assert kept.items() <= {path: path.read_bytes() for path in (tmp_path / "set").glob("commits/*/*.json")}.items()
    cli("shard", source, tmp_path / "calm", *options)
    assert contents(str(tmp_path / "set")) == contents(str(tmp_path / "calm"))


def test_a_process_that_is_not_on_ray_knows_it_without_importing_it() -> None:
    script = "import sys; from pipeline.work.on_ray import is_on_ray; print(is_on_ray(), 'ray' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).split() == ["False", "False"]
