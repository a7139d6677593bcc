"""`make demo`: the whole product on real pictures, from class folders to one HTML report."""

import hashlib
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from cluster.demo.digits import Folders, digit_folders
from cluster.demo.own_folder import own_folders
from cluster.demo.report import DemoFacts, write_report
from cluster.demo.stages import MemoryWatch, Stage, num_cpus, run_stage
from cluster.stack.processes import end_by_signals
from cluster.stack.services import Stack, start_stack, stop_leftover, stop_stack
from pipeline.base.console import echo
from pipeline.base.errors import ConfigError, EmptySource, StorageFull
from pipeline.base.quantities import human_bytes
from pipeline.dataset.dataset import open_dataset
from trainer.jobs.config import SCRATCH

_BUCKET = "bit-demo"
_MARKER = ".bit-demo"  # only a folder that holds it is ever removed
_MODEL = "R14x0.5"
_TASK = "downstream"
_NUM_WORKERS = 2
_BATCH = 64
_FREE_BYTES = 2_000_000_000  # objects, checkpoints and Ray's logs of a demonstration take about 0.5 GB


@dataclass(frozen=True)
class Scale:
    """How much work a demonstration does.

    Attributes:
        resolution_px: Side of the crops of pretraining and fine-tuning.
        pretrain_steps: Optimizer steps upstream, of 64 pictures.
        finetune_steps: Optimizer steps of each transfer run.
        shots: Pictures per class of the few-shot runs.
        num_subsets: Subsets per number of shots.
    """

    resolution_px: int
    pretrain_steps: int
    finetune_steps: int
    shots: tuple[int, ...]
    num_subsets: int


def run_demo(folder: Path, data: Path | None, *, short: bool, fresh: bool) -> None:
    """Run the demonstration; stop everything it started, after Ctrl-C and errors, too.

    Args:
        folder: Of all output; an interrupted run continues there.
        data: The user's class folders, or None for digits.
        short: A few steps of each stage, for CI.
        fresh: Start over even if there is a report.

    Raises:
        BitError: As the stages.
        StorageFull: There is too little disk space.
    """
    folder = demo_folder(folder, data)
    page = folder / "report" / "index.html"
    if fresh and (folder / _MARKER).exists():
        shutil.rmtree(folder)
    if page.exists():
        echo(f"the report of an earlier run is at {page}\nrun it again with: cluster demo --fresh")
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).touch()
    if shutil.disk_usage(folder).free < _FREE_BYTES:
        raise StorageFull(f"{folder} has less than {human_bytes(_FREE_BYTES)} free; free some, or choose another --out")
    started = time.monotonic()
    folders = own_folders(data, folder) if data else digit_folders(folder)
    for line in folders.about:
        echo(line)
    memory = MemoryWatch()
    with memory.running(), _stack(folder) as stack:
        facts = _run_stages(folder, folders, stack, is_digits=data is None, short=short)
    facts = facts.finished(time.monotonic() - started, memory.peak_bytes)
    _print_summary(write_report(folder / "report", facts), page)


def demo_folder(out: Path, data: Path | None) -> Path:
    """Return the folder of a demonstration: one per data folder, and never inside it or around it.

    Raises:
        ConfigError: The folder would contain the user's pictures, or be among them.
    """
    if data is None:
        return out / "digits"
    source = data.resolve()
    folder = out / f"{source.name}-{hashlib.sha256(str(source).encode()).hexdigest()[:6]}"
    target = folder.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise ConfigError(f"--out {out} would put the demonstration among the pictures of {data}; choose another --out")
    return folder


@contextmanager
def _stack(folder: Path) -> Iterator[Stack]:
    """Run the local services for a block of code; SIGTERM and a closed terminal end it like Ctrl-C."""
    end_by_signals()
    stop_leftover(folder / "stack")
    click.secho("\nstarting an S3 server (SeaweedFS) and Ray on this machine", bold=True)
    stack = start_stack(folder / "stack", cpus_per_node=[max(_NUM_WORKERS, num_cpus())], bucket=_BUCKET)
    echo(f"  S3 at {stack.environment['AWS_ENDPOINT_URL']}, Ray dashboard at {stack.dashboard}")
    echo(f"  the dashboard asks for a token: cat {shlex.quote(stack.token)}")
    os.environ.update(stack.environment)
    try:
        yield stack
    finally:
        echo("\nstopping Ray and the S3 server")
        stop_stack(stack)


def _run_stages(folder: Path, folders: Folders, stack: Stack, *, is_digits: bool, short: bool) -> DemoFacts:
    root = f"s3://{_BUCKET}"
    logs = folder / "logs"
    stages: list[Stage] = []

    def run(name: str, *command: str) -> None:
        stages.append(
            run_stage(name, command, logs / f"{len(stages)}-{name.split(':', maxsplit=1)[0].replace(' ', '-')}.log")
        )

    def submit(name: str, *command: str) -> None:
        run(name, "ray", "job", "submit", "--address", stack.dashboard, "--", *command)

    for part, source in (("upstream", folders.upstream), ("train", folders.train), ("test", folders.test)):
        split = "test" if part == "test" else "train"
        options = ["--shard-mb", "4", "--workers", str(num_cpus()), "--max-reject-fraction", "0.05", "--split", split]
        run(f"shard {part}: pack pictures into tars", "pipeline", "shard", str(source), f"{root}/{part}", *options)
    scale = _scale(f"{root}/train", is_digits=is_digits, short=short)
    submit("pretrain: on 2 Ray Train workers", "trainer", "pretrain", f"{root}/upstream", f"{root}/runs/pretrain",
           *_pretrain_options(f"{root}/upstream", scale, flip=not is_digits))  # fmt: skip
    plan = (folder / "transfer.toml").absolute()
    plan.write_text(_transfer_plan(root, scale, flip=not is_digits))
    submit("fine-tune: the pretrained model and a fresh one, few-shot, side by side", "trainer", "sweep", str(plan),
           f"{root}/transfer", "--ray")  # fmt: skip
    best = f"{max(scale.shots):04d}-shots-0"
    predictions = [
        f"--predictions={name}={root}/transfer/runs/{name}/{_TASK}/{best}-seed-0/predictions/{best}.parquet"
        for name in ("pretrained", SCRATCH)
    ]
    run("audit: near-duplicates of the test set upstream", "cluster", "audit", f"{root}/upstream", f"{root}/test",
        str(folder / "report" / "audit"), *predictions, "--canaries", "2" if short else "4")  # fmt: skip
    return DemoFacts.collect(root, folder / "report", folders.about, stages)


def _scale(train: str, *, is_digits: bool, short: bool) -> Scale:
    """Return a scale that takes a few minutes on two cores, with numbers of shots that every class has."""
    from pipeline.upkeep.statistics import class_counts  # noqa: PLC0415

    dataset = open_dataset(train)
    counts = class_counts(dataset)
    fewest = min(counts[label] for label in range(dataset.version.num_classes))
    if not fewest:
        raise EmptySource("a class has no usable training picture; see the rejected ones above and repair them")
    fitting = [shots for shots in (1, 2, 5, 10, 25) if shots <= fewest]
    if short:
        return Scale(32, pretrain_steps=30, finetune_steps=10, shots=tuple(fitting[-1:]), num_subsets=1)
    if is_digits:
        return Scale(32, pretrain_steps=280, finetune_steps=40, shots=(5, 25), num_subsets=3)
    return Scale(64, pretrain_steps=300, finetune_steps=50, shots=tuple(fitting[-2:]), num_subsets=3)


def _settings(values: dict[str, object]) -> list[str]:
    return [part for name, value in values.items() for part in ("--set", f"{name}={value}")]


def _pretrain_options(upstream: str, scale: Scale, *, flip: bool) -> list[str]:
    epochs = scale.pretrain_steps * _BATCH / open_dataset(upstream).version.num_samples
    settings = {
        "recipe.epochs": round(epochs, 4),
        "recipe.decay_epochs": [round(epochs * share, 4) for share in (0.6, 0.85)],
        "recipe.batch_size": _BATCH,
        "recipe.warmup_steps": scale.pretrain_steps // 10,
        "recipe.resolution_px": scale.resolution_px,
        "recipe.flip": str(flip).lower(),
        "checkpoint_every_steps": max(10, scale.pretrain_steps // 4),
        "log_every_steps": max(5, scale.pretrain_steps // 24),
        "num_lanes": 8,
    }
    return ["--model", _MODEL, "--recipe", "bit-s", "--workers", str(_NUM_WORKERS), *_settings(settings)]


def _transfer_plan(root: str, scale: Scale, *, flip: bool) -> str:
    """Return the plan of the fine-tunings: what `trainer sweep` reads."""
    resize_px = scale.resolution_px * 160 // 128  # the HyperRule's ratio of resize to crop
    return f"""\
model = "{_MODEL}"
shots = {list(scale.shots)}
subsets = {scale.num_subsets}

[inits]
pretrained = "{root}/runs/pretrain"
{SCRATCH} = "{SCRATCH}"

[tasks]
{_TASK} = "{root}"  # holds train and test

[settings]
flip = {str(flip).lower()}
num_lanes = 8

[settings.shortened]  # the HyperRule's schedule in fewer steps
steps = {scale.finetune_steps}
batch_size = {_BATCH}
resize_px = {resize_px}
crop_px = {scale.resolution_px}
"""


def _print_summary(facts: DemoFacts, page: Path) -> None:
    click.secho("\nsummary", bold=True)
    for line in facts.summary_lines():
        echo(f"  {line}")
    echo(f"\nreport: {page.absolute()}")
