"""The largest model for real: R152x4 sharded over two workers, saved, and resumed on one worker and on two.

Usage: python benchmarks/largest.py DATA [--model R152x4] [--px 128] [--folder FOLDER]

DATA is whatever `pipeline shard` packs. `trainer pretrain` takes 3 steps of 2 pictures on two Ray Train workers (FSDP2,
bfloat16, recomputing) and saves. Two branches take the fourth step from there, one on two workers and one on a single
one that holds the whole model. Their weights differ by rounding: by BOUND of the step's length at most. With R152x4 it
takes 22 GB of memory at most, which is checked, and 25 GB below FOLDER.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch
from measure import proportional_bytes
from side_by_side import environment

from cluster.stack.services import start_stack, stop_stack
from pipeline.dataset.dataset import open_dataset
from pipeline.store.url import open_store
from trainer.checkpoint.record import CheckpointRecord, latest
from trainer.checkpoint.sharded import load
from trainer.model.architecture import parse_architecture
from trainer.model.network import ResNetV2
from trainer.step.ranks import alone

STEPS, BATCH = 3, 2
LIMIT_GB = 22.0
BOUND = 0.05  # of the fourth step's length; sums in bfloat16 differ with the number of ranks
_SAMPLE_SECONDS = 0.5


class Memory(threading.Thread):
    """The most memory that this process and all below it had at once, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0

    def run(self) -> None:
        """Look until the process ends."""
        while True:
            self.peak = max(self.peak, proportional_bytes())
            time.sleep(_SAMPLE_SECONDS)


def train(data: str, out: Path, num_steps: int, options: argparse.Namespace, *more: str) -> None:
    """Run `trainer pretrain` up to a step, and print what it says."""
    settings = {
        "recipe.epochs": num_steps * BATCH / open_dataset(data).version.num_samples, "recipe.decay_epochs": [],
        "recipe.batch_size": BATCH, "recipe.warmup_steps": 0, "recipe.resolution_px": options.px, "num_lanes": 2,
        "microbatch_size": 1, "precision": "bfloat16", "recomputes": "true", "log_every_steps": 1,
        "checkpoint_every_steps": STEPS, "loader.num_workers": 1,
    }  # fmt: skip
    command = [str(Path(sys.executable).parent / "trainer"), "pretrain", data, str(out), *more]
    if "--branch" not in more:
        command += ["--model", options.model, "--recipe", "bit-m"]
    command += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    began = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if re.match(r"(R\d|step|training|resumed|error|warning)", line):
                print(f"  {line.rstrip()}", flush=True)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    print(f"  {out.name}: {time.monotonic() - began:.0f} s", flush=True)


def newest(out: Path) -> CheckpointRecord:
    """Return the newest checkpoint of a run."""
    record = latest(open_store(str(out)))
    assert record
    return record


def differences(model: str, before: Path, one: Path, other: Path) -> tuple[float, float, bool]:
    """Compare two runs that took a step from the same checkpoint, one tensor at a time.

    Returns:
        The length of the step; that of the difference between the two; whether all is finite.
    """
    with torch.device("meta"):
        network = ResNetV2(parse_architecture(model), newest(before).about["num_classes"])
    shapes = {f"model/{name}": parameter.shape for name, parameter in network.named_parameters()}
    step = difference = 0.0
    is_finite = True
    for name, shape in shapes.items():
        values = []
        for out in (before, one, other):
            state = {name: torch.empty(shape)}
            load(open_store(str(out)), alone(), newest(out), state)
            values.append(state[name].double())
        step += float((values[1] - values[0]).square().sum())
        difference += float((values[1] - values[2]).square().sum())
        is_finite &= all(bool(value.isfinite().all()) for value in values)
    return step**0.5, difference**0.5, is_finite


def main() -> None:
    """Train, save, resume and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--model", default="R152x4")
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--folder", type=Path, help="A temporary one by default.")
    options = parser.parse_args()
    free_gb = psutil.virtual_memory().available / 1e9
    print(f"{free_gb:.1f} GB of memory are available")
    if options.model == "R152x4" and free_gb < LIMIT_GB:
        raise SystemExit(f"R152x4 may take {LIMIT_GB:.0f} GB; end what else uses memory")
    memory = Memory()
    memory.start()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        data = str(folder / "set")
        subprocess.run([Path(sys.executable).parent / "pipeline", "shard", options.data, data], check=True)
        first, two, one = folder / "saved", folder / "on-two", folder / "on-one"
        branch = ("--branch", f"{first}@{STEPS}")
        stack = start_stack(folder / "stack", cpus_per_node=[2], bucket="unused")
        os.environ.update(stack.environment)
        try:
            train(data, first, STEPS, options, "--workers", "2", "--set", "sharded=true")
            train(data, two, STEPS + 1, options, *branch, "--workers", "2", "--set", "sharded=true")
            train(data, one, STEPS + 1, options, *branch, "--workers", "1")
        finally:
            stop_stack(stack)
        size = sum(file.num_bytes for file in newest(first).files)
        step, difference, is_finite = differences(options.model, first, two, one)
    about = {
        "model": options.model, "px": options.px, "checkpoint_gb": round(size / 1e9, 2), "step_length": step,
        "difference": difference, "share": difference / step, "bound": BOUND, "peak_gb": round(memory.peak / 1e9, 2),
        "limit_gb": LIMIT_GB,
    }  # fmt: skip
    print(json.dumps({**about, **environment()}))
    assert is_finite
    assert step > 0
    assert difference <= BOUND * step, "one worker and two took different steps"
    assert memory.peak <= LIMIT_GB * 1e9, "more memory than allowed"


if __name__ == "__main__":
    main()
