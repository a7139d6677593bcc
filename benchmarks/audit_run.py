"""A whole audit of small pictures with the embedding: seconds of each stage, and memory.

    python benchmarks/audit_run.py ../shared/data/tiny-imagenet-100.tar SCRATCH [--upstream 50000] [--downstream 10000]

The pictures are quarters of 32 px of real ones of 64 px, so all of them differ: upstream of those below `train`, and
downstream of those below `test`. Packing them is not timed. A stage lasts from the end of the one before to its last
line; what is not worked at in parallel counts to the next one.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
from measure import Peak
from PIL import Image
from side_by_side import environment

_QUARTERS = [(0, 0), (0, 32), (32, 0), (32, 32)]


def cut(tar_path: str, split: str, count: int, folder: Path) -> None:
    """Write so many quarters of a split's pictures below a folder of classes, in an order without meaning."""
    with tarfile.open(tar_path) as tar:
        members = [member for member in tar if member.isfile() and member.name.startswith(f"{split}/")]
        order = np.random.default_rng(0).permutation(4 * len(members))[:count].tolist()
        if len(order) < count:
            sys.exit(f"{tar_path} has {4 * len(members):,} quarters below {split}/, and {count:,} are asked for")
        for number in order:
            member, (x, y) = members[number // 4], _QUARTERS[number % 4]
            path = folder / member.name.split("/")[1] / f"{Path(member.name).stem}-{x}-{y}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(io.BytesIO(tar.extractfile(member).read())) as image:
                image.convert("RGB").crop((x, y, x + 32, y + 32)).save(path, quality=95)


def pack(source: Path, dataset: Path) -> None:
    """Pack a folder of classes."""
    command = [Path(sys.executable).parent / "pipeline", "shard", source, dataset]
    subprocess.run([*map(str, command)], check=True, capture_output=True)


def audit(up: Path, down: Path, out: Path, options: list[str]) -> dict[str, float]:
    """Run the audit; return the seconds of each stage, by its name."""
    command = [str(Path(sys.executable).parent / "cluster"), "audit", str(up), str(down), str(out), *options]
    last, stages = time.monotonic(), {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        ended: dict[str, float] = {}
        for line in process.stdout:
            print(f"  {line.rstrip()}", flush=True)
            stage, is_stage, _ = line.partition(": ")
            if is_stage and "/s" in line:
                ended[stage] = time.monotonic()
    for stage, moment in {**ended, "the report": time.monotonic()}.items():
        stages[stage], last = moment - last, moment
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return stages


def main() -> None:
    """Cut, pack, audit and add up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tar")
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--upstream", type=int, default=50_000)
    parser.add_argument("--downstream", type=int, default=10_000)
    parser.add_argument("--embedding", default="efficientnet-lite0")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    for split, side, count in (("train", "up", given.upstream), ("test", "down", given.downstream)):
        if not (given.scratch / side).exists():
            cut(given.tar, split, count, given.scratch / f"{side}-pictures")
            pack(given.scratch / f"{side}-pictures", given.scratch / side)
    memory = Peak(every_seconds=2.0)  # a look takes 15 ms of a core
    stages = audit(
        given.scratch / "up", given.scratch / "down", given.scratch / "audit",
        ["--embedding", given.embedding, "--workers", str(given.workers), "--log-jsonl", str(given.scratch / "log")],
    )  # fmt: skip
    print(f"\n{given.downstream:,} x {given.upstream:,}\n\n| stage | seconds |\n| --- | --- |")
    for stage, seconds in stages.items():
        print(f"| {stage} | {seconds:,.0f} |")
    print(f"\n{sum(stages.values()) / 60:.1f} minutes, {memory.growth / 2**30:.2f} GiB at most")
    print(json.dumps({"stages": stages, "bytes": memory.growth, **environment()}))


if __name__ == "__main__":
    main()
