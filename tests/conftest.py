"""Real services and pictures for all tests."""

import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

import pipeline.cli
from cluster.stack.services import Stack, start_stack, stop_stack
from pipeline.dataset.dataset import Dataset, open_dataset
from pipeline.packing.jobs import Job, shard
from pipeline.packing.plan import ShardConfig
from pipeline.packing.sources.open import open_sources
from pipeline.packing.sources.table import Columns
from pipeline.store.url import open_store
from pipeline.work.pools import InProcess

BUCKET = "tests"

os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell that starts the tests in the background makes all that they start ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


def run_cli(
    tool: str, *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of this environment as users do."""
    command = [str(Path(sys.executable).parent / tool), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment}, check=False
    )


def run_here(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `pipeline` in this process: as `run_cli` does, without the time that a process takes to start."""
    out, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(errors):
        patch.setattr(sys, "argv", ["pipeline", *map(str, arguments)])
        patch.chdir(cwd or ".")
        for name, value in environment.items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as stop:
            pipeline.cli.main()
    return subprocess.CompletedProcess(arguments, int(stop.value.code or 0), out.getvalue(), errors.getvalue())


def cli(*arguments: object, code: int = 0) -> str:
    """Run `pipeline` in this process and return what it printed."""
    done = run_here(*arguments)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def picture(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Return a textured coloured picture, different for every seed."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def jpeg(pixels: np.ndarray, quality: int = 90, **options: object) -> bytes:
    """Return the picture as JPEG bytes."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=quality, **options)
    return sink.getvalue()


def class_folders(folder: Path, classes: int = 3, each: int = 10, seed: int = 0) -> Path:
    """Write CLASS/NAME.jpg pictures; the class decides a colour, so that models can learn it."""
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(each):
            pixels = picture(seed + 1000 * label + number).copy()
            pixels[..., label % 3] = 255 - pixels[..., label % 3] // 4
            (folder / f"class{label}" / f"{number:03d}.jpg").write_bytes(jpeg(pixels))
    return folder


def pack(
    source: Path, url: str, max_reject_fraction: float = 0.0, columns: Columns | None = None, **config: Any
) -> Dataset:
    """Pack a source into a dataset, in this process."""
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(open_store(url), InProcess(), Path(scratch), max_reject_fraction)
        shard(job, open_sources([str(source)], columns or Columns()), ShardConfig(**config))
    return open_dataset(url)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that wait for clusters: the last one would keep a single process busy for minutes."""
    slow = {item.path for item in items if {"cluster", "three_nodes"} & set(getattr(item, "fixturenames", ()))}
    slow |= {item.path for item in items if item.get_closest_marker("timeout")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 pictures in three classes."""
    return class_folders(tmp_path_factory.mktemp("pictures") / "train", each=30)


@pytest.fixture(scope="session")
def small_dataset(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The 90 pictures packed into several shards of several blocks."""
    target = tmp_path_factory.mktemp("packed") / "train"
    return pack(small_folder, str(target), shard_bytes=150_000, block_bytes=40_000)


@contextmanager
def running_stack(folder: Path, cpus_per_node: list[int]) -> Iterator[Stack]:
    """Run real services, with their variables set in this process."""
    stack = start_stack(folder, cpus_per_node=cpus_per_node, bucket=BUCKET)
    before = dict(os.environ)
    os.environ.update(stack.environment)
    try:
        yield stack
    finally:
        stop_stack(stack)
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A real S3 server."""
    with running_stack(tmp_path_factory.mktemp("s3"), []) as stack:
        yield stack


@pytest.fixture(scope="session")
def cluster(s3: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two real Ray nodes with one CPU each, beside an S3 server of their own."""
    with running_stack(tmp_path_factory.mktemp("ray"), [1, 1]) as stack:
        yield stack


@pytest.fixture
def s3_url(s3: Stack, request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Return URLs below a prefix of the test's own."""
    prefix = "".join(c if c.isalnum() else "-" for c in request.node.name)
    return lambda name: f"s3://{BUCKET}/{prefix}/{name}"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 200 kB."""
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("mounting a small file system needs root on Linux")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)
