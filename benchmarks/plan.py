"""Plans many rows, opens a large manifest, and weighs sidecars.

    python benchmarks/plan.py [--rows 100000000] [--scratch DIR] [--photos FOLDER]

- `plan`: rows as of a table of URLs with labels, generated on the fly, so that only the planner is timed: hash, write
  out, sort, cut, write. In a process of its own, whose peak memory is taken. Physical limit: each row is written to the
  scratch folder and read back once (about 100 B), and hashed once (0.08 us).
- `manifest`: 131,072 shards with 32 blocks each, written by the publishing code to a folder, then opened.
- `sidecars`: bytes a sample with fingerprints, from packing FOLDER (class folders).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from side_by_side import environment, peak_bytes

from pipeline.dataset.dataset import open_dataset
from pipeline.dataset.publish import Addition, publish
from pipeline.dataset.schema import BLOCK_SCHEMA, SHARD_SCHEMA
from pipeline.packing.jobs import Job, shard
from pipeline.packing.make_plan import make_plan
from pipeline.packing.plan import ShardConfig
from pipeline.packing.probe import Probe
from pipeline.packing.sources.open import open_sources
from pipeline.packing.sources.rows import FILE, Source, batch_of
from pipeline.packing.sources.table import Columns
from pipeline.store.url import open_store
from pipeline.work.pools import InProcess

_BATCH_ROWS = 131_072
_NUM_CLASSES = 18_291  # of JFT
_NUM_SHARDS, _BLOCKS_PER_SHARD = 131_072, 32


def synthetic(num_rows: int) -> Source:
    """Rows like `00/12/000000001234.jpg`, about 110 kB each, with a label."""

    def read(parallel_map: Any) -> Iterator[pa.RecordBatch]:
        for first in range(0, num_rows, _BATCH_ROWS):
            numbers = np.arange(first, min(num_rows, first + _BATCH_ROWS))
            digits = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 12, "0")
            names = pc.binary_join_element_wise("images", pc.utf8_slice_codeunits(digits, 0, 6), digits, "/")
            labels = pa.ListArray.from_arrays(
                pa.array(np.arange(len(numbers) + 1, dtype=np.int32)),
                pa.array((numbers % _NUM_CLASSES).astype(np.int32)),
            )
            sizes = pa.array(90_000 + numbers * 7919 % 40_000)
            yield batch_of(
                pc.binary_join_element_wise(names, ".jpg", ""), labels=labels, container=FILE, num_bytes=sizes
            )

    return Source("s3://bucket/images", read)


def plan_rows(num_rows: int, scratch: Path) -> None:
    """Plan, and print what it took."""
    started = time.perf_counter()
    planned = make_plan([("", synthetic(num_rows))], ShardConfig(), scratch, probe=lambda rows, sources: Probe())
    found = {
        "seconds": time.perf_counter() - started,
        "peak_bytes": peak_bytes(),
        "num_rows": planned.plan.num_samples,
        "num_shards": planned.plan.num_shards,
        "plan_bytes": sum(path.stat().st_size for path in planned.parts),
    }
    print(json.dumps(found))


def plan_in_child(num_rows: int, scratch: str | None) -> None:
    """Run `plan_rows` in a process of its own."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        command = [sys.executable, __file__, "--rows", str(num_rows), "--here", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    rate = found["num_rows"] / found["seconds"]
    print(
        f"plan: {found['num_rows']:,} rows into {found['num_shards']:,} shards in {found['seconds']:,.0f} s "
        f"({rate:,.0f} rows/s), peak {found['peak_bytes'] / 1e9:.2f} GB, plan {found['plan_bytes'] / 1e9:.2f} GB; "
        f"300 M rows would take {300e6 / rate / 60:,.0f} min"
    )
    print(json.dumps(found))


def open_large_manifest() -> None:
    """Publish a manifest of 131,072 shards, then opens it five times."""
    numbers = np.arange(_NUM_SHARDS)
    text = [f"{number:06d}" for number in numbers]
    columns: dict[str, Any] = {
        "shard": numbers, "split": ["train"] * _NUM_SHARDS, "path": [f"shards/0123abcd/train-{t}.tar" for t in text],
        "num_samples": np.full(_NUM_SHARDS, 2289), "num_bytes": np.full(_NUM_SHARDS, 255_900_000),
        "blake3": [f"{number * 2654435761 % 2**64:064x}" for number in numbers.tolist()],
        "sidecar": [f"shards/0123abcd/train-{t}.parquet" for t in text], "sidecar_bytes": np.full(_NUM_SHARDS, 120_000),
        "sidecar_sha256": [f"{number * 40503 % 2**64:064x}" for number in numbers.tolist()],
        "num_rejects": np.zeros(_NUM_SHARDS), "plan_id": ["0123abcd0123abcd"] * _NUM_SHARDS, "plan_shard": numbers,
    }  # fmt: skip
    shards = pa.table([pa.array(columns[f.name]).cast(f.type) for f in SHARD_SCHEMA], schema=SHARD_SCHEMA)
    count = _NUM_SHARDS * _BLOCKS_PER_SHARD
    of_shard = np.arange(count) % _BLOCKS_PER_SHARD
    made = [np.arange(count) // _BLOCKS_PER_SHARD, of_shard * 71, np.full(count, 71), of_shard * 8_000_000,
            np.full(count, 8_000_000), np.arange(count) * 2654435761 % 2**32]  # fmt: skip
    blocks = pa.table([pa.array(c).cast(f.type) for c, f in zip(made, BLOCK_SCHEMA, strict=True)], schema=BLOCK_SCHEMA)
    with tempfile.TemporaryDirectory() as folder:
        addition = Addition("0123abcd0123abcd", "train", shards, blocks, (), False, (), _NUM_CLASSES, 0, True)
        publish(open_store(folder), None, addition)
        seconds: list[tuple[float, float]] = []
        for _ in range(5):
            started = time.perf_counter()
            dataset = open_dataset(folder)
            assert dataset.shards[_NUM_SHARDS - 1]["path"].endswith("131071.tar")
            opened = time.perf_counter()
            assert dataset.blocks.num_rows == count
            seconds.append((opened - started, time.perf_counter() - started))
    print(
        f"manifest: {_NUM_SHARDS:,} shards opened in {sorted(s for s, _ in seconds)[2]:.2f} s, with the table of "
        f"{count:,} blocks in {sorted(s for _, s in seconds)[2]:.2f} s"
    )


def weigh_sidecars(folder: str) -> None:
    """Pack a folder and divides."""
    with tempfile.TemporaryDirectory() as out, tempfile.TemporaryDirectory() as scratch:
        shard(Job(open_store(out), InProcess(), Path(scratch)), open_sources([folder], Columns()), ShardConfig())
        dataset = open_dataset(out)
        total = sum(row["sidecar_bytes"] for row in dataset.shards)
    count = dataset.version.num_samples
    print(f"sidecars: {total / count:.1f} B a sample with fingerprints, {count:,} samples")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--scratch")
    parser.add_argument("--photos")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        plan_rows(arguments.rows, arguments.here)
    else:
        plan_in_child(arguments.rows, arguments.scratch)
        open_large_manifest()
        if arguments.photos:
            weigh_sidecars(arguments.photos)
        print(json.dumps(environment()))
