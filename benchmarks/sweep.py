"""The CPU time of five fine-tunings two at a time, against one after another.

    python benchmarks/sweep.py TASK [--rounds 3] [--steps 60]

TASK is a folder with `train` and `test`, packed. Both are `trainer sweep` of the same few-shot subsets from scratch,
with one and with two processes in turn; results are compared first: they must be the same. Physical limit: the CPU time
of the steps does not depend on how many runs share the machine, but for its caches; what may be added is what each
process needs to start.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from side_by_side import environment


def timed(plan: Path, out: Path, num_processes: int) -> tuple[float, float, list[float]]:
    """Return seconds of CPU and of the clock that a sweep takes, and the accuracies of its runs."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    trainer = str(Path(sys.executable).parent / "trainer")
    command = [trainer, "sweep", str(plan), str(out), "--workers", str(num_processes)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rows = sorted(json.loads((out / "summary.json").read_text())["results"], key=lambda row: row["subset"])
    return cpu, time.monotonic() - began, [row["accuracy"] for row in rows]


def main() -> None:
    """Run both in turn and print their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    chosen = parser.parse_args()
    ratios, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.toml"
        plan.write_text(
            f'model = "R14x0.5"\nshots = [5]\nsubsets = 5\n[inits]\nscratch = "scratch"\n'
            f'[tasks]\ntask = "{chosen.task.absolute()}"\n[settings]\nignore_unknown_classes = true\n'
            f"shortened = {{steps = {chosen.steps}, batch_size = 64, resize_px = 40, crop_px = 32}}\n"
        )
        for number in range(chosen.rounds):
            alone, together = (timed(plan, Path(folder) / f"{number}-{count}", count) for count in (1, 2))
            assert alone[2] == together[2], "the results differ"
            ratios.append(together[0] / alone[0])
            rows.append((alone[:2], together[:2]))
    print("| five fine-tunings | CPU seconds, median | seconds, median |\n| --- | --- | --- |")
    for place, name in enumerate(("one after another", "two at a time")):
        cpu, clock = (median(row[place][part] for row in rows) for part in (0, 1))
        print(f"| {name} | {cpu:.1f} | {clock:.1f} |")
    print(f"\nCPU time, ratio: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), {chosen.rounds} rounds")
    print(json.dumps({"ratios": ratios, "rows": rows, **environment()}))


if __name__ == "__main__":
    main()
