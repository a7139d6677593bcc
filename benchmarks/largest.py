"""The largest model for real: R152x4 sharded over two workers, saved, and resumed on one worker and on two.

Usage: python benchmarks/largest.py DATA [--model R152x4] [--px 128] [--folder FOLDER]

DATA is whatever `pipeline shard` packs. `trainer pretrain` takes 3 steps of 2 pictures on two Ray Train workers (FSDP2,
bfloat16, recomputing) and saves. Two branches go on from there, one on two workers and one on a single one that holds
the whole model, with a learning rate so small that the weights stay: those that they save must have the bits of the
first run's, and their losses must be equal but for LOSS_BOUND. Their gradients are compared, too; in bfloat16 those of
so deep a network, hardly trained, are mostly rounding (docs/benchmarks/training.md). With R152x4 it takes 22 GB of
memory at most, which is checked, and 25 GB below FOLDER.
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
from trainer.run.metrics import read_metrics
from trainer.step.ranks import alone

STEPS, BATCH = 3, 2
LIMIT_GB = 22.0
LOSS_BOUND = 2.0**-8  # relative: a rounding to bfloat16; kernels of shards are laid out otherwise, and so are sums
_LEAST_LR, _MOMENTUM = "1e-300", 0.9
_SAMPLE_SECONDS = 0.5
_TENSORS_AT_ONCE = 32  # the lists of chunks are read for each lot


class Memory(threading.Thread):
    """The most memory that this process and all below it had at once, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0

    def taken(self) -> int:
        """Return the most since the last call."""
        peak, self.peak = self.peak, 0
        return peak

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


def compare(model: str, before: Path, one: Path, other: Path) -> tuple[bool, float]:
    """Compare two runs that went on from the same checkpoint, some tensors at a time.

    Returns:
        Whether both have the weights of the checkpoint; the difference of their gradients as a share of their length.
    """
    with torch.device("meta"):
        network = ResNetV2(parse_architecture(model), newest(before).about["num_classes"])
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    is_equal, length, difference = True, 0.0, 0.0
    names = list(shapes)
    for first in range(0, len(names), _TENSORS_AT_ONCE):
        for kind in ("model", "momentum"):
            states = [
                {f"{kind}/{name}": torch.empty(shapes[name]) for name in names[first : first + _TENSORS_AT_ONCE]}
                for _ in range(3)
            ]
            for out, state in zip((before, one, other), states, strict=True):
                load(open_store(str(out)), alone(), newest(out), state)
            for saved, two, single in zip(*(state.values() for state in states), strict=True):
                if kind == "model":
                    is_equal &= torch.equal(saved, two) and torch.equal(saved, single)
                else:
                    length += float((two - _MOMENTUM * saved).double().square().sum())
                    difference += float((two - single).double().square().sum())
    return is_equal, (difference / length) ** 0.5


def last_loss(out: Path) -> float:
    """Return the loss of a run's last step."""
    return float(read_metrics(open_store(str(out)))[-1]["loss"])


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
        branch = ("--branch", f"{first}@{STEPS}", "--set", f"recipe.lr_per_256={_LEAST_LR}")
        stack = start_stack(folder / "stack", cpus_per_node=[2], bucket="unused")
        os.environ.update(stack.environment)
        try:
            train(data, first, STEPS, options, "--workers", "2", "--set", "sharded=true")
            peaks = {"saving": memory.taken()}
            train(data, two, STEPS + 1, options, *branch, "--workers", "2", "--set", "sharded=true")
            peaks["on two"] = memory.taken()
            train(data, one, STEPS + 1, options, *branch, "--workers", "1")
            peaks["on one"] = memory.taken()
        finally:
            stop_stack(stack)
        size = sum(file.num_bytes for file in newest(first).files)
        is_equal, share = compare(options.model, first, two, one)
        losses = last_loss(two), last_loss(one)
    about = {
        "model": options.model, "px": options.px, "checkpoint_gb": round(size / 1e9, 2), "weights_equal": is_equal,
        "losses": losses, "gradient_difference": round(share, 3),
        "peak_gb": {name: round(peak / 1e9, 2) for name, peak in peaks.items()}, "limit_gb": LIMIT_GB,
    }  # fmt: skip
    print(json.dumps({**about, **environment()}))
    assert is_equal, "the weights are not those that were saved"
    assert abs(losses[0] - losses[1]) <= LOSS_BOUND * losses[0], "one worker and two see different losses"
    assert max(peaks.values()) <= LIMIT_GB * 1e9, "more memory than allowed"


if __name__ == "__main__":
    main()
