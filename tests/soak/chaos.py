"""Runs the whole product while it is disturbed at random, and proves that its results are those of a calm day.

    python -m tests.soak.chaos --minutes 20 [--seed 0] [--faults worker,driver,...]

A real S3 server and a real Ray cluster of three nodes. Round after round, a set is packed and appended to, another one
is packed, a network is pretrained on two workers and fine-tuned, and the sets are audited with its predictions. All the
while workers, nodes, the driver and the server are killed, workers and the server are stopped for a while, the server
is slow, and the store has no room. Nobody helps but by typing the same command again. At the end of each round

- both datasets have the bytes of the calm ones, with nothing beside them that `pipeline gc` calls an orphan;
- weights and momenta of the pretraining have the bits of the calm ones, and so have the predictions of its fine-tuning;
- the audit's report is the calm one, byte for byte;
- no object, no log and nothing that was printed holds a key of the store or the cluster's token.

When all is stopped no process is left. The store's disk is one of its own, in memory, so that it can be full; without
the right to mount one this fault is left out, with a word.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
from torch import Tensor

from cluster.stack.processes import carries
from cluster.stack.services import Stack, start_stack, stop_stack
from pipeline.store.url import open_store
from pipeline.upkeep.gc import garbage
from tests.cluster.audit.audits import leaky_sets
from tests.nodes import add_node, kill_node
from tests.soak import audit_kill, shard_kill
from tests.soak.shard_kill import Outcome, end, kill_one, ray_workers
from tests.soak.small_disk import filled, small_disk
from tests.trainer.runs import assert_equal, final_state
from tests.waiting import wait_until

_BUCKET = "chaos"
_KILLS = ("worker", "driver", "server")
FAULTS = (*_KILLS, "node", "freeze", "outage", "slow", "full")
_PAUSE_SECONDS = (5.0, 25.0)  # of calm between two faults
_OUTAGE_SECONDS = (1.0, 15.0)  # for which something is stopped or full
_MOST_STARTS = 40  # of one command, before the day is called lost
_CALM_SHARE = 0.5  # of the starts of a command are left alone after the first three, so that each round ends
_DATASETS, _RUNS = ("up", "down"), ("pretrained", "tuned")
_PREDICTIONS = "predictions/0002-shots-0.parquet"


def commands(pictures: Path, root: str) -> list[list[str]]:
    """Return the commands of a round, in order, as a user would type them.

    Args:
        pictures: Holds the class folders `up-in`, `more-in` and `down-in`.
        root: URL below which a round writes.
    """
    tools = Path(sys.executable).parent
    pipeline, trainer, cluster = (str(tools / name) for name in ("pipeline", "trainer", "cluster"))
    up, down, pretrained, tuned = (f"{root}/{name}" for name in (*_DATASETS, *_RUNS))
    small = ["--shard-mb", "0.1", "--workers", "2", "--ray"]
    pretraining = {
        "recipe.epochs": 12, "recipe.decay_epochs": [9], "recipe.batch_size": 16, "recipe.warmup_steps": 10,
        "recipe.resolution_px": 32, "num_lanes": 4, "checkpoint_every_steps": 20,
    }  # fmt: skip
    tuning = {"shortened": {"steps": 20, "batch_size": 16, "resize_px": 40, "crop_px": 32}, "num_lanes": 4}
    return [
        [pipeline, "shard", str(pictures / "up-in"), up, *small],
        [pipeline, "append", str(pictures / "more-in"), up, "--ray"],
        [pipeline, "shard", str(pictures / "down-in"), down, *small],
        [trainer, "pretrain", up, pretrained, "--model", "R14x0.5", "--recipe", "bit-s", "--workers", "2",
         *_set(pretraining)],
        [trainer, "finetune", pretrained, up, down, tuned, "--shots", "2", "--subsets", "1", "--workers", "1",
         *_set(tuning)],
        [cluster, "audit", up, down, f"{root}/report", "--ray", "--canaries", "1",
         "--predictions", f"tuned={tuned}/{_PREDICTIONS}"],
    ]  # fmt: skip


def _set(values: dict[str, object]) -> list[str]:
    return [part for name, value in values.items() for part in ("--set", f"{name}={json.dumps(value)}")]


class Chaos:
    """A day on a cluster.

    Args:
        stack: S3 and Ray.
        seed: Of faults and moments.
        faults: Of FAULTS.
    """

    def __init__(self, stack: Stack, seed: int, faults: list[str]) -> None:
        self.stack = stack
        self.done: Counter[str] = Counter()
        self.num_starts: Counter[str] = Counter()
        self.killed = Outcome()
        self._chance = random.Random(seed)
        self._faults = faults
        self._nodes, self._num_nodes = [1, 2], 3  # that may go; number 0 is the head

    def run(self, command: list[str]) -> None:
        """Type a command until it is done, and disturb it.

        Raises:
            AssertionError: It was not done after so many starts, or found a wrong result.
        """
        name = " ".join([Path(command[0]).name, command[1]])
        for start in range(_MOST_STARTS):
            self.num_starts[name] += 1
            is_disturbed = start < 3 or self._chance.random() > _CALM_SHARE
            with tempfile.TemporaryFile() as sink:
                driver = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
                try:
                    while driver.poll() is None:
                        time.sleep(self._chance.uniform(*_PAUSE_SECONDS) if is_disturbed else 1.0)
                        if is_disturbed and driver.poll() is None:
                            self._disturb(driver)
                finally:
                    driver.kill()
                    driver.wait()
                sink.seek(0)
                printed = sink.read().decode(errors="replace")
            assert not _holds(printed.encode(), _secrets(self.stack)), f"{name} printed a secret"
            if driver.returncode == 0:
                return
            assert "Traceback" not in printed, printed[-3000:]
            assert "exists with other content" not in printed, printed[-3000:]
        raise AssertionError(f"{name} was not done after {_MOST_STARTS} starts; the last one said\n{printed[-2000:]}")

    def _disturb(self, driver: "subprocess.Popen[bytes]") -> None:
        fault = self._chance.choice(self._faults)
        if fault in _KILLS:
            happened = kill_one(self.stack, driver, fault, self._chance, self.killed)
        elif fault == "node":
            happened = self._change_node()
        elif fault == "full":
            happened = self._fill()
        elif fault == "slow":
            happened = self._slow_down(self._server())
        else:
            happened = self._stop(self._server() if fault == "outage" else self._worker())
        self.done[fault] += happened

    def _change_node(self) -> bool:
        """Lose a node, and get another one."""
        kill_node(self.stack, self._nodes.pop(self._chance.randrange(len(self._nodes))))
        add_node(self.stack, self._num_nodes)
        self._nodes.append(self._num_nodes)
        self._num_nodes += 1
        return True

    def _server(self) -> list[psutil.Process]:
        return [each for each in psutil.process_iter() if shard_kill.serves(each, self.stack, "server")]

    def _worker(self) -> list[psutil.Process]:
        workers = ray_workers(self.stack)
        return [self._chance.choice(workers)] if workers else []

    def _stop(self, processes: list[psutil.Process]) -> bool:
        """Stop processes for a while."""
        for process in processes:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGSTOP)
        time.sleep(self._chance.uniform(*_OUTAGE_SECONDS))
        for process in processes:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGCONT)
        return bool(processes)

    def _slow_down(self, processes: list[psutil.Process]) -> bool:
        """Let processes run for a tenth of the time, for a while."""
        end = time.monotonic() + self._chance.uniform(*_OUTAGE_SECONDS)
        while time.monotonic() < end:
            for number, seconds in ((signal.SIGSTOP, 0.18), (signal.SIGCONT, 0.02)):
                for process in processes:
                    with suppress(psutil.Error):
                        process.send_signal(number)
                time.sleep(seconds)
        return bool(processes)

    def _fill(self) -> bool:
        """Let the store have no room for a while."""
        with filled(Path(self.stack.folder)):
            time.sleep(self._chance.uniform(*_OUTAGE_SECONDS))
        return True


@dataclass(frozen=True)
class Results:
    """What a round leaves.

    Attributes:
        objects: Of datasets and report, by name and key.
        weights: Weights and momenta of the pretraining.
        predictions: Of its fine-tuning.
    """

    objects: dict[str, dict[str, bytes]]
    weights: dict[str, Tensor]
    predictions: bytes


def results(root: str) -> Results:
    """Return what a round has left below a URL.

    Raises:
        AssertionError: Beside a dataset lies what `pipeline gc` calls an orphan.
    """
    for name in _DATASETS:
        left = list(garbage(open_store(f"{root}/{name}"), older_than_hours=0, with_abandoned_runs=True))
        assert {item.why for item in left} <= {"incomplete upload", "old lease"}, left
    return Results(
        {name: shard_kill.contents(f"{root}/{name}") for name in _DATASETS}
        | {"report": audit_kill.contents(f"{root}/report")},
        final_state(f"{root}/pretrained"),
        open_store(f"{root}/tuned").read(_PREDICTIONS),
    )


def compare(calm: Results, found: Results) -> None:
    """Hold a disturbed round against the calm one.

    Raises:
        AssertionError: Something is other than on a calm day.
    """
    for name, objects in calm.objects.items():
        others = found.objects[name]
        differing = sorted(key for key in objects.keys() | others.keys() if objects.get(key) != others.get(key))
        assert not differing, f"{name}: {differing[:5]} are other than on a calm day"
    assert_equal(calm.weights, found.weights)
    assert calm.predictions == found.predictions, "the predictions are other than on a calm day"


def find_secrets(stack: Stack, root: str) -> list[str]:
    """Return the objects and the logs that hold a secret of the stack."""
    secrets, store = _secrets(stack), open_store(root)
    found = [entry.key for entry in store.walk() if _holds(store.read(entry.key), secrets)]
    logs = [*Path(stack.scratch).glob("ray/session_2*/logs/**/*"), *Path(stack.folder).glob("*.log")]
    return found + [str(path) for path in logs if path.is_file() and _holds(path.read_bytes(), secrets)]


def _secrets(stack: Stack) -> list[bytes]:
    token = Path(stack.environment["RAY_AUTH_TOKEN_PATH"]).read_bytes()
    return [stack.environment["AWS_SECRET_ACCESS_KEY"].encode(), token]


def _holds(body: bytes, secrets: list[bytes]) -> bool:
    return any(secret in body for secret in secrets)


def main() -> None:
    """Spend the day."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="after which no other round begins")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", default=",".join(FAULTS), help="with commas")
    chosen = parser.parse_args()
    faults = chosen.faults.split(",")
    if set(faults) - set(FAULTS):
        parser.error(f"--faults are of {', '.join(FAULTS)}")
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, small_disk(Path(folder) / "stack") as is_small:
        if not is_small and "full" in faults:
            print("without the right to mount a disk, the store never runs out of room")
            faults.remove("full")
        pictures = Path(folder) / "pictures"
        leaky_sets(pictures, scale=2)
        _more(pictures)
        stack = start_stack(Path(folder) / "stack", cpus_per_node=[1, 1, 1], bucket=_BUCKET)
        os.environ |= stack.environment
        chaos = Chaos(stack, chosen.seed, faults)
        try:
            num_rounds = _spend(chaos, pictures, chosen.minutes)
        finally:
            for process in chaos.killed.respawned:
                end(process)
            stop_stack(stack)
        wait_until(lambda: not any(map(carries("BIT_STACK", stack.mark), psutil.process_iter())), "the last process")
    _print_table(chaos, num_rounds)


def _more(pictures: Path) -> None:
    """Move some of the upstream pictures aside, to be appended."""
    for path in sorted((pictures / "up-in").rglob("*.jpg"))[::4]:
        place = pictures / "more-in" / path.parent.name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)


def _spend(chaos: Chaos, pictures: Path, minutes: float) -> int:
    """Run rounds until the time is over; return their number."""
    root, began = f"s3://{_BUCKET}/day", time.monotonic()  # one place for all rounds: reports name it
    for command in commands(pictures, root):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    calm = results(root)
    print(f"a calm round takes {time.monotonic() - began:.0f} s", flush=True)
    num_rounds, deadline = 0, time.monotonic() + 60 * minutes
    while time.monotonic() < deadline:
        _forget(root)
        num_rounds, began = num_rounds + 1, time.monotonic()
        for command in commands(pictures, root):
            chaos.run(command)
        wait_until(partial(shard_kill.answers, root), "the server to be back")
        compare(calm, results(root))
        held = find_secrets(chaos.stack, root)
        assert not held, f"a secret stands in {held[:5]}"
        print(f"round {num_rounds}: as on a calm day, in {time.monotonic() - began:.0f} s", flush=True)
    return num_rounds


def _forget(root: str) -> None:
    """Remove all that a round has left."""
    store = open_store(root)
    for entry in list(store.walk()):
        store.delete(entry.key)


def _print_table(chaos: Chaos, num_rounds: int) -> None:
    print(f"{num_rounds} rounds; {sum(chaos.done.values())} faults survived:")
    print("  ".join(f"{name} {chaos.done[name]}" for name in FAULTS if chaos.done[name]))
    print("starts of each command: " + ", ".join(f"{name} {count}" for name, count in chaos.num_starts.items()))
    print(
        "datasets, weights, predictions and reports are those of a calm day; no orphan, no secret, no process is left"
    )


if __name__ == "__main__":
    main()
