"""Training steps on a GPU beside timm's: pictures a second, memory, share of the GPU's peak.

    python benchmarks/gpu.py [--case MODEL:PX:BATCH] [--recomputes] [--rounds N] [--only TEXT]

Both networks in bfloat16 and channels last, plain and compiled, with the same weights, pictures and labels; a step is
forward pass, backward pass and SGD with momentum. Their logits are compared. Each contender has a process of its own.

Physical limit: a training step is six floating-point operations for each multiply-accumulate of the forward pass; the
measured product of two large matrices in bfloat16 is the GPU's peak. The memory that `trainer describe` foretells
stands beside the measured one.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from side_by_side import environment

from trainer.model.architecture import parse_architecture
from trainer.model.cost import layers, step_memory

_CASES = ("R50x1:224:256", "R101x3:224:64")
_ROLES = ("timm", "timm, compiled", "ours", "ours, compiled")
_WARM_UP = 4
_STEPS = 8


def seconds(run: Callable[[], object], count: int) -> float:
    """Return the seconds of a call, over `count` of them."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(count):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / count


def peak_flops() -> float:
    """Return the floating-point operations a second of a product of matrices in bfloat16."""
    size = 8192
    one = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    seconds(lambda: one @ one, 3)
    return 2 * size**3 / seconds(lambda: one @ one, 10)


def contend(role: str, name: str, px: int, batch: int, rounds: int, *, recomputes: bool) -> dict[str, Any]:
    """Return what one contender reaches: images a second of each round, bytes, and the logits of a picture."""
    import torchvision  # noqa: F401, PLC0415 - a whole one; model_contender makes do without
    from model_contender import our_step, plain_step, timm_model  # noqa: PLC0415

    from trainer.model.build import new_model  # noqa: PLC0415

    task = {"model": name, "recomputes": recomputes, "precision": "bfloat16", "micro": batch, "num_micro": 1}
    device = torch.device("cuda")
    model: torch.nn.Module = new_model(name, 1000, seed=0, device=device, recomputes=recomputes)
    if role.startswith("timm"):
        weights = model.state_dict()
        model = timm_model(task).to(device)
        model.load_state_dict(weights)
        del weights
    torch.nn.init.normal_(model.head.fc.weight, std=0.01, generator=torch.Generator(device).manual_seed(0))
    step = our_step(model, task) if role.startswith("ours") else plain_step(model, task)
    generator = torch.Generator(device).manual_seed(0)
    images = torch.randn(batch, 3, px, px, device=device, generator=generator).to(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % 1000
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        logits = model.eval()(images[:8])[0].float().tolist()
    if role.endswith("compiled"):
        model.compile(dynamic=False)  # as trainer.jobs.pretrain does it
    for _ in range(_WARM_UP):
        step(images, labels)
    torch.cuda.reset_peak_memory_stats()
    rates = [batch / seconds(lambda: step(images, labels), _STEPS) for _ in range(rounds)]
    return {"rates": rates, "bytes": torch.cuda.max_memory_allocated(), "logits": logits}


def compare(case: str, roles: list[str], rounds: int, *, recomputes: bool) -> None:
    """Print what the contenders reach."""
    name, px, batch = case.split(":")
    found = layers(parse_architecture(name), 1000, int(px))
    predicted = step_memory(found, int(batch), half=True, recomputes=recomputes).total
    options = ["--case", case, "--rounds", str(rounds), *(["--recomputes"] if recomputes else [])]
    peak = peak_flops()
    print(
        f"\n{name}, {px} px, batch {batch}{', recomputing' if recomputes else ''}; predicted {predicted / 1e9:.1f} GB"
    )
    print("| contender | images/s, median (lowest to highest) | memory, GB | of the peak |\n| --- | --- | --- | --- |")
    reached: dict[str, dict[str, Any]] = {}
    for role in roles:
        child = [sys.executable, __file__, "--role", role, *options]
        done = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(f"| {role} | failed | | |", flush=True)
            continue
        reached[role] = json.loads(done.stdout.splitlines()[-1])
        rates, memory = reached[role]["rates"], reached[role]["bytes"] / 1e9
        share = median(rates) * 6 * sum(layer.num_macs for layer in found) / peak
        speed = f"{median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
        print(f"| {role} | {speed} | {memory:.1f} | {share:.0%} |", flush=True)
    if len(reached) < len(roles):
        raise SystemExit(f"{', '.join(role for role in roles if role not in reached)}: failed, see above")
    first = torch.tensor(reached[roles[0]]["logits"])
    for role, one in reached.items():
        difference = (torch.tensor(one.pop("logits")) - first).abs().max()
        assert difference < 0.4 * first.std(), f"{role} gives other logits"
    print(json.dumps({"case": case, "gpu": torch.cuda.get_device_name(), "peak_flops": peak, "reached": reached}))


def main() -> None:
    """Run the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", metavar="MODEL:PX:BATCH")
    parser.add_argument("--recomputes", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", metavar="TEXT", help="contenders whose name has this in it")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    options = parser.parse_args()
    cases = options.case or _CASES
    if options.role:
        name, px, batch = cases[0].split(":")
        print(
            json.dumps(contend(options.role, name, int(px), int(batch), options.rounds, recomputes=options.recomputes))
        )
        return
    roles = [role for role in _ROLES if options.only in role]
    if not roles:
        parser.error(f"--only {options.only!r} names none of: {'; '.join(_ROLES)}")
    for case in cases:
        compare(case, roles, options.rounds, recomputes=options.recomputes)
    print(json.dumps(environment(("timm", "triton"))))


if __name__ == "__main__":
    main()
