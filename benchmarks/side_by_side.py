"""Runs contenders in turn, several rounds, and prints rates and the ratio to the first with its spread.

Whether they compute the same is told by their deviation from a reference.
"""

import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median

_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # of processors, on which the way of a product depends
_PACKAGES = ("bit-pretrain", "torch", "webdataset", "simplejpeg", "pillow-simd", "numpy", "pyarrow", "blake3", "ray")


Contender = Callable[[], int | tuple[int, float]]


def compare(title: str, contenders: dict[str, Contender], unit: str, rounds: int) -> None:
    """Time each contender once a round.

    A contender returns how many units it did; one that runs elsewhere, the seconds it took without its start, too.

    The first is the one to compare with: ratios are taken within a round, so a slow phase of the machine hits all.
    """
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            done = run()
            seconds = time.perf_counter() - started
            count, seconds = done if isinstance(done, tuple) else (done, seconds)
            rates[name].append(count / seconds)
    show(title, rates, unit)


def show(title: str, rates: dict[str, list[float]], unit: str) -> None:
    """Print the median rate of each contender, and its ratio to the first within each round.

    Args:
        title: What was compared.
        rates: Units a second by contender, one a round.
        unit: What was counted.
    """
    reference = next(iter(rates))
    print(f"\n{title} ({len(rates[reference])} rounds)")
    print(f"| contender | {unit}/s, median | ratio to {reference}: median (lowest to highest) |\n| --- | --- | --- |")
    for name, found in rates.items():
        ratios = [one / other for one, other in zip(found, rates[reference], strict=True)]
        print(f"| {name} | {median(found):,.0f} | {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |")
    print(json.dumps({"title": title, "unit": unit, "rates": rates, **environment()}))


def deviation(found: Sequence[float], reference: Sequence[float]) -> float:
    """Return the root mean square of the differences, as a share of that of the reference."""
    squares = sum((one - other) ** 2 for one, other in zip(found, reference, strict=True))
    return math.sqrt(squares / sum(value**2 for value in reference))


def strays(outputs: dict[str, Sequence[float]], reference: Sequence[float], bound: float) -> dict[str, float]:
    """Return the contenders whose outputs deviate from the reference by more than the bound, and by how much.

    Each is held against the reference, not against another one: two roundings may differ by more than either is wrong.
    """
    found = {role: deviation(output, reference) for role, output in outputs.items()}
    return {role: value for role, value in found.items() if not value <= bound}


def peak_bytes() -> int:
    """Return the most memory this process has had resident; getrusage would count its parent's at the start."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def environment(peers: tuple[str, ...] = ()) -> dict[str, object]:
    """Return commit, versions (of these peers, too) and machine."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    return {
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "cpu": f"{len(os.sched_getaffinity(0))} x {model} ({', '.join(one for one in _FEATURES if one in flags)})",
        "versions": {name: _version(name) for name in (*_PACKAGES, *peers)},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # on a machine that runs a part of us
        return None
