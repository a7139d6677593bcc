"""Kills packing at random points until it has had enough, and proves that nothing was lost, repeated or changed.

    python -m tests.soak.shard_kill --kills 200 [--seed 0]

A real S3 server and a real Ray cluster of two nodes. One dataset after another is packed, in turn on Ray and in local
processes; at random moments a worker, the driver, a Ray node or the S3 server is killed with SIGKILL. A killed driver
is started again with the same command, a killed server or node with the command it had. Each finished dataset must
have the bytes of an undisturbed one, every row once, and nothing beside it that `pipeline gc` calls an orphan.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cluster.stack.services import Stack, start_stack, stop_stack
from pipeline.base.errors import Unreachable
from pipeline.dataset.dataset import Address, open_dataset
from pipeline.store.url import open_store
from pipeline.upkeep.gc import garbage
from tests.conftest import class_folders
from tests.processes import running_children
from tests.waiting import WAIT_SECONDS, wait_until

_BUCKET = "soak"
_OPTIONS = ("--shard-mb", "0.12", "--block-mib", "0.04", "--workers", "2")
_LONGEST_PAUSE_SECONDS = 5.0
_MOST_STARTS = 60  # of one driver, before the run is called stuck
_RAY_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
TARGETS = ("worker", "driver", "node", "server")


@dataclass
class Outcome:
    """What a soak did.

    Attributes:
        kills: Number by target.
        num_datasets: Datasets finished and compared.
        num_starts: Drivers started.
        respawned: Services that were killed and started again: the stack does not know them.
    """

    kills: Counter[str] = field(default_factory=Counter)
    num_datasets: int = 0
    num_starts: int = 0
    respawned: list[psutil.Process] = field(default_factory=list)


def contents(url: str) -> dict[str, bytes]:
    """Return every object of a dataset but leases, which hold who ran when."""
    store = open_store(url)
    return {entry.key: store.read(entry.key) for entry in store.walk() if not entry.key.startswith("leases/")}


def soak(stack: Stack, source: Path, num_kills: int, seed: int, bucket: str = _BUCKET) -> Outcome:
    """Pack and kill until `num_kills` processes were killed and the dataset under way is finished.

    Raises:
        AssertionError: A dataset differs from the undisturbed one.
    """
    chance = random.Random(seed)
    outcome = Outcome()
    calm_url = f"s3://{bucket}/calm"
    subprocess.run(_command(source, calm_url, on_ray=False), check=True, capture_output=True)
    calm = contents(calm_url)
    _check_rows(calm_url, source)
    try:
        while sum(outcome.kills.values()) < num_kills:
            url = f"s3://{bucket}/killed-{outcome.num_datasets}"
            _pack_under_fire(stack, source, url, chance, outcome, num_kills)
            _compare(url, calm)
            outcome.num_datasets += 1
            print(f"dataset {outcome.num_datasets} whole after {dict(outcome.kills)} kills", flush=True)
    finally:
        for process in outcome.respawned:
            end(process)
    return outcome


def _check_rows(url: str, source: Path) -> None:
    """Every picture is in the undisturbed dataset once; the others have its bytes."""
    dataset = open_dataset(url)
    sources = Counter(
        dataset.read_about(Address(shard["shard"], row))["source"]
        for shard in dataset.shards
        for row in range(shard["num_samples"])
    )
    assert sources == {str(path.relative_to(source)): 1 for path in source.rglob("*.jpg")}


def answers(url: str) -> bool:
    """Return whether the server, which may have been killed a moment ago, answers."""
    try:
        contents(url)
    except Unreachable:
        return False
    return True


def _compare(url: str, calm: dict[str, bytes]) -> None:
    wait_until(lambda: answers(url), "the S3 server to be back")
    found = contents(url)
    differing = sorted(key for key in calm.keys() | found.keys() if calm.get(key) != found.get(key))
    assert not differing, f"{url}: {differing[:5]} differ from the undisturbed dataset"
    left = list(garbage(open_store(url), older_than_hours=0, with_abandoned_runs=True))
    assert {item.why for item in left} <= {"incomplete upload", "old lease"}, left


def _command(source: Path, url: str, *, on_ray: bool) -> list[str]:
    tool = str(Path(sys.executable).parent / "pipeline")
    return [tool, "shard", str(source), url, *_OPTIONS, *(["--ray"] if on_ray else [])]


def _pack_under_fire(
    stack: Stack, source: Path, url: str, chance: random.Random, outcome: Outcome, num_kills: int
) -> None:
    command = _command(source, url, on_ray=outcome.num_datasets % 2 == 0)
    for _ in range(_MOST_STARTS):
        outcome.num_starts += 1
        with _driver(command) as driver:
            while driver.poll() is None:
                time.sleep(chance.uniform(0.0, _LONGEST_PAUSE_SECONDS))  # the point: a random moment
                if driver.poll() is None and sum(outcome.kills.values()) < num_kills:
                    target = chance.choice(TARGETS)
                    if kill_one(stack, driver, target, chance, outcome):
                        outcome.kills[target] += 1
            errors = (driver.stderr.read() if driver.stderr else b"").decode()
        if driver.returncode == 0:
            return
        # Killed, or out of patience with what was killed: the same command goes on. A wrong result would end it.
        assert "exists with other content" not in errors, errors[-2000:]
    raise AssertionError(f"{url} was not finished in {_MOST_STARTS} starts; the last one printed {errors[-500:]}")


@contextmanager
def _driver(command: list[str]) -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as driver:
        try:
            yield driver
        finally:
            driver.kill()


def kill_one(
    stack: Stack, driver: "subprocess.Popen[bytes]", target: str, chance: random.Random, outcome: Outcome
) -> bool:
    """Kill one process of the kind; return whether there was one."""
    if target == "driver":
        driver.kill()
        return True
    if target == "worker":
        return _kill_worker(stack, driver, chance)
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):  # it is dying, and may be dead by now
            if serves(process, stack, target):
                outcome.respawned.append(_respawn(process))
                return True
    return False


def _kill_worker(stack: Stack, driver: "subprocess.Popen[bytes]", chance: random.Random) -> bool:
    workers = running_children(driver.pid, "spawn_main")
    workers += [process.pid for process in ray_workers(stack)]
    if not workers:
        return False
    try:
        os.kill(chance.choice(workers), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def ray_workers(stack: Stack) -> list[psutil.Process]:
    """Return the processes that run tasks and actors of a stack."""
    return [process for process in psutil.process_iter() if _is_ray_worker(process, stack)]


def _is_ray_worker(process: psutil.Process, stack: Stack) -> bool:
    """Return whether a process runs tasks of this stack; a node's agents are part of the node, and end it with them."""
    try:
        title = (process.cmdline() or [""])[0]
        is_mine = process.environ().get("RAY_AUTH_TOKEN_PATH", "").startswith(stack.folder)
    except psutil.Error:
        return False
    return is_mine and title.startswith("ray::") and not title.startswith(_RAY_AGENTS)


def serves(process: psutil.Process, stack: Stack, target: str) -> bool:
    """Return whether a process is the stack's S3 server, or the first process of its Ray node that is not the head."""
    try:
        command = " ".join(process.cmdline())
        if target == "server":
            return f"-dir={stack.folder}/objects" in command
        token = process.environ().get("RAY_AUTH_TOKEN_PATH", "")
        return "start --block" in command and "--address=" in command and token.startswith(stack.folder)
    except psutil.Error:
        return False


def _respawn(process: psutil.Process) -> psutil.Process:
    """Kill a service with all it started, and start it again as it was."""
    command, environment = process.cmdline(), process.environ()
    end(process)
    started = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    return psutil.Process(started.pid)


def end(process: psutil.Process) -> None:
    """Kill a process with all it started."""
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=WAIT_SECONDS)


def main() -> None:
    """Run the soak and print what it did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        source = class_folders(Path(folder) / "photos", classes=3, each=1500)
        stack = start_stack(Path(folder) / "stack", cpus_per_node=[1, 1], bucket=_BUCKET)
        os.environ.update(stack.environment)
        try:
            outcome = soak(stack, source, arguments.kills, arguments.seed)
        finally:
            stop_stack(stack)
    counts = ", ".join(f"{outcome.kills[target]} {target}" for target in TARGETS)
    print(
        f"{sum(outcome.kills.values())} kills ({counts}) over {outcome.num_datasets} datasets, {outcome.num_starts} "
        f"drivers started, {time.monotonic() - started:.0f} s: every dataset byte-identical to the undisturbed one"
    )


if __name__ == "__main__":
    main()
