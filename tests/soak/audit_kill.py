"""Kills an audit at random points until it has had enough, and proves that its report is the undisturbed one.

    python -m tests.soak.audit_kill --kills 60 [--seed 0]

A real S3 server and a real Ray cluster of two nodes. One audit after another runs on Ray; at random moments a worker,
the driver or a Ray node is killed with SIGKILL, and a killed driver is started again with the same command. Each
finished report must have the bytes of an undisturbed one.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cluster.stack.services import Stack, start_stack, stop_stack
from pipeline.store.url import open_store
from tests.cluster.audit.audits import leaky_sets
from tests.conftest import pack
from tests.soak.shard_kill import Outcome, end, kill_one

_BUCKET = "soak"
_OPTIONS = ("--canaries", "1", "--review", "5", "--most-matches", "5")
_LONGEST_PAUSE_SECONDS = 4.0
_MOST_STARTS = 60  # of one driver, before the run is called stuck
TARGETS = ("worker", "driver", "node")


def contents(url: str) -> dict[str, bytes]:
    """Return every object of a report but stored results."""
    store = open_store(url)
    return {entry.key: store.read(entry.key) for entry in store.walk() if not entry.key.startswith("work/")}


def soak(stack: Stack, source: Path, num_kills: int, seed: int, bucket: str = _BUCKET) -> Outcome:
    """Audit and kill until `num_kills` processes were killed and the audit under way is finished.

    Args:
        stack: S3 and Ray.
        source: Folder with the class folders `up-in` and `down-in`.
        num_kills: Processes to kill.
        seed: Of targets and moments.
        bucket: Where sets and reports go.

    Raises:
        AssertionError: A report differs from the undisturbed one.
    """
    chance, outcome = random.Random(seed), Outcome()
    sets = (f"s3://{bucket}/up", f"s3://{bucket}/down")
    pack(source / "up-in", sets[0], shard_bytes=20_000)
    pack(source / "down-in", sets[1])
    calm_url = f"s3://{bucket}/calm"
    subprocess.run(_command(sets, calm_url, on_ray=False), check=True, capture_output=True)
    calm = contents(calm_url)
    try:
        while sum(outcome.kills.values()) < num_kills:
            url = f"s3://{bucket}/killed-{outcome.num_datasets}"
            _audit_under_fire(stack, _command(sets, url, on_ray=True), chance, outcome, num_kills)
            found = contents(url)
            differing = sorted(key for key in calm.keys() | found.keys() if calm.get(key) != found.get(key))
            assert not differing, f"{url}: {differing[:5]} differ from the undisturbed report"
            outcome.num_datasets += 1
            print(f"audit {outcome.num_datasets} whole after {dict(outcome.kills)} kills", flush=True)
    finally:
        for process in outcome.respawned:
            end(process)
    return outcome


def _command(sets: tuple[str, str], url: str, *, on_ray: bool) -> list[str]:
    tool = str(Path(sys.executable).parent / "cluster")
    return [tool, "audit", *sets, url, *_OPTIONS, *(["--ray"] if on_ray else [])]


def _audit_under_fire(
    stack: Stack, command: list[str], chance: random.Random, outcome: Outcome, num_kills: int
) -> None:
    for _ in range(_MOST_STARTS):
        outcome.num_starts += 1
        with tempfile.TemporaryFile() as printed:
            driver = subprocess.Popen(command, stdout=printed, stderr=printed)
            try:
                while driver.poll() is None:
                    time.sleep(chance.uniform(0.0, _LONGEST_PAUSE_SECONDS))  # the point: a random moment
                    if driver.poll() is None and sum(outcome.kills.values()) < num_kills:
                        target = chance.choice(TARGETS)
                        if kill_one(stack, driver, target, chance, outcome):
                            outcome.kills[target] += 1
            finally:
                driver.kill()
                driver.wait()
            printed.seek(0)
            text = printed.read().decode()
        if driver.returncode == 0:
            return
        # Killed, or without a cluster for a moment: the same command goes on. A wrong result would end it.
        assert "exists with other content" not in text, text[-2000:]
    raise AssertionError(f"not finished in {_MOST_STARTS} starts; the last one printed {text[-500:]}")


def main() -> None:
    """Run the soak and print what it did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        leaky_sets(Path(folder), scale=2)
        stack = start_stack(Path(folder) / "stack", cpus_per_node=[1, 1], bucket=_BUCKET)
        os.environ.update(stack.environment)
        try:
            outcome = soak(stack, Path(folder), arguments.kills, arguments.seed)
        finally:
            stop_stack(stack)
    counts = ", ".join(f"{outcome.kills[target]} {target}" for target in TARGETS)
    print(
        f"{sum(outcome.kills.values())} kills ({counts}) over {outcome.num_datasets} audits, {outcome.num_starts} "
        f"drivers started, {time.monotonic() - started:.0f} s: every report byte-identical to the undisturbed one"
    )


if __name__ == "__main__":
    main()
