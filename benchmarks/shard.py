"""Packs JPEG files into shards, beside the writers in use.

    python benchmarks/shard.py FOLDER [--copies N] [--scratch DIR] [--rounds N] [--only TEXT]

FOLDER holds class folders of JPEG files; they are linked N times to make a set worth timing. All contenders read the
same files and write to the same scratch folder; give one in memory (/dev/shm) to time the programs and not the disk.

Physical limit: every byte is read, hashed and written once, and where pixels are checked every picture is decoded once.
- `bytes as they are`: ours (one worker: checksums of images, blocks and tar, header check, index, manifest, from the
  list of files to the published dataset) against webdataset's ShardWriter (no check, no index), img2dataset (its own
  environment; no decoding, sha256 of each image), and `tar cf - | sha256sum`, the anchor.
- `every pixel checked`: ours with decoding and fingerprint against decoding alone.
- `two workers`: processes against one process, every pixel checked.
- `the floor`: each thing that has to be done with a picture, alone, in microseconds.
- `memory of a worker`: peak resident memory for a 256 MB shard of each kind of source.
Outputs are compared first: webdataset must read the same (image, label) pairs from every tar.
"""

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import timeit
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import blake3
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
import webdataset
from crc32c import crc32c
from peers import peer_python
from side_by_side import Contender, compare, environment, peak_bytes

from pipeline.dataset.schema import image_digest
from pipeline.image.policy import ImagePolicy
from pipeline.packing.commit import PackTask, pack_and_commit
from pipeline.packing.jobs import Job, plan_sources, shard
from pipeline.packing.make_plan import store_plan
from pipeline.packing.plan import ShardConfig
from pipeline.packing.sources.open import open_sources
from pipeline.packing.sources.table import Columns
from pipeline.store.any_url import read_file
from pipeline.store.url import open_store
from pipeline.work.pools import InProcess, Pool, Processes

BLOCK_BYTES = ShardConfig().block_bytes


def linked(folder: Path, copies: int, target: Path) -> Path:
    """Return class folders with every file `copies` times, as hard links or copy."""
    for path in sorted(folder.rglob("*.jp*g"), key=str):
        inner = target / path.parent.name
        inner.mkdir(parents=True, exist_ok=True)
        for number in range(copies):
            shutil.copyfile(path, inner / f"{path.stem}-{number}.jpg")
    return target


def pack(source: Path, out: Path, pool: Pool, check: str, shard_bytes: int = 256_000_000) -> int:
    """Run the whole of `pipeline shard`; return the number of pictures."""
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(open_store(str(out)), pool, Path(scratch))
        return shard(
            job,
            open_sources([str(source)], Columns()),
            ShardConfig(image=ImagePolicy(check=check), shard_bytes=shard_bytes),
        ).num_samples


def pairs(tars: list[Path]) -> Counter[tuple[str, int]]:
    """Return what webdataset reads from tars."""
    return Counter(
        (hashlib.sha256(sample["jpg"]).hexdigest(), int(sample["cls"]))
        for sample in webdataset.WebDataset([str(path) for path in tars], shardshuffle=False)
    )


class Bench:
    """One set of files and the places the contenders write to."""

    def __init__(self, source: Path, scratch: Path) -> None:
        self.source, self.scratch = source, scratch
        self.files = sorted(source.rglob("*.jpg"))
        self.classes = sorted({path.parent.name for path in self.files})
        self.num_bytes = sum(path.stat().st_size for path in self.files)

    def ours(self) -> int:
        """Bytes as they are."""
        return pack(self.source, self.scratch / "ours", InProcess(), "header")

    def webdataset(self) -> int:
        """ShardWriter as its documentation shows it, with the bytes as they are."""
        out = self.scratch / "webdataset"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        number = {name: label for label, name in enumerate(self.classes)}
        with webdataset.ShardWriter(str(out / "train-%06d.tar"), maxsize=256_000_000, verbose=0) as writer:
            for row, path in enumerate(self.files):
                label = number[path.parent.name]
                about = json.dumps({"source": path.name, "labels": [label]}).encode()
                writer.write({"__key__": f"{row:06d}", "jpg": path.read_bytes(), "cls": label, "json": about})
        return len(self.files)

    def img2dataset(self) -> Contender:
        """Return the contender; its own time is taken, without start and imports."""
        python = peer_python("img2dataset", "img2dataset==1.47.0")
        table = self.scratch / "list.parquet"
        rows = [{"url": path.as_uri(), "label": self.classes.index(path.parent.name)} for path in self.files]
        pq.write_table(pa.Table.from_pylist(rows), table)
        out = self.scratch / "img2dataset"

        def run() -> tuple[int, float]:
            shutil.rmtree(out, ignore_errors=True)
            done = subprocess.run(
                [python, Path(__file__).with_name("img2dataset_peer.py"), table, out],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr[-2000:]
            stored = 0
            for path in out.glob("*.tar"):
                with tarfile.open(path) as archive:
                    stored += sum(name.endswith(".jpg") for name in archive.getnames())
            assert stored == len(self.files), f"img2dataset stored {stored} of {len(self.files)}"
            return stored, float(done.stdout.strip().splitlines()[-1])

        return run

    def tar(self) -> int:
        """Time the anchor."""
        command = f"tar cf - -C {self.source} . | sha256sum"
        subprocess.run(["bash", "-c", command], check=True, capture_output=True)
        return len(self.files)

    def decode_only(self) -> int:
        """Decode alone."""
        for path in self.files:
            simplejpeg.decode_jpeg(path.read_bytes(), colorspace="RGB")
        return len(self.files)

    def check_outputs(self) -> None:
        """Both writers stored the same."""
        self.ours(), self.webdataset()
        stored = pairs(sorted((self.scratch / "ours").rglob("*.tar")))
        assert stored == pairs(sorted((self.scratch / "webdataset").glob("*.tar")))
        assert sum(stored.values()) == len(self.files)


def floor(files: list[Path], scratch: Path) -> None:
    """Print the least time of five for each step that packing bytes as they are cannot do without."""
    bodies = [path.read_bytes() for path in files]
    memory = memoryview(bytearray(sum(map(len, bodies))))
    blocks = [memory[start : start + BLOCK_BYTES] for start in range(0, len(memory), BLOCK_BYTES)]
    digest = blake3.blake3()

    def copy() -> None:
        position = 0
        for body in bodies:
            memory[position : position + len(body)] = body
            position += len(body)

    def write() -> None:
        with (scratch / "floor").open("wb", buffering=0) as out:
            for block in blocks:
                out.write(block)

    steps: dict[str, Callable[[], object]] = {
        "reading": lambda: [read_file(str(path)) and None for path in files],
        "BLAKE3 of images": lambda: [image_digest(body) for body in bodies],
        "copying into blocks": copy,
        "BLAKE3 of blocks": lambda: [digest.update(block) for block in blocks],
        "crc32c of blocks": lambda: [crc32c(block) for block in blocks],
        "writing": write,
    }
    print(f"\nthe floor: {len(files):,} JPEG of {len(memory) / len(files) / 1e3:,.1f} kB\n| step | us |\n| --- | --- |")
    for name, step in steps.items():
        seconds = min(timeit.repeat(step, number=1, repeat=5))
        print(f"| {name} | {1e6 * seconds / len(files):.1f} |")
    (scratch / "floor").unlink()


def memory(source: str, scratch: Path, label: str) -> None:
    """Pack the first shard of a source in a process of its own and print its peak."""
    done = subprocess.run(
        [sys.executable, __file__, source, "--one-shard", str(scratch / "memory")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    shutil.rmtree(scratch / "memory", ignore_errors=True)
    ratio = found["peak_bytes"] / found["shard_bytes"]
    print(f"| {label} | {found['shard_bytes'] / 1e6:,.0f} MB | {found['peak_bytes'] / 1e6:,.0f} MB | {ratio:.2f} |")


def one_shard(source: str, out: Path) -> None:
    """Do what a worker does, without a pool."""
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(open_store(str(out)), InProcess(), Path(scratch))
        plan = store_plan(job.store, plan_sources(job, open_sources([source], Columns()), ShardConfig()))
    record = pack_and_commit(PackTask(str(out), plan.plan_id, 0))
    print(json.dumps({"peak_bytes": peak_bytes(), "shard_bytes": record.num_bytes}))


def memory_of_sources(bench: Bench) -> None:
    """Print the peak for class folders, tars and Parquet with image bytes."""
    print("\nmemory of a worker, 256 MB shards\n| source | shard | peak | ratio |\n| --- | --- | --- | --- |")
    memory(str(bench.source), bench.scratch, "class folders")
    tars, parquet = bench.scratch / "tars", bench.scratch / "parquet"
    tars.mkdir(), parquet.mkdir()
    for number in range(4):
        files = bench.files[number::4]
        with tarfile.open(tars / f"{number}.tar", "w") as archive:
            for row, path in enumerate(files):
                body = path.read_bytes()
                info = tarfile.TarInfo(f"{row:06d}.jpg")
                info.size = len(body)
                archive.addfile(info, io.BytesIO(body))
        table = pa.table({"image": [path.read_bytes() for path in files], "label": [0] * len(files)})
        pq.write_table(table, parquet / f"{number}.parquet", row_group_size=100)
    memory(str(tars), bench.scratch, "tars")
    memory(str(parquet), bench.scratch, "Parquet, row groups of 100")
    for path in parquet.glob("*"):
        pq.write_table(pq.read_table(path), path, row_group_size=10_000)
    memory(str(parquet), bench.scratch, "Parquet, one row group a file")


def main(arguments: argparse.Namespace) -> None:
    """Run all comparisons."""
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        bench = Bench(linked(Path(arguments.folder), arguments.copies, Path(folder) / "in"), Path(folder))
        place = arguments.scratch or "the temporary folder"
        about = f"{len(bench.files):,} JPEG, {bench.num_bytes / 1e6:,.0f} MB, in {place}"
        bench.check_outputs()
        if arguments.only in "bytes as they are":
            contenders: dict[str, Contender] = {"webdataset ShardWriter": bench.webdataset, "ours": bench.ours,
                          "img2dataset": bench.img2dataset(), "tar | sha256sum": bench.tar}  # fmt: skip
            compare(f"bytes as they are: {about}", contenders, "images", arguments.rounds)
        if arguments.only in "every pixel checked":
            ours = lambda: pack(bench.source, bench.scratch / "ours", InProcess(), "decode")  # noqa: E731
            contenders = {"decode only (simplejpeg)": bench.decode_only, "ours": ours}
            compare(f"every pixel checked: {about}", contenders, "images", arguments.rounds)
        if arguments.only in "two workers":
            pools = {count: Processes(count) for count in (1, 2)}
            contenders = {
                f"{count} worker": lambda pool=pool: pack(
                    bench.source, bench.scratch / "ours", pool, "decode", 10_000_000
                )
                for count, pool in pools.items()
            }
            contenders["1 worker"](), contenders["2 worker"]()  # their processes start
            compare(f"two workers: {about}", contenders, "images", arguments.rounds)
            for pool in pools.values():
                pool.close()
        if arguments.only in "the floor":
            floor(bench.files[:: max(1, len(bench.files) // 200)], Path(folder))
        if arguments.only in "memory of a worker":
            memory_of_sources(bench)
    print(json.dumps(environment()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--scratch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="")
    parser.add_argument("--one-shard", type=Path, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.one_shard:
        one_shard(parsed.folder, parsed.one_shard)
    else:
        main(parsed)
