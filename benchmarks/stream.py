"""Streams training batches beside the loaders in use.

    python benchmarks/stream.py PHOTOS TINY [--only TEXT] [--scratch DIR] [--samples N] [--rounds N]

PHOTOS and TINY hold class folders of JPEG files, TINY those of 64 px; they are linked until each is N samples (20,000)
and packed once, at least 24 shards each; all contenders read the same tars, litdata a copy of the same bytes. The
scratch folder should be in memory (/dev/shm; 5 GB with 108 kB photos), so that programs are timed and not the disk.

Every contender gives batches of 64 as one uint8 array and labels: JPEG decode, Inception-style crop (5-100 % of the
area, aspect 3/4 to 4/3), bilinear resize to 224, flip. Physical limit: one JPEG decode and one resize a picture on each
core, which is the bare loop; reading a part of the picture's pixels only can go below it.
Each runs in a process of its own that is started anew each round, one after the other: start, imports and the first
batches (24 for each worker, more than any shuffle buffer or read-ahead holds) are not timed, and none prefetches while
another is timed. `workers` is the number of processes (Ray Data: CPUs) that read, decode and augment.
- bare loop: simplejpeg, PIL resize, np.stack over bytes in memory, in order; as many processes as workers
- ours: checksums, exact order (16 lanes, windows of 4 blocks), resume
- webdataset: WebDataset(shardshuffle=100).repeat().shuffle(1000).decode("pil").to_tuple.map_tuple.batched(64) in the
  workers of WebLoader(batch_size=None), its prefetch of two batches a worker; "pil" and "rgb8" do not differ beyond
  the noise. Single node; resampling would read the same bytes
- litdata: optimize() of the JPEG bytes, 64 MB chunks; StreamingDataset(shuffle, drop_last, transform) in
  StreamingDataLoader(batch_size=64); own environment with the same torch, numpy, pillow-simd and simplejpeg
- Ray Data: read_webdataset(shuffle="files", decoder=None), map_batches of whole blocks, iter_batches(64,
  prefetch_batches=4, local_shuffle_buffer_size=1000); object store of 1 GB, blocks of 32 MB, num_cpus = workers; the
  fastest of five settings tried
The three loaders run the same code on a picture. "photos" decodes with PIL in it, as their documentation does; in "same
decoder" they use simplejpeg, as ours, so that loaders are compared and not decoders.

Sections, chosen by --only: `photos`, `same decoder`, `64 px`, `bytes only` (samples one by one, without decoding; ours
copied and mapped), `25 ms, 100 MB/s` (ours from SeaweedFS through delay_proxy.py against the local folder), `memory`.
Compared first, on a small packing of the same files: all give the labels of the tars, each as often as it is there, and
pictures of the same mean.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from peers import peer_python
from shard import linked
from side_by_side import Contender, compare, environment
from stream_settings import Settings, tar_samples

from cluster.stack.services import start_stack, stop_stack
from pipeline.dataset.dataset import open_dataset
from pipeline.image.policy import ImagePolicy
from pipeline.packing.jobs import Job, shard
from pipeline.packing.plan import ShardConfig
from pipeline.packing.sources.open import open_sources
from pipeline.packing.sources.table import Columns
from pipeline.store.url import open_store
from pipeline.work.pools import InProcess

_HERE = Path(__file__).parent
_MIN_SHARDS = 24
_CHECKED_SAMPLES = 400
_WARM, _COUNT = 24, 48  # batches of each worker
_RAY_COUNT = 288  # Ray Data alternates between twice 24 fast batches and 24 at half that rate: four times all of it
_BUCKET = "bench"
_DELAY_MS, _MB_PER_S = 25, 100
_BUDGETS = (800_000_000, 1_000_000_000)
_TITLES = {"bare": "bare loop", "ours": "ours", "webdataset": "webdataset", "litdata": "litdata", "ray": "Ray Data",
           "reading": "reading with crc32c", "mapped": "ours, tars mapped"}  # fmt: skip
_LITDATA = (
    "--no-deps",
    "--constraint",
    str(_HERE.parent / "constraints.txt"),
    "litdata==0.2.76",
    "torch",
    "filelock",
    "typing_extensions",
    "sympy",
    "mpmath",
    "networkx",
    "jinja2",
    "markupsafe",
    "fsspec",
    "setuptools",
    "numpy",
    "boto3",
    "botocore",
    "jmespath",
    "s3transfer",
    "python-dateutil",
    "six",
    "requests",
    "urllib3",
    "charset-normalizer",
    "idna",
    "certifi",
    "obstore",
    "tifffile",
    "lightning-utilities",
    "packaging",
    "pillow-simd",
    "simplejpeg",
    "tqdm",
)  # fmt: skip - everything but torchvision, which needs pillow


def run_peer(settings: Settings, **variables: str) -> dict[str, Any]:
    """Run a contender in a process of its own and return what it printed."""
    python = peer_python("litdata", *_LITDATA) if settings.contender == "litdata" else sys.executable
    done = subprocess.run(
        [python, _HERE / "stream_peers.py", json.dumps(asdict(settings))],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
    )
    assert done.returncode == 0, f"{settings.contender}: {done.stderr[-2000:]}"
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


class Bench:
    """One packed set of pictures."""

    def __init__(self, source: Path, samples: int, folder: Path, url: str | None = None) -> None:
        """Pack `source`, each file as often as it takes to have so many samples."""
        self.folder, self.url = folder, url or str(folder / "dataset")
        files = len(list(source.rglob("*.jp*g")))
        links = linked(source, -(-samples // files), folder / "in")
        num_bytes = sum(path.stat().st_size for path in links.rglob("*.jpg"))
        with tempfile.TemporaryDirectory() as plans:
            config = ShardConfig(
                image=ImagePolicy(check="header"),
                shard_bytes=min(256_000_000, num_bytes // _MIN_SHARDS),
            )
            shard(Job(open_store(self.url), InProcess(), Path(plans)), open_sources([str(links)], Columns()), config)
        shutil.rmtree(links)
        self.dataset = open_dataset(self.url)
        self.num_samples = self.dataset.version.num_samples
        self.about = f"{self.num_samples:,} JPEG of {num_bytes / self.num_samples / 1e3:,.1f} kB"

    def settings(self, contender: str, **more: Any) -> Settings:
        """Return the settings of a contender on this set."""
        litdata = self.folder / "litdata"
        tars = [f"{self.url}/{row['path']}" for row in self.dataset.shards]
        if contender == "litdata" and not litdata.exists():
            run_peer(Settings(contender, self.url, tars, str(litdata), mode="pack"))
        return Settings(contender, self.url, tars, str(litdata), **more)

    def contender(self, name: str, workers: int, decoder: str = "pil") -> Contender:
        """Return a contender that is timed."""
        count = _RAY_COUNT if name == "ray" else _COUNT * workers
        settings = self.settings(name, workers=workers, decoder=decoder, warm=_WARM * workers, count=count)
        return rate_of(lambda: run_peer(settings))


def rate_of(run: Callable[[], dict[str, Any]]) -> Contender:
    """Return the contender of a run: count and seconds."""

    def contender() -> tuple[int, float]:
        found = run()
        return int(found["count"]), float(found["seconds"])

    return contender


def compare_ours(title: str, contenders: dict[str, Contender], unit: str, rounds: int, mine: str = "ours") -> None:
    """Compare with the first, and `mine` with each other one."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}

    def kept(name: str) -> Contender:
        def contender() -> tuple[int, float]:
            count, seconds = contenders[name]()
            rates[name].append(count / seconds)
            return count, seconds

        return contender

    compare(title, {name: kept(name) for name in contenders}, unit, rounds)
    for name, found in rates.items():
        if name != mine:
            ratios = [one / other for one, other in zip(rates[mine], found, strict=True)]
            print(f"{mine} / {name}: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)


def check_outputs(source: Path, folder: Path, names: tuple[str, ...]) -> None:
    """One epoch of each contender holds the labels of the tars, and pictures of about the same mean."""
    bench = Bench(source, _CHECKED_SAMPLES, folder)
    labels = Counter(label for _, label in tar_samples(bench.settings("bare")))
    found = {name: run_peer(bench.settings(name, mode="epoch")) for name in names}
    for name, outcome in found.items():
        stored = {int(label): count for label, count in outcome["labels"].items()}
        assert stored == labels, f"{name} gives {sum(stored.values())} of {labels.total()} samples"
        assert abs(outcome["mean"] - found["bare"]["mean"]) < 5, (name, outcome["mean"], found["bare"]["mean"])
    shutil.rmtree(folder)
    print(f"{len(found)} contenders give the {labels.total()} labels of the tars: {', '.join(found)}", flush=True)


def decoding(
    bench: Bench, title: str, names: tuple[str, ...], decoder: str, workers: tuple[int, ...], rounds: int
) -> None:
    """Time decoded batches."""
    for count in workers:
        contenders = {_TITLES[name]: bench.contender(name, count, decoder) for name in names}
        compare_ours(f"{title}, {count} worker(s): {bench.about}", contenders, "images", rounds)


def bytes_only(bench: Bench, title: str, samples: int, rounds: int) -> None:
    """Time samples as they are stored."""
    names = ("webdataset", "ours", "mapped", "litdata", "reading")
    settings = {name: bench.settings(name, mode="bytes", warm=samples // 4, count=samples) for name in names}
    contenders = {_TITLES[name]: rate_of(lambda each=each: run_peer(each)) for name, each in settings.items()}
    compare_ours(f"{title}: {bench.about}", contenders, "samples", rounds, mine=_TITLES["mapped"])


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Run SeaweedFS with this process's variables set to reach it; return its port."""
    stack = start_stack(folder, cpus_per_node=[], bucket=_BUCKET)
    before = dict(os.environ)
    os.environ.update(stack.environment)
    try:
        yield stack.environment["AWS_ENDPOINT_URL"].rpartition(":")[2]
    finally:
        stop_stack(stack)
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder)


class Proxy:
    """delay_proxy.py in a process of its own."""

    def __init__(self, server_port: str, ms: float, mb_per_s: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, _HERE / "delay_proxy.py", server_port, f"--ms={ms}", f"--mb-per-s={mb_per_s}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.endpoint = f"http://127.0.0.1:{self._line()}"

    def _line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def taken(self) -> dict[str, Any]:
        """Return the requests since the last call."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return dict(json.loads(self._line()))

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def slow_network(source: Path, samples: int, folder: Path, rounds: int) -> None:
    """Time ours from S3 through the proxy against the local folder, and count its requests."""
    local = Bench(source, samples, folder / "local")
    with s3_server(folder / "s3") as port:
        remote = Bench(source, samples, folder / "remote", f"s3://{_BUCKET}/photos")
        proxy = Proxy(port, _DELAY_MS, _MB_PER_S)
        # Longer than others: windows of 4 blocks in 16 lanes are 512 MB, and an epoch is to be enough.
        batches = {"warm": samples // 64 // 4, "count": samples // 64 // 2}
        counted = []

        def through() -> dict[str, Any]:
            proxy.taken()
            found = run_peer(remote.settings("ours", **batches), AWS_ENDPOINT_URL=proxy.endpoint)
            counted.append(proxy.taken())
            return found

        contenders = {
            "local folder": rate_of(lambda: run_peer(local.settings("ours", **batches))),
            "S3": rate_of(lambda: run_peer(remote.settings("ours", **batches))),
            "S3 through the proxy": rate_of(through),
        }
        title = f"{_DELAY_MS} ms, {_MB_PER_S} MB/s, ours, 1 worker: {local.about}"
        compare_ours(title, contenders, "images", rounds, "S3 through the proxy")
        proxy.close()
        wanted = 64 * (batches["warm"] + batches["count"]) / remote.num_samples
        requests_of_runs(counted, len(remote.dataset.blocks), wanted)


def requests_of_runs(counted: list[dict[str, Any]], num_blocks: int, wanted: float) -> None:
    """Print the requests of each run through the proxy beside the least that could do."""
    print("| GETs of tars | distinct ranges | blocks of an epoch | share of it delivered | GETs / blocks delivered | "
          "other requests | MB |\n| --- | --- | --- | --- | --- | --- | --- |")  # fmt: skip
    for run in counted:
        tars = {what: count for what, count in run["requests"].items() if what.startswith("GET ") and ".tar" in what}
        gets, others = sum(tars.values()), sum(run["requests"].values()) - sum(tars.values())
        ratio = gets / (num_blocks * wanted)
        print(f"| {gets} | {len(tars)} | {num_blocks} | {wanted:.2f} | {ratio:.2f} | {others} | "
              f"{run['num_bytes'] / 1e6:,.0f} |", flush=True)  # fmt: skip


def memory(bench: Bench) -> None:
    """Print the growth of the proportional set size of the rank and its workers after imports, beside the budget."""
    print(f"\nmemory: {bench.about}")
    print("| contender | workers | budget | peak growth | ratio |\n| --- | --- | --- | --- | --- |")
    runs = [("ours", workers, budget) for budget in (None, *_BUDGETS) for workers in (1, 2)]
    for name, workers, budget in [*runs, ("webdataset", 1, None), ("webdataset", 2, None)]:
        long = {"warm": 0, "count": bench.num_samples // 64 // 2}
        found = run_peer(bench.settings(name, workers=workers, budget_bytes=budget, memory=True, **long))
        growth, about = found["growth"], f"{budget / 1e6:,.0f} MB" if budget else "its own"
        ratio = f"{growth / budget:.2f}" if budget else ""
        print(f"| {name} | {workers} | {about} | {growth / 1e6:,.0f} MB | {ratio} |", flush=True)


def main(arguments: argparse.Namespace) -> None:
    """Run the chosen sections."""
    chosen = lambda name: arguments.only in name  # noqa: E731
    photos, tiny, rounds = Path(arguments.photos), Path(arguments.tiny), arguments.rounds
    everyone = ("bare", "webdataset", "ours", "litdata", "ray")
    with tempfile.TemporaryDirectory(dir=arguments.scratch, prefix="stream-") as scratch:
        folder = Path(scratch)
        if any(map(chosen, ("photos", "same decoder", "bytes only", "memory"))):
            check_outputs(photos, folder / "checked", everyone)
            bench = Bench(photos, arguments.samples, folder / "photos")
            if chosen("photos"):
                decoding(bench, "photos", everyone, "pil", (1, 2), rounds)
            if chosen("same decoder"):
                decoding(bench, "same decoder", everyone, "simplejpeg", (1, 2), rounds)
            if chosen("bytes only"):
                bytes_only(bench, "bytes only, photos", 20_000, rounds)
            if chosen("memory"):
                memory(bench)
            shutil.rmtree(bench.folder)
        if any(map(chosen, ("64 px", "bytes only"))):
            check_outputs(tiny, folder / "checked", everyone[:-1])
            bench = Bench(tiny, arguments.samples, folder / "tiny")
            if chosen("64 px"):
                decoding(bench, "64 px", everyone[:-1], "pil", (1,), rounds)
                decoding(bench, "64 px, same decoder", everyone[:-1], "simplejpeg", (1,), rounds)
            if chosen("bytes only"):
                bytes_only(bench, "bytes only, 64 px", 100_000, rounds)
            shutil.rmtree(bench.folder)
        if chosen(f"{_DELAY_MS} ms, {_MB_PER_S} MB/s"):
            slow_network(photos, arguments.samples, folder / "slow", rounds)
    print(json.dumps(environment()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("tiny")
    parser.add_argument("--only", default="")
    parser.add_argument("--scratch", default="/dev/shm")  # noqa: S108 - in memory
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    main(parser.parse_args())
