"""Training steps of the network beside timm's and the released structure: outputs, seconds, memory.

Usage: python benchmarks/model.py [--only steps|accumulation|memory|large|MODEL:PX:MICRO:NUM_MICRO] [--rounds N]

Contenders run in processes of their own and take their steps in turn, so that a slow phase of the machine hits all.
Before that, the logits of each are held against those of the released structure in float32: all in float32, and all in
the precision of the row; the last column has how far ours, timm's and the released structure's are off there.
`large` needs 20 GB of free memory and runs one process after the other.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from peers import peer_python
from side_by_side import deviation, environment, strays

_HERE = Path(__file__).parent
_TIMM = ("torch==2.13.0", "timm==1.0.31", "safetensors")
_TIGHT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
_ROLES = ("ours", "timm", "released")
# Model, pixels, pictures in a forward pass, forward passes a step.
_CASES = {
    "steps": [("R50x1", 128, 16, 1), ("R50x1", 224, 16, 1)],
    "accumulation": [("R50x1", 128, 2, 8), ("R101x1", 128, 4, 4)],
}
# Most that logits may deviate from those of the released structure in float32: timm's epsilon is 1e-8; bfloat16 has 8
# bits, and 50 to 100 layers of random weights make a fifth of that, on either side and by other roundings.
_BOUNDS = {"float32": 1e-3, "bfloat16": 0.4}


class Contender:
    """A process of benchmarks/model_contender.py."""

    def __init__(self, role: str, **task: Any) -> None:
        python = peer_python("timm-cpu", *_TIMM) if role == "timm" else Path(sys.executable)
        defaults = {"role": role, "recomputes": False, "weights": None, "num_threads": len(os.sched_getaffinity(0))}
        # Freed blocks go back to the system in the memory part only: it costs time.
        settings = _TIGHT if task.pop("tight", False) else {}
        self._process = subprocess.Popen(
            [python, _HERE / "model_contender.py", json.dumps(defaults | task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **settings},
        )

    def answer(self) -> Any:
        """Return the next line."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a contender ended with {self._process.wait()}")
        return json.loads(line)

    def ask(self, order: str) -> Any:
        """Return the answer to an order."""
        assert self._process.stdin
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End it."""
        self._process.communicate()


@contextmanager
def running(roles: tuple[str, ...], **task: Any) -> Iterator[dict[str, Contender]]:
    """Run contenders with one task."""
    contenders = {role: Contender(role, **task) for role in roles}
    try:
        for contender in contenders.values():
            contender.answer()
        yield contenders
    finally:
        for contender in contenders.values():
            contender.close()


def spread(values: list[float]) -> str:
    """Return median and range."""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def compare(case: tuple[str, int, int, int], precision: str, weights: str, rounds: int) -> None:
    """Print one row: our seconds and the others' time against ours, after outputs were compared."""
    model, px, micro, num_micro = case
    task = {"model": model, "px": px, "micro": micro, "num_micro": num_micro, "precision": precision}
    with running(_ROLES, **task, weights=weights) as contenders:
        reference = contenders["released"].ask("float32 logits")
        for tried in dict.fromkeys(("float32", precision)):
            outputs = {role: contender.ask(f"{tried} logits") for role, contender in contenders.items()}
            others = strays(outputs, reference, _BOUNDS[tried])
            if others:
                raise SystemExit(
                    f"{model} in {tried}: something else is computed by {others} (at most {_BOUNDS[tried]})"
                )
        seconds: dict[str, list[float]] = {role: [] for role in _ROLES}
        for round_number in range(rounds + 2):
            for role, contender in contenders.items():
                taken = contender.ask("step")
                if round_number > 1:  # the first ones set things up
                    seconds[role].append(taken)
    ratios = {
        role: spread([one / other for one, other in zip(seconds[role], seconds["ours"], strict=True)])
        for role in _ROLES[1:]
    }
    name = f"{model}, {px} px, {num_micro} x {micro}, {precision}"
    off = ", ".join(f"{deviation(outputs[role], reference):.1g}" for role in _ROLES)
    print(f"| {name} | {median(seconds['ours']):.3f} | {ratios['timm']} | {ratios['released']} | {off} |", flush=True)


def make_weights(model: str, folder: str) -> str:
    """Write weights with a head that tells pictures apart, in timm's names, which are ours."""
    import torch  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    from trainer.model.build import new_model  # noqa: PLC0415

    network = new_model(model, 1000, seed=0)
    torch.nn.init.normal_(network.head.fc.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    path = f"{folder}/{model}.safetensors"
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
    return path


def memory() -> None:
    """Print the peak memory of a step."""
    print("\n| peak of a step, R50x1, 128 px, batch 16 | MB | against timm |\n| --- | --- | --- |")
    task = {"model": "R50x1", "px": 128, "micro": 16, "num_micro": 1, "tight": True}
    for precision in ("float32", "bfloat16"):
        peaks = {}
        ways = (("timm", "timm", False), ("ours", "ours", False), ("ours, recomputing", "ours", True))
        for name, role, recomputes in ways:
            with running((role,), **task, precision=precision, recomputes=recomputes) as contenders:
                for _ in range(3):
                    contenders[role].ask("step")
                peaks[name] = contenders[role].ask("growth")
            print(f"| {name}, {precision} | {peaks[name] / 1e6:,.0f} | {peaks[name] / peaks['timm']:.2f} |", flush=True)


def large(rounds: int) -> None:
    """Print seconds and memory of R152x4 with recomputing in bfloat16."""
    limit = Contender("peak", precision="bfloat16").answer()
    print(f"\nmatrix peak in bfloat16: {limit / 1e9:,.0f} GFLOP/s")
    print("| R152x4, 128 px, bfloat16, recomputing | s a step | share of matrix peak | peak GB |")
    print("| --- | --- | --- | --- |")
    flops = 2 * 59.69e9 * 4  # a picture: forward, again, and twice backward
    for micro, num_micro, roles in ((1, 1, ("ours",)), (4, 1, ("ours",)), (1, 4, ("ours", "timm"))):
        task = {"model": "R152x4", "px": 128, "micro": micro, "num_micro": num_micro}
        found: dict[str, list[float]] = {role: [] for role in roles}
        for _ in range(rounds):
            for role in roles:
                with running((role,), **task, precision="bfloat16", recomputes=True) as contenders:
                    contenders[role].ask("step")
                    found[role].append(min(contenders[role].ask("step") for _ in range(2)))
                    peak = contenders[role].ask("peak")
                share = flops * micro * num_micro / median(found[role]) / limit
                label = f"{num_micro} x {micro}, {role}"
                print(f"| {label} | {median(found[role]):.1f} | {share:.0%} | {peak / 1e9:.1f} |", flush=True)
        if "timm" in roles:
            ratios = [one / other for one, other in zip(found["timm"], found["ours"], strict=True)]
            print(f"\ntimm against ours, 4 x 1: {spread(ratios)}")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one part, or one case such as R50x1:64:2:2")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    parts = dict(_CASES)
    if options.only and ":" in options.only:
        model, *sizes = options.only.split(":")
        parts = {options.only: [(model, *map(int, sizes))]}
    elif options.only not in (None, *parts, "memory", "large"):
        parser.error(f"--only {options.only}: choose {', '.join(parts)}, memory, large or MODEL:PX:MICRO:NUM_MICRO")
    with tempfile.TemporaryDirectory() as folder:
        for name, cases in parts.items():
            if options.only in (None, name):
                print(f"\n| {name} | ours, s | timm against ours | released structure against ours | off float32 |")
                print("| --- | --- | --- | --- | --- |")
                for case in cases:
                    weights = make_weights(case[0], folder)
                    for precision in ("float32", "bfloat16"):
                        compare(case, precision, weights, options.rounds)
    if options.only in (None, "memory"):
        memory()
    if options.only in (None, "large"):
        large(max(1, options.rounds // 3))
    print(json.dumps({"timm": _TIMM, **environment()}))


if __name__ == "__main__":
    main()
