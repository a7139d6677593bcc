"""Disturbs a pretraining run at random for a while, and proves that its weights are those of an undisturbed run.

    python -m tests.soak.pretrain_faults --minutes 30 [--seed 0] [--faults worker,driver,...] [--workers 1:3]

A real S3 server and a real Ray cluster of three nodes; two ranks train. Nobody helps the run: workers, nodes and the
driver are killed, processes are stopped, nodes are drained, the store does not answer or has no room, the newest
checkpoint is damaged. At the end all steps must be there, and every weight and momentum must have the bits of the calm
run: then each epoch held each sample once, and nothing was lost or made twice. With a group that shrinks and grows,
as nodes go and come, sums have another order and the bits differ: then the steps, the place in the data and the
learning rates must be those of the calm run.

The store's disk is one of its own, in memory, so that it can be full; that needs the right to mount. Without it this
fault is left out, with a word.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import psutil

from cluster.stack.services import Stack, start_stack, stop_stack
from pipeline.store.base import Store
from pipeline.store.url import open_store
from tests.conftest import class_folders, pack
from tests.nodes import add_node, drain_node, kill_node
from tests.soak.small_disk import filled, small_disk
from tests.trainer.runs import assert_equal, final_state
from tests.waiting import STORE_POLL_SECONDS, wait_until
from trainer.checkpoint.record import read_record, steps
from trainer.run.events import attempts
from trainer.run.lives import STALL_SECONDS_VARIABLE
from trainer.run.metrics import read_metrics
from trainer.run.resize import RESIZE_SECONDS_VARIABLE

_BUCKET = "soak"
_LAST_SECONDS = 10.0
_STEPS_PER_SECOND = 8.0  # of two ranks on two cores, disturbed; decides how long the run is
_NUM_NODES, _BATCH_SIZE, _NUM_IMAGES = 3, 16, 90
_LOG_EVERY = 10
_OUTAGE_SECONDS = (5.0, 60.0)
_STALL_SECONDS = 15
_RESIZE_SECONDS = 20
_DRAIN_SECONDS = 20
_SETTLE_SECONDS = 3.0  # the other rank may finish a checkpoint; new ones take longer to start and read it
_PAUSE_SECONDS = (5.0, 30.0)  # of calm after the run has got on
_MOST_SECONDS = 400.0  # for the run to get on after a fault


@dataclass
class Soak:
    """A run under way, and what was done to it."""

    stack: Stack
    out: str
    chance: random.Random
    nodes: list[int] = field(default_factory=lambda: [1, 2])  # that may go; number 0 is the head
    num_nodes: int = _NUM_NODES
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def store(self) -> Store:
        """The run's folder."""
        return open_store(self.out)

    def worker(self) -> None:
        """Kill a rank."""
        os.kill(self._rank(), signal.SIGKILL)

    def stop(self) -> None:
        """Stop a rank's process for good."""
        os.kill(self._rank(), signal.SIGSTOP)

    def driver(self) -> None:
        """Kill the driver."""
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or []
            if self.out in command and any("import drive" in part for part in command):
                process.kill()

    def node(self) -> None:
        """Lose a node, and get another one."""
        kill_node(self.stack, self._leaving_node())
        self._another_node()

    def resize(self) -> None:
        """Lose a node, get another one when the group has gone on without it, and see the group grow."""
        kill_node(self.stack, self._leaving_node())

        def has_gone_on(num_ranks: int) -> bool:
            newest = attempts(self.store)[-1]
            return len(newest["ranks"]) == num_ranks and steps(self.store)[-1] > newest["first_step"]

        for num_ranks in (_NUM_NODES - 1, _NUM_NODES):
            what = f"a checkpoint of {num_ranks} ranks"
            wait_until(partial(has_gone_on, num_ranks), what, _MOST_SECONDS, STORE_POLL_SECONDS)
            if num_ranks < _NUM_NODES:
                self._another_node()

    def drain(self) -> None:
        """Have a node taken away with notice, and get another one."""
        number = self._leaving_node()
        drain_node(self.stack, number, _DRAIN_SECONDS)
        self._another_node()
        time.sleep(_DRAIN_SECONDS)
        kill_node(self.stack, number)

    def outage(self) -> None:
        """Let the store not answer for a while."""
        pid, _ = self.stack.processes[-1]
        server = psutil.Process(pid)
        everyone = [server, *server.children(recursive=True)]
        for process in everyone:
            process.suspend()
        time.sleep(self.chance.uniform(*_OUTAGE_SECONDS))
        for process in everyone:
            process.resume()

    def full(self) -> None:
        """Let the store have no room for a while."""
        with filled(Path(self.stack.folder)):
            time.sleep(self.chance.uniform(*_OUTAGE_SECONDS))

    def damage(self) -> None:
        """Kill a rank, and flip a byte of the newest of several checkpoints before it is read."""
        wait_until(lambda: len(steps(self.store)) > 1, "two checkpoints", _MOST_SECONDS, STORE_POLL_SECONDS)
        self.worker()
        time.sleep(_SETTLE_SECONDS)
        record = read_record(self.store, steps(self.store)[-1])
        name = self.chance.choice([file.name for file in record.files if file.num_bytes])
        key = f"{record.folder}/{name}"
        body = bytearray(self.store.read(key))
        body[self.chance.randrange(len(body))] ^= 0x10
        self.store.delete(key)
        self.store.create(key, bytes(body))

    def _rank(self) -> int:
        """Return the process of a rank, once a group of workers is running: a fault before may have ended the last."""
        pids: list[int] = []

        def are_running() -> bool:
            pids[:] = [int(place["pid"]) for place in attempts(self.store)[-1]["ranks"]]
            return all(map(psutil.pid_exists, pids))

        wait_until(are_running, "a group of workers", _MOST_SECONDS, STORE_POLL_SECONDS)
        return self.chance.choice(pids)

    def _leaving_node(self) -> int:
        return self.nodes.pop(self.chance.randrange(len(self.nodes)))

    def _another_node(self) -> None:
        add_node(self.stack, self.num_nodes)
        self.nodes.append(self.num_nodes)
        self.num_nodes += 1


FAULTS: dict[str, Callable[[Soak], None]] = {
    "worker": Soak.worker,
    "driver": Soak.driver,
    "node": Soak.node,
    "resize": Soak.resize,
    "stop": Soak.stop,
    "drain": Soak.drain,
    "outage": Soak.outage,
    "full": Soak.full,
    "damage": Soak.damage,
}
_ENDS_A_START = {"worker", "driver", "stop", "damage"}  # certainly; a lost node may have had no rank


def soak(
    stack: Stack,
    root: str,
    folder: Path,
    minutes: float,
    seed: int,
    faults: list[str],
    *,
    workers: str = "2",
    checkpoint_every_steps: int | None = None,
    pause_seconds: tuple[float, float] = _PAUSE_SECONDS,
) -> Soak:
    """Train once in calm and once disturbed, and compare.

    Args:
        stack: S3 and Ray, with three nodes where nodes are to go.
        root: URL below which data and runs go.
        folder: For pictures.
        minutes: For which to disturb the second run.
        seed: Of faults and moments.
        faults: Of FAULTS.
        workers: Of the runs, as `trainer pretrain --workers` takes them.
        checkpoint_every_steps: Of the disturbed run; None for the interval that it chooses.
        pause_seconds: Least and most calm before the next fault, after the run has got on.

    Raises:
        AssertionError: The run did not get on after a fault, ended with an error, or its weights are others.
    """
    data, calm, out = (f"{root}/{name}" for name in ("data", "calm", "disturbed"))
    pack(class_folders(folder / "in", each=_NUM_IMAGES // 3), data, shard_bytes=150_000, block_bytes=40_000)
    num_steps = max(60, round(60 * minutes * _STEPS_PER_SECOND))
    subprocess.run(_command(data, calm, num_steps, workers), check=True, capture_output=True)
    print(f"calm run: {num_steps:,} steps", flush=True)
    command = _command(data, out, num_steps, workers, checkpoint_every_steps)
    printed = folder / "disturbed.log"  # a pipe that nobody reads would hold it up
    with printed.open("w") as sink:
        run = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
    found = Soak(stack, out, random.Random(seed))
    try:
        _disturb(found, run, minutes, faults, num_steps, pause_seconds)
        assert run.wait() == 0, "the run ended with an error"
    except BaseException:
        _show_evidence(found, printed)
        raise
    finally:
        run.kill()
    assert found.seconds, "the run was over before anything was done to it; give it more minutes"
    rows = read_metrics(found.store)
    assert [row["step"] for row in rows] == [*range(_LOG_EVERY, num_steps, _LOG_EVERY), num_steps]
    calm_rows = read_metrics(open_store(calm))
    is_bitwise = ":" not in workers
    for name in ("learning_rate", "epoch", *(("loss", "gradient_norm") if is_bitwise else ())):
        assert [row[name] for row in rows] == [row[name] for row in calm_rows], name
    if is_bitwise:
        assert_equal(final_state(calm), final_state(out))
    return found


def _show_evidence(found: Soak, printed: Path) -> None:
    """Print what a run that did not get on has said, its starts, and what the cluster has."""
    print(printed.read_text()[-6000:])
    for start in attempts(found.store):
        print(start["first_step"], start.get("time"), [(place["node"], place["pid"]) for place in start["ranks"]])
    ray = str(Path(sys.executable).parent / "ray")
    print(subprocess.run([ray, "status"], check=False, capture_output=True, text=True).stdout, flush=True)


def _disturb(
    found: Soak,
    run: subprocess.Popen[bytes],
    minutes: float,
    faults: list[str],
    num_steps: int,
    pause_seconds: tuple[float, float],
) -> None:
    """Do one thing after another to a run, each when it has got on after the last one.

    Goes on until the time is over and each was done once, or the run is about to end.
    """
    _wait_for_checkpoint(found, run, 0, 0)
    left: list[str] = []
    deadline = time.monotonic() + 60 * minutes
    last = num_steps - round(_LAST_SECONDS * _STEPS_PER_SECOND)  # after it the run may be over before it is disturbed
    while run.poll() is None and steps(found.store)[-1] < last:
        if time.monotonic() >= deadline and len(found.seconds) == len(faults):
            break
        left = left or found.chance.sample(faults, len(faults))  # each as often as the others
        name = left.pop()
        before, began = steps(found.store)[-1], time.monotonic()
        num_starts = len(attempts(found.store)) + (name in _ENDS_A_START)
        FAULTS[name](found)
        _wait_for_checkpoint(found, run, before, num_starts)
        found.seconds[name].append(time.monotonic() - began)
        print(f"{name}: a new checkpoint after {found.seconds[name][-1]:.0f} s", flush=True)
        time.sleep(found.chance.uniform(*pause_seconds))


def _wait_for_checkpoint(found: Soak, run: subprocess.Popen[bytes], step: int, num_starts: int) -> None:
    """Wait for a checkpoint after a step that is the work of the latest of at least so many starts."""
    deadline = time.monotonic() + _MOST_SECONDS

    def is_there() -> bool:
        starts = attempts(found.store)
        if not starts or len(starts) < num_starts:
            return False
        return any(each > max(step, starts[-1]["first_step"]) for each in steps(found.store))

    while run.poll() is None and not is_there():
        assert time.monotonic() < deadline, f"no checkpoint after step {step:,} within {_MOST_SECONDS:.0f} s"
        time.sleep(0.5)


def _command(data: str, out: str, num_steps: int, workers: str, checkpoint_every_steps: int | None = None) -> list[str]:
    settings = {
        "recipe.epochs": num_steps * _BATCH_SIZE / _NUM_IMAGES,
        "recipe.decay_epochs": [],
        "recipe.batch_size": _BATCH_SIZE,
        "recipe.warmup_steps": 10,
        "recipe.resolution_px": 32,
        "num_lanes": 4,
        "log_every_steps": _LOG_EVERY,
        "checkpoint_every_steps": "null" if checkpoint_every_steps is None else checkpoint_every_steps,
    }
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    cluster = str(Path(sys.executable).parent / "cluster")
    recipe = ["--model", "R14x0.5", "--recipe", "bit-s", "--workers", workers]
    return [cluster, "submit", "pretrain", data, out, *recipe, *options]


def table(seconds: dict[str, list[float]]) -> str:
    """Return what was done, how often, and how long the run took to its next checkpoint."""
    lines = ["fault     times  median s  longest s"]
    for name, each in sorted(seconds.items()):
        lines.append(f"{name:<8} {len(each):>6} {median(each):>9.0f} {max(each):>10.0f}")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, and soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", help="with commas; all by default, and `resize` where the group may")
    parser.add_argument("--workers", default="2", help="of the run; MIN:MAX grows and shrinks")
    chosen = parser.parse_args()
    is_elastic = ":" in chosen.workers
    faults = chosen.faults.split(",") if chosen.faults else [name for name in FAULTS if is_elastic or name != "resize"]
    os.environ[STALL_SECONDS_VARIABLE] = str(_STALL_SECONDS)
    os.environ[RESIZE_SECONDS_VARIABLE] = str(_RESIZE_SECONDS)
    with tempfile.TemporaryDirectory() as folder, small_disk(Path(folder) / "stack") as is_small:
        if not is_small and "full" in faults:
            print("without the right to mount a disk, the store never runs out of room")
            faults.remove("full")
        stack = start_stack(Path(folder) / "stack", cpus_per_node=[1] * _NUM_NODES, bucket=_BUCKET)
        os.environ |= stack.environment
        try:
            found = soak(
                stack, f"s3://{_BUCKET}", Path(folder), chosen.minutes, chosen.seed, faults, workers=chosen.workers
            )
        finally:
            stop_stack(stack)
    print(table(found.seconds))
    print("steps, epochs and learning rates are those of the calm run")
    if not is_elastic:
        print("all weights and momenta have its bits")


if __name__ == "__main__":
    main()
