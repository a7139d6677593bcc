"""Packs millions of small images from S3 to S3 under kills, and shows what the driver takes for each shard.

    python -m tests.soak.shard_scale --images 3000000 --kills 12 [--seed 0]

A real S3 server and a real Ray cluster of two nodes. Images of 24 to 48 px, all different, lie on S3 as Parquet with
their bytes. They are packed once in calm by processes of this machine, and once on Ray while workers, drivers, nodes
and the S3 server are killed with SIGKILL. Both datasets must be the same bytes, sound down to each checksum, and hold
every image once with its label. Memory and CPU time of each driver tell what 300 M images would take.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from cluster.stack.services import Stack, start_stack, stop_stack
from pipeline.dataset.dataset import open_dataset
from pipeline.dataset.schema import image_digest
from pipeline.dataset.versions import published_version
from pipeline.store.url import open_store
from tests.soak.shard_kill import TARGETS, Outcome, answers, end, kill_one
from tests.waiting import wait_until

_BUCKET = "scale"
_IMAGES_PER_FILE = 10_000
_IMAGES_PER_ROW_GROUP = 1_000
_NUM_CLASSES = 1_000
_SIDES_PX = (24, 48)
_QUALITIES = (60, 95)
_SHARD_MB = 4  # many shards, for the driver's work grows with their number
_MOST_STARTS = 40  # of the driver, before the run is called stuck
_SAMPLE_SECONDS = 1.0


@dataclass
class Drive:
    """One driver's life: seconds since its start, memory, CPU time and finished shards at each moment."""

    started: float = field(default_factory=time.monotonic)
    seconds: list[float] = field(default_factory=list)
    resident_bytes: list[int] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    num_shards: list[int] = field(default_factory=list)

    def look(self, pid: int, num_shards: int) -> None:
        """Add this moment, unless the driver is gone."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            times, memory = process.cpu_times(), process.memory_info().rss
            if not memory:  # it has ended
                return
            self.seconds.append(time.monotonic() - self.started)
            self.resident_bytes.append(memory)
            self.cpu_seconds.append(times.user + times.system)
            self.num_shards.append(num_shards)


def write_source(url: str, number: int, num_images: int) -> tuple[list[bytes], list[int]]:
    """Write one Parquet file of a source; return the digests of its images, and their labels."""
    chance = np.random.default_rng(number)
    tiles = chance.integers(0, 256, (num_images, 6, 6, 3), np.uint8)
    sides = chance.integers(_SIDES_PX[0], _SIDES_PX[1] + 1, (num_images, 2))
    qualities = chance.integers(*_QUALITIES, num_images)
    labels = chance.integers(0, _NUM_CLASSES, num_images)
    images = []
    for tile, (height, width), quality in zip(tiles, sides, qualities, strict=True):
        pixels = tile.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
        images.append(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=int(quality)))
    sink = pa.BufferOutputStream()
    table = pa.table({"image": pa.array(images, pa.binary()), "label": pa.array(labels, pa.int32())})
    pq.write_table(table, sink, row_group_size=_IMAGES_PER_ROW_GROUP, compression="none")
    open_store(url).create(f"{number:05d}.parquet", sink.getvalue().to_pybytes())
    return [image_digest(image) for image in images], labels.tolist()


def write_sources(url: str, num_images: int) -> Counter[tuple[bytes, int]]:
    """Write all files of a source; return how often it holds each image with its label."""
    counts = [min(_IMAGES_PER_FILE, num_images - first) for first in range(0, num_images, _IMAGES_PER_FILE)]
    due: Counter[tuple[bytes, int]] = Counter()
    with ProcessPoolExecutor() as pool:
        for digests, labels in pool.map(write_source, [url] * len(counts), range(len(counts)), counts):
            due.update(zip(digests, labels, strict=True))
    return due


def samples(url: str) -> Iterator[tuple[bytes, int]]:
    """Yield digest and label of every sample of a dataset."""
    dataset = open_dataset(url)
    for shard in range(len(dataset.shards)):
        table = dataset.samples(shard)
        for digest, labels in zip(table["digest"].to_pylist(), table["labels"].to_pylist(), strict=True):
            (label,) = labels
            yield digest, label


def pack_under_fire(
    stack: Stack, command: list[str], url: str, pauses: list[float], chance: random.Random, outcome: Outcome
) -> list[Drive]:
    """Pack while a process is killed after each pause of so many seconds; return what each driver took.

    Args:
        stack: S3 and Ray.
        command: That packs.
        url: Of the dataset.
        pauses: Before each kill, in seconds; taken from the list.
        chance: Of what is killed.
        outcome: Takes the kills, and the services that were started again, which go on.

    Raises:
        AssertionError: The dataset was not finished.
    """
    drives = list[Drive]()
    for _ in range(_MOST_STARTS):
        drives.append(Drive())
        code = _drive(stack, command, drives[-1], chance, outcome, pauses)
        wait_until(lambda: answers(f"{url}/versions"), "the S3 server to be back")
        if code == 0:
            print(f"kills: {dict(outcome.kills)}, {len(drives)} drivers", flush=True)
            return drives
    raise AssertionError(f"{url} was not finished in {_MOST_STARTS} starts")


def _drive(
    stack: Stack, command: list[str], drive: Drive, chance: random.Random, outcome: Outcome, pauses: list[float]
) -> int:
    """Run one driver to its end, which may be a kill; take the pauses that are over from the list."""
    log = Path(stack.folder) / f"events-{drive.started:.0f}.jsonl"
    with subprocess.Popen([*command, "--log-jsonl", str(log)], stdout=subprocess.DEVNULL) as driver:
        calm_since = time.monotonic()
        while driver.poll() is None:
            events = log.read_bytes() if log.exists() else b""
            drive.look(driver.pid, events.count(b'"event": "shard"'))
            time.sleep(_SAMPLE_SECONDS)
            if pauses and time.monotonic() >= calm_since + pauses[0]:
                target = chance.choice(TARGETS)
                if kill_one(stack, driver, target, chance, outcome):
                    outcome.kills[target] += 1
                    print(f"killed a {target} after {time.monotonic() - drive.started:.0f} s", flush=True)
                    pauses.pop(0)
                calm_since = time.monotonic()
    return driver.returncode


def table(drives: list[Drive]) -> str:
    """Return what each driver took that finished a shard: memory along its way, and CPU time for each shard."""
    lines = [
        "| driver | seconds | shards | MB at its first shard, half way, last | peak MB | CPU ms a shard |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for number, drive in enumerate(drives):
        finished = drive.num_shards[-1] if drive.num_shards else 0
        if not finished:
            continue
        first = next(place for place, count in enumerate(drive.num_shards) if count)
        half = next(place for place, count in enumerate(drive.num_shards) if count >= finished / 2)
        marks = ", ".join(f"{drive.resident_bytes[place] / 1e6:,.0f}" for place in (first, half, -1))
        took = drive.cpu_seconds[-1] - drive.cpu_seconds[first]
        packed = finished - drive.num_shards[first]
        each = f"{1000 * took / packed:.1f}" if packed else "-"
        lines.append(
            f"| {number + 1} | {drive.seconds[-1]:,.0f} | {finished:,} | {marks} "
            f"| {max(drive.resident_bytes) / 1e6:,.0f} | {each} |"
        )
    return "\n".join(lines)


def soak(stack: Stack, num_images: int, pauses: list[float], chance: random.Random, outcome: Outcome) -> list[Drive]:
    """Write a source, pack it in calm and under kills, and compare; see pack_under_fire.

    Raises:
        AssertionError: The datasets differ, are damaged, or hold other images than the source.
    """
    source, calm, killed = (f"s3://{_BUCKET}/{name}" for name in ("source", "calm", "killed"))
    pipeline = str(Path(sys.executable).parent / "pipeline")
    started = time.monotonic()
    due = write_sources(source, num_images)
    print(f"{num_images:,} images written to S3 in {time.monotonic() - started:.0f} s", flush=True)

    def command(url: str, *options: str) -> list[str]:
        return [pipeline, "shard", f"{source}/*.parquet", url, "--shard-mb", str(_SHARD_MB), *options]

    started = time.monotonic()
    subprocess.run(command(calm, "--workers", "2"), check=True, stdout=subprocess.DEVNULL)
    print(f"packed in calm in {time.monotonic() - started:.0f} s", flush=True)
    started = time.monotonic()
    drives = pack_under_fire(stack, command(killed, "--ray"), killed, pauses, chance, outcome)
    print(f"packed under kills in {time.monotonic() - started:.0f} s", flush=True)
    one, other = (published_version(open_store(url)) for url in (calm, killed))
    assert one is not None
    assert other is not None
    assert one.version == other.version, "the manifests differ"  # they hold a digest of every tar and sidecar
    subprocess.run([pipeline, "verify", killed, "--workers", "2"], check=True, stdout=subprocess.DEVNULL)
    found = Counter(samples(killed))
    assert found == due, "not the images and labels of the source"
    return drives


def main() -> None:
    """Run the soak and print what the drivers took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3_000_000)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--pause", type=float, default=20.0, help="seconds between two kills, on average")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    chance = random.Random(chosen.seed)
    pauses = [chosen.pause * chance.uniform(0.5, 1.5) for _ in range(chosen.kills)]
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        stack, outcome = start_stack(Path(folder) / "stack", cpus_per_node=[1, 1], bucket=_BUCKET), Outcome()
        os.environ.update(stack.environment)
        try:
            drives = soak(stack, chosen.images, pauses, chance, outcome)
        finally:
            for process in outcome.respawned:
                end(process)
            stop_stack(stack)
    print(table(drives))
    print(f"{chosen.images:,} images: the bytes of the calm run, every checksum right, every image once with its label")


if __name__ == "__main__":
    main()
