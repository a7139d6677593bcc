"""The parts of benchmarks/gpu.py: each yields its figures one by one, with the names of benchmarks/gpu_report.py."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from gpu_bench import CONTENDER, Ask, Bench, Row, spread
from gpu_report import MORE_ROLES, ROLES, SOURCES, case_name
from side_by_side import strays

_PIPELINE = [sys.executable, "-c", "from pipeline.cli import main; main()"]
# Seconds that a part needs on an H100 with 16 cores, most of them to compile: estimates, never measured.
NEEDS = {"tests": 75.0, "steps": 190.0, "run": 85.0, "large": 70.0, "loader": 45.0, "graphs": 60.0, "more": 75.0,
          "large compiled": 150.0}  # fmt: skip
_BOUNDS = {"float32": 1e-2, "bfloat16": 0.4}  # float32 convolutions of GPUs may round to TF32


def tests(bench: Bench) -> Iterator[Row]:
    """Run the tests of GPUs."""
    command = [sys.executable, "-m", "pytest", "tests/trainer/test_gpu.py", "-q", "--tb=line", "-p", "no:cacheprovider"]
    try:
        said = bench.call(command).strip().splitlines()
    except RuntimeError as error:
        said = str(error).strip().splitlines()
    counts = {kind: int(number) for number, kind in re.findall(r"(\d+) (passed|failed|error|skipped)", said[-1])}
    yield {"name": "tests/trainer/test_gpu.py, passed", "value": counts.get("passed", 0), "note": said[-1].strip("= ")}


def steps(bench: Bench) -> Iterator[Row]:
    """Compare training steps, in alternating rounds; then profile both."""
    roles = [role for role in ROLES if role != "timm" or bench.has_timm()]
    if "timm" not in roles:
        yield {"reason": "timm is not installed"}
    with ExitStack() as stack:
        asks: dict[str, Ask] = {}
        for role in roles:
            if role in ROLES[:2] or bench.left > NEEDS["steps"] / 2 or bench.device == "cpu":
                asks[role] = stack.enter_context(bench.contender(role, bench.sizes.model, bench.sizes.px))
        same_outputs(asks)
        for case in bench.sizes.cases:
            yield from compared(bench, asks, case)
            peaks = {role: asks[role]("peak", *case) for role in ROLES[:2] if role in asks}
            if "timm" in peaks:
                note = ", ".join(f"{role} {peak / 1e9:.1f} GB" for role, peak in peaks.items())
                name = f"{case_name(bench.sizes, case)}: memory against timm"
                yield {"name": name, "value": peaks["ours"] / peaks["timm"], "note": note}
            if case == bench.sizes.cases[0]:
                for role in peaks:
                    yield from profile(role, asks[role]("profile", *case), 3)


def same_outputs(asks: dict[str, Ask]) -> None:
    """Raise where a contender computes something else."""
    reference = asks["ours"]("logits", "float32")
    for precision, bound in _BOUNDS.items():
        others = strays({role: ask("logits", precision) for role, ask in asks.items()}, reference, bound)
        if others:
            raise RuntimeError(f"something else is computed in {precision} by {others}")


def compared(bench: Bench, asks: dict[str, Ask], case: tuple[int, int]) -> Iterator[Row]:
    """Time steps of one case in alternating rounds."""
    sizes, name, size = bench.sizes, case_name(bench.sizes, case), case[0] * case[1]
    for ask in asks.values():  # one after the other: kernels are chosen by their time
        ask("warm", *case)
    taken: dict[str, list[float]] = {role: [] for role in asks}
    for _ in range(sizes.rounds):
        for role, ask in asks.items():
            taken[role].append(ask("steps", *case, sizes.steps))
    for role, seconds in taken.items():
        yield spread(f"{name}: {role}", [size / one for one in seconds])
        if "timm" in taken and role != "timm":
            ratios = [other / one for one, other in zip(seconds, taken["timm"], strict=True)]
            yield spread(f"{name}: {role} against timm", ratios)
        share = bench.mfu(sizes.model, sizes.px, size / median(seconds))
        if share and role in ROLES[:2]:
            yield {"name": f"{name}: {role}, MFU", "value": share}
    bench.bare = bench.bare or size / median(taken["ours"])


def profile(name: str, found: dict[str, Any], num_steps: int) -> Iterator[Row]:
    """Return the rows of a profile."""
    yield {"part": "profile", "name": f"{name}: device busy", "value": found["busy"]}
    yield {"part": "profile", "name": f"{name}: launches a step", "value": round(found["launches"] / num_steps)}
    yield {"part": "profile", "title": f"{name}, {num_steps} steps", "table": found["table"]}


def photos(bench: Bench, resized: bool = False, url: str = "", **variables: str) -> str:
    """Return a packed dataset of photos of about 100 kB, which are made and packed on the first call."""
    folder, target = bench.folder / "photos", url or str(bench.folder / ("packed-256" if resized else "packed"))
    if not folder.exists():
        from gpu_photos import write_photos  # noqa: PLC0415

        write_photos(folder, *((12_000, 96) if bench.device == "cuda" else (96, 12)))
    if url or not Path(target).exists():
        options = ["--resize", "256"] if resized else []
        shard = [*_PIPELINE, "shard", folder, target, "--workers", os.cpu_count() or 1, "--check", "header"]
        bench.call([*shard, *options], **variables)
    return target


def run(bench: Bench) -> Iterator[Row]:
    """Measure a whole pretraining run."""
    (micro, _), is_gpu = bench.sizes.cases[0], bench.device == "cuda"
    task = {
        "role": "run", "model": bench.sizes.model, "px": bench.sizes.px, "micro": micro, "num_micro": 1 + is_gpu,
        "data": photos(bench), "out": str(bench.folder / "run"), "num_samples": 12_000 if is_gpu else 96,
        "row_steps": 8 if is_gpu else 2, "rows": 8 if is_gpu else 4, "compiled": is_gpu, "device": bench.device,
        "num_workers": max(1, (os.cpu_count() or 2) - 1) if is_gpu else 0,
    }  # fmt: skip
    shutil.rmtree(task["out"], ignore_errors=True)
    said = bench.call([sys.executable, CONTENDER, json.dumps(task)])
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    rows = [line["row"] for line in lines if "row" in line][2:-1]  # without compilation, without the profile
    rates = [row["images_per_second"] for row in rows]
    yield spread("trainer pretrain", rates)
    if bench.bare:
        yield spread("trainer pretrain against the bare step", [rate / bench.bare for rate in rates])
    yield spread("trainer pretrain: waits for data", [row["data_wait_fraction"] for row in rows])
    found = lines[-1]["profile"]
    yield {"name": "trainer pretrain: device busy", "value": found["busy"]}
    yield {"title": f"trainer pretrain, {task['row_steps']} steps", "table": found["table"]}


def large(bench: Bench) -> Iterator[Row]:
    """Look for the largest batch of large models, not compiled."""
    memory = memory_bytes(bench)
    for model in bench.sizes.large:
        for recomputes in (False, True):
            name = f"{model}{', recomputing' if recomputes else ''}"
            foretold = foretold_batch(model, bench.sizes.px, memory, recomputes)
            with bench.contender("ours", model, bench.sizes.px, backend="", recomputes=recomputes) as ask:
                batch, found = largest(partial(ask, "fits"), foretold, bench.device == "cuda")
                rate = batch / found["seconds"]
            note = f"{found['bytes'] / 1e9:.1f} GB; {foretold} foretold"
            yield {"name": f"{name}: largest batch", "value": batch, "note": note}
            yield {"name": f"{name}: largest batch against `trainer describe`", "value": batch / foretold}
            yield {"name": f"{name}, not compiled", "value": rate}
            share = bench.mfu(model, bench.sizes.px, rate)
            if share:
                yield {"name": f"{name}, not compiled, MFU", "value": share}
    if bench.sizes.compared and bench.has_timm():
        value = against_timm(bench, bench.sizes.compared, min(16, bench.sizes.cases[0][0]), "")
        yield {"name": f"{bench.sizes.compared}, recomputing, against timm, neither compiled", "value": value}


def largest(fits: Callable[[int], dict[str, Any]], foretold: int, looks_further: bool) -> tuple[int, dict[str, Any]]:
    """Return the largest batch that fits, to an eighth, and what was measured with it."""
    batch = foretold
    found = fits(batch)
    while not found and batch > 1:
        batch = batch * 7 // 8
        found = fits(batch)
    while looks_further and batch >= foretold:
        more = fits(batch * 9 // 8 + 1)
        if not more:
            break
        batch, found = batch * 9 // 8 + 1, more
    return batch, found


def foretold_batch(model: str, px: int, memory: int, recomputes: bool) -> int:
    """Return the batch that `trainer describe` says fits."""
    from trainer.model.architecture import parse_architecture  # noqa: PLC0415
    from trainer.model.cost import largest_batch, layers  # noqa: PLC0415

    return largest_batch(layers(parse_architecture(model), 1000, px), memory, half=True, recomputes=recomputes)


def memory_bytes(bench: Bench) -> int:
    """Return the memory of the GPU; on a CPU a little."""
    import torch  # noqa: PLC0415

    return torch.cuda.mem_get_info()[0] if bench.device == "cuda" else 50_000_000


def against_timm(bench: Bench, model: str, batch: int, backend: str) -> float:
    """Return how many times as fast as timm's our steps are, both recomputing."""
    seconds = {}
    for role in ROLES[:2]:
        with bench.contender(role, model, bench.sizes.px, backend=backend, recomputes=True) as ask:
            ask("warm", batch, 1)
            seconds[role] = ask("steps", batch, 1, 3)
    return seconds["timm"] / seconds["ours"]


def loader(bench: Bench) -> Iterator[Row]:
    """Measure photos a second of the loader."""
    px, seconds, batch = (bench.sizes.px, 5.0, 64) if bench.device == "cuda" else (bench.sizes.px, 0.5, 16)

    def rate(url: str, workers: int, **variables: str) -> float:
        command = [*_PIPELINE, "bench", url, "--px", px, "--workers", workers, "--batch", batch, "--json"]
        found = json.loads(bench.call([*command, "--seconds", seconds, "--budget-mb", "200"], **variables))
        return float(found["images_per_second"])

    for source, resized in zip(SOURCES[:2], (False, True), strict=True):
        yield {"name": f"{source}, one core", "value": rate(photos(bench, resized), 1)}
    workers = max(1, (os.cpu_count() or 2) - 1)
    yield {
        "name": "local files, all cores but one",
        "value": rate(photos(bench), workers),
        "note": f"{workers} workers",
    }
    if not (Path(sys.executable).parent / "weed").exists():
        yield {"reason": "no S3 server is installed"}
        return
    from cluster.stack.services import start_stack, stop_stack  # noqa: PLC0415

    stack = start_stack(bench.folder / "s3", cpus_per_node=(), bucket="photos")
    try:
        for source, resized in zip(SOURCES[2:], (False, True), strict=True):
            url = photos(bench, resized, f"s3://photos/{'small' if resized else 'full'}", **stack.environment)
            yield {"name": f"{source}, one core", "value": rate(url, 1, **stack.environment)}
    finally:
        stop_stack(stack)


def graphs(bench: Bench) -> Iterator[Row]:
    """Count what compilation made of a step."""
    for role in ROLES:
        if role != "timm" or bench.has_timm():
            with bench.contender(role, bench.sizes.model, bench.sizes.px) as ask:
                for what, value in ask("graphs", *bench.sizes.cases[-1]).items():
                    yield {"name": f"{role}: {what}", "value": value}


def more(bench: Bench) -> Iterator[Row]:
    """Try other ways to compile."""
    case = bench.sizes.cases[0]
    with bench.contender("ours", bench.sizes.model, bench.sizes.px) as ours:
        ours("warm", *case)
        for role in MORE_ROLES if bench.device == "cuda" else MORE_ROLES[:1]:
            with bench.contender(role, bench.sizes.model, bench.sizes.px) as other:
                other("warm", *case)
                taken = [
                    (ours("steps", *case, bench.sizes.steps), other("steps", *case, bench.sizes.steps))
                    for _ in range(3)
                ]
            yield spread(f"{role} against ours", [one / another for one, another in taken])


def large_compiled(bench: Bench) -> Iterator[Row]:
    """Time compiled steps of large models, recomputing, with half of the batch that should fit."""
    for model in bench.sizes.large:
        batch = max(1, foretold_batch(model, bench.sizes.px, memory_bytes(bench), recomputes=True) // 2)
        with bench.contender("ours", model, bench.sizes.px, recomputes=True) as ask:
            ask("warm", batch, 1)
            rate = batch / ask("steps", batch, 1, 3)
        yield {"name": f"{model}, recomputing", "value": rate, "note": f"batch {batch}"}
        share = bench.mfu(model, bench.sizes.px, rate)
        if share:
            yield {"name": f"{model}, recomputing, MFU", "value": share}
    if bench.sizes.compared and bench.has_timm():
        value = against_timm(bench, bench.sizes.compared, min(16, bench.sizes.cases[0][0]), bench.backend)
        yield {"name": f"{bench.sizes.compared}, recomputing, against timm", "value": value}


PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "tests": tests, "steps": steps, "run": run, "large": large, "loader": loader, "graphs": graphs, "more": more,
    "large compiled": large_compiled,
}  # fmt: skip
