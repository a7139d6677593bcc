"""What the service costs: images/s of a run on Ray Train against a bare loop of the same steps with data in memory.

    python benchmarks/service.py DATASET SCRATCH [--model R26x1] [--px 64] [--batch 48] [--steps 150]
        [--loader-workers 1] [--rounds 3]

Contenders, each with one thread for the network:
- `bare`: the steps of trainer.step on one decoded batch that stays in memory; nothing else.
- `service`: `trainer pretrain --workers 1`: the dataset streamed and augmented, metrics, a held-out measurement of 1 %
  of the set in the middle and at the end, checkpoints in the background at the interval that the run chooses. Its
  loader has a process of its own, as on GPUs; with `--loader-workers 0` it is a thread of the training process, as on
  CPUs.
The two take turns of three seconds, all processes of the other one stopped: a machine whose speed changes from minute
to minute, as those of clouds do, changes for both. Counted of the service are its turns from the first row of metrics
to the last: start-up is left out, measurements and saves are in. Physical limit: 1.0.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import psutil
from side_by_side import show

_ROW_STEPS = 10
_TURN_SECONDS = 3.0  # a choice: ten steps and less than any time-out of Ray or of the run

Turn = tuple[float, float]  # from and to, in seconds since 1970


def take_turns(args: argparse.Namespace) -> dict[str, float]:
    """Return images a second of the turns of both."""
    out, bare_steps = Path(args.scratch) / "run", Path(args.scratch) / "bare.txt"
    shutil.rmtree(out, ignore_errors=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with bare_steps.open("wb") as log:
        bare = subprocess.Popen([sys.executable, __file__, "--bare", *sys.argv[1:]], stdout=log, env=environment)
    while bare_steps.stat().st_size == 0:  # it has warmed up
        if bare.poll() is not None:
            sys.exit(f"the bare loop ended with code {bare.returncode}")
        time.sleep(0.1)
    _signal(bare.pid, signal.SIGSTOP)
    service = subprocess.Popen(_service_command(args, out), stdout=subprocess.DEVNULL, env=environment)
    turns: dict[str, list[Turn]] = {"service": [], "bare": []}
    pids = {"service": service.pid, "bare": bare.pid}
    for name in cycle(turns):
        _signal(pids[name], signal.SIGCONT)
        began = time.time()
        with suppress(subprocess.TimeoutExpired):
            service.wait(_TURN_SECONDS)
        if service.returncode is not None:
            break
        _signal(pids[name], signal.SIGSTOP)
        turns[name].append((began, time.time()))
    turns[name].append((began, time.time()))
    _signal(bare.pid, signal.SIGCONT)
    bare.terminate()
    bare.wait()
    if service.returncode:
        sys.exit(f"the service ended with code {service.returncode}")
    steps = [float(line) for line in bare_steps.read_text().splitlines()]
    steps = steps[sum(step < turns["bare"][0][0] for step in steps) :]
    return {
        "bare": (len(steps) - 1) * args.batch / _seconds(turns["bare"], steps[0], steps[-1]),
        "service": _service_rate(args, out, turns["service"]),
    }


def _service_command(args: argparse.Namespace, out: Path) -> list[str]:
    settings = {
        "recipe.epochs": args.epochs,
        "recipe.decay_epochs": [],
        "recipe.batch_size": args.batch,
        "recipe.warmup_steps": 0,
        "recipe.resolution_px": args.px,
        "recipe.lr_per_256": 0.001,
        "microbatch_size": args.batch,
        "log_every_steps": _ROW_STEPS,
        "loader.num_workers": args.loader_workers,
    }
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    return [
        str(Path(sys.executable).parent / "trainer"), "pretrain", args.data, str(out), "--model", args.model,
        "--recipe", "bit-s", "--workers", "1", "--held-out", "1%", "--evaluate-every", str(args.steps // 2), *options,
    ]  # fmt: skip


def _service_rate(args: argparse.Namespace, out: Path, turns: list[Turn]) -> float:
    from pipeline.store.url import open_store  # noqa: PLC0415
    from trainer.run.metrics import read_metrics  # noqa: PLC0415

    rows = read_metrics(open_store(str(out)))
    spent = {name: round(sum(row.get(name, 0.0) for row in rows[1:]), 2) for name in _PARTS}
    seconds = _seconds(turns, rows[0]["time"], rows[-1]["time"])
    print(json.dumps({"seconds": round(seconds, 2), "data_wait_fraction": rows[-1]["data_wait_fraction"], **spent}))
    return float((rows[-1]["step"] - rows[0]["step"]) * args.batch / seconds)


_PARTS = ("evaluation_seconds", "checkpoint_stall_seconds")  # on the clock of the wall, turns of the other one included


def _seconds(turns: list[Turn], start: float, stop: float) -> float:
    """Return how much of the time from start to stop lies in turns."""
    return sum(max(0.0, min(stop, end) - max(start, begin)) for begin, end in turns)


def _signal(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process and all its descendants."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                each.send_signal(number)


def run_bare(args: argparse.Namespace) -> None:
    """Take steps until terminated, and print the time of each one after the first ten."""
    import torch  # noqa: PLC0415

    from pipeline.dataset.dataset import open_dataset  # noqa: PLC0415
    from trainer.model.build import new_model  # noqa: PLC0415
    from trainer.step.losses import softmax_loss  # noqa: PLC0415
    from trainer.step.optimizer import MasterOptimizer  # noqa: PLC0415
    from trainer.step.step import train_step  # noqa: PLC0415
    from trainer.step.tensors import TensorBatch  # noqa: PLC0415

    torch.set_num_threads(1)
    num_classes = open_dataset(args.data).version.num_classes
    model = new_model(args.model, num_classes, seed=0).train()
    optimizer = MasterOptimizer(model, 0.9, 1e-4)
    images = torch.randn(args.batch, args.px, args.px, 3).permute(0, 3, 1, 2)
    targets = torch.nn.functional.one_hot(torch.arange(args.batch) % num_classes, num_classes).float()
    batch = TensorBatch(images, targets)
    num_steps = 0
    while True:
        train_step(model, optimizer, batch, softmax_loss, 1e-4, args.batch).result()
        num_steps += 1
        if num_steps > _ROW_STEPS:
            print(time.time(), flush=True)


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("scratch", nargs="?", default=tempfile.gettempdir())
    parser.add_argument("--model", default="R26x1")
    parser.add_argument("--px", type=int, default=64)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--loader-workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", action="store_true")
    args = parser.parse_args()
    if args.bare:
        run_bare(args)
        return
    from pipeline.dataset.dataset import open_dataset  # noqa: PLC0415

    num_images = sum(open_dataset(args.data).shards.table["num_samples"].to_pylist())
    args.epochs = (args.steps + _ROW_STEPS) * args.batch / (num_images * 0.99)
    rates: dict[str, list[float]] = {"bare": [], "service": []}
    for _ in range(args.rounds):
        for name, rate in take_turns(args).items():
            rates[name].append(rate)
    show("service against a bare loop", rates, "image")


if __name__ == "__main__":
    main()
