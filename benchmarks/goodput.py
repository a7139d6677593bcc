"""Where the time of a disturbed run goes: a rank is killed every few minutes, and the run chooses how often to save.

    python benchmarks/goodput.py DATASET OUT [--minutes 30] [--failure-minutes 5] [--workers 2] [--seed 0]

One `trainer pretrain` on a Ray cluster of its own (RAY_ADDRESS, or what `ray.init` starts), killed with SIGKILL at
random moments, on average one failure in so many minutes. Printed are the classes of trainer.run.goodput, which add up
to the time from the first start to the end; goodput is the share of steps that were kept. Physical limit: without any
overhead of saving, what restarts take, about 1 - restart / interval.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from side_by_side import environment

from pipeline.store.url import open_store
from trainer.run.events import attempts
from trainer.run.goodput import time_classes
from trainer.run.metrics import MetricsReader


def main() -> None:
    """Train, kill, and add up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--failure-minutes", type=float, default=5.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", default="R26x1")
    parser.add_argument("--px", type=int, default=64)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chance, store = random.Random(args.seed), open_store(args.out)
    settings = {
        "recipe.epochs": 1e5, "recipe.decay_epochs": [], "recipe.batch_size": args.batch, "recipe.warmup_steps": 100,
        "recipe.resolution_px": args.px, "microbatch_size": args.batch, "log_every_steps": 10,
    }  # fmt: skip
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    run = subprocess.Popen(
        [str(Path(sys.executable).parent / "trainer"), "pretrain", args.data, args.out, "--model", args.model,
         "--recipe", "bit-s", "--workers", str(args.workers), *options],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    kills: list[float] = []
    end = time.time() + 60 * args.minutes
    due = time.time() + 60 * args.failure_minutes * chance.uniform(0.5, 1.0)
    while time.time() < end:
        time.sleep(1.0)
        if run.poll() is not None:
            sys.exit(f"the run ended with code {run.returncode}")
        if time.time() >= due:
            places = [place for place in attempts(store)[-1]["ranks"] if psutil.pid_exists(place["pid"])]
            os.kill(chance.choice(places)["pid"], signal.SIGKILL)
            kills.append(time.time())
            print(f"killed a rank, {len(kills)} so far", flush=True)
            due += 60 * args.failure_minutes * chance.uniform(0.5, 1.5)
    run.send_signal(signal.SIGINT)
    run.wait()
    reader = MetricsReader(store)
    found = time_classes(attempts(store), reader.all_rows(), failures=kills)
    print("\n| class | seconds | share |\n| --- | --- | --- |")
    for name, seconds in vars(found).items():
        print(f"| {name} | {seconds:,.0f} | {seconds / found.wall:.1%} |")
    print(f"\ngoodput {found.goodput:.1%} of {found.wall:,.0f} s with {len(kills)} failures")
    print(json.dumps({"classes": vars(found), "kills": len(kills), **environment()}))


if __name__ == "__main__":
    main()
