"""What the service costs: images/s of a run on Ray Train against a bare loop of the same steps with data in memory.

    python benchmarks/service.py DATASET SCRATCH [--model R26x1] [--px 64] [--batch 48] [--steps 150]
        [--loader-workers 1] [--rounds 3]

Contenders, each in processes of their own with one thread for the network, in turn:
- `bare`: the steps of trainer.step on one decoded batch that stays in memory; nothing else.
- `service`: `trainer pretrain --workers 1`: the dataset streamed and augmented, metrics, a held-out measurement of 1 %
  of the set in the middle and at the end, checkpoints in the background at the interval that the run chooses. Its loader
  has a process of its own, as on GPUs; with `--loader-workers 0` it is a thread of the training process, as on CPUs.
Counted is the time from the first row of metrics to the last: start-up is left out, measurements and saves are in.
Physical limit: 1.0.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from side_by_side import compare

_ROW_STEPS = 10


def bare(args: argparse.Namespace) -> tuple[int, float]:
    """Return images and seconds of steps on data in memory."""
    command = [sys.executable, __file__, "--bare", *sys.argv[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=_one_thread())
    images, seconds = json.loads(done.stdout.splitlines()[-1])
    return images, seconds


def service(args: argparse.Namespace) -> tuple[int, float]:
    """Return images and seconds of a run."""
    from pipeline.store.url import open_store  # noqa: PLC0415
    from trainer.run.metrics import read_metrics  # noqa: PLC0415

    out = Path(args.scratch) / "run"
    shutil.rmtree(out, ignore_errors=True)
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
    command = [
        str(Path(sys.executable).parent / "trainer"), "pretrain", args.data, str(out), "--model", args.model,
        "--recipe", "bit-s", "--workers", "1", "--held-out", "1%", "--evaluate-every", str(args.steps // 2), *options,
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, env=_one_thread())
    rows = read_metrics(open_store(str(out)))
    print(json.dumps({name: rows[-1].get(name) for name in ("loss", "data_wait_fraction", "checkpoint_seconds")}))
    return (rows[-1]["step"] - rows[0]["step"]) * args.batch, rows[-1]["time"] - rows[0]["time"]


def run_bare(args: argparse.Namespace) -> None:
    """Take the steps, and print images and seconds."""
    import time  # noqa: PLC0415

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
    for step in range(_ROW_STEPS + args.steps):
        if step == _ROW_STEPS:
            began = time.perf_counter()
        train_step(model, optimizer, batch, softmax_loss, 1e-4, args.batch).result()
    print(json.dumps([args.steps * args.batch, time.perf_counter() - began]))


def _one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


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
    compare(
        "service against a bare loop",
        {"bare": lambda: bare(args), "service": lambda: service(args)},
        "image",
        args.rounds,
    )


if __name__ == "__main__":
    main()
