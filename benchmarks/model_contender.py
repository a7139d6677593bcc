"""One contender of benchmarks/model.py, in a process and an environment of its own; obeys lines on standard input.

Roles: `ours`; `released`, the same network with every kernel standardised by mean and variance in each forward pass and
plain SGD, as the released PyTorch code is built; `timm`.
"""

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # 27 MB that timm loads with itself, and torch's optimizers at their first step
import torch.nn.functional as F
from torch import Tensor, nn

_TORCHVISION: list[torch.library.Library] = []  # its definitions last as long as it does


def main() -> None:
    """Obey until the input ends."""
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["num_threads"])
    if task["role"] == "peak":
        size = 4096
        one = torch.randn(size, size, dtype=getattr(torch, task["precision"]))
        best = min(timed(lambda: one @ one) for _ in range(8))
        print(json.dumps(2 * size**3 / best), flush=True)
        return
    if task["role"] == "timm":
        import_timm()
    else:
        import trainer.step.step  # noqa: F401, PLC0415 - timm's environment has none of it
    imported_bytes = status_bytes("VmRSS")
    model, step = contender(task)
    generator = torch.Generator().manual_seed(0)
    count = task["micro"] * task["num_micro"]
    images = torch.randn(count, 3, task["px"], task["px"], generator=generator)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(count) % 1000
    orders: dict[str, Callable[[], Any]] = {
        "float32 logits": lambda: logits(model, images[: task["micro"]], "float32"),
        "bfloat16 logits": lambda: logits(model, images[: task["micro"]], "bfloat16"),
        "step": lambda: timed(lambda: step(images, labels)),
        "peak": lambda: status_bytes("VmHWM"),
        "growth": lambda: status_bytes("VmHWM") - imported_bytes,
    }
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(orders[line.strip()]()), flush=True)


def timed(run: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def logits(model: nn.Module, images: Tensor, precision: str) -> list[float]:
    """Return the logits of the first picture in inference."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        return model.eval()(images)[0].float().tolist()


def contender(task: dict[str, Any]) -> tuple[nn.Module, Callable[[Tensor, Tensor], None]]:
    """Return the model with the weights of the task, and its training step."""
    if task["role"] == "timm":
        model = timm_model(task)
    else:
        from trainer.model.build import new_model  # noqa: PLC0415 - timm's environment has none of it

        model = new_model(task["model"], 1000, seed=0, recomputes=task["recomputes"])
    if task["weights"]:
        from safetensors.torch import load_file  # noqa: PLC0415

        model.load_state_dict(load_file(task["weights"]))
    if task["role"] == "ours":
        return model, our_step(model, task)
    if task["role"] == "released":
        as_released(model)
    return model, plain_step(model, task)


def our_step(model: nn.Module, task: dict[str, Any], optimizer: Any = None) -> Callable[[Tensor, Tensor], None]:
    """Return the step of `trainer.step.step`, by a new optimizer or this one."""
    from trainer.step.losses import softmax_loss  # noqa: PLC0415
    from trainer.step.optimizer import MasterOptimizer  # noqa: PLC0415
    from trainer.step.step import QueuedStep, train_step  # noqa: PLC0415
    from trainer.step.tensors import TensorBatch  # noqa: PLC0415

    optimizer = optimizer or MasterOptimizer(model, 0.9, 1e-4)
    queued: list[QueuedStep] = []

    def step(images: Tensor, labels: Tensor) -> None:
        batch = TensorBatch(images, F.one_hot(labels, 1000).float())
        precision = task["precision"]
        queued.append(
            train_step(model.train(), optimizer, batch, softmax_loss, 1e-3, task["micro"], precision=precision)
        )
        if len(queued) > 1:  # the step before is checked while a GPU is at this one, as trainer.jobs.pretrain does it
            queued.pop(0).result()

    return step


def plain_step(model: nn.Module, task: dict[str, Any]) -> Callable[[Tensor, Tensor], None]:
    """Return the usual step: autocast, accumulation, fused SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=True)

    def step(images: Tensor, labels: Tensor) -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        half = task["precision"] == "bfloat16"
        with torch.autocast(images.device.type, torch.bfloat16) if half else nullcontext():
            for part, truth in zip(images.split(task["micro"]), labels.split(task["micro"]), strict=True):
                loss = F.cross_entropy(model(part).float(), truth) / task["num_micro"]
                loss.backward()
        optimizer.step()

    return step


def as_released(model: nn.Module) -> None:
    """Standardise each kernel by its mean and variance in every forward pass."""
    from trainer.model.conv import Conv2d  # noqa: PLC0415

    class PerForward(Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            variance, mean = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, correction=0)
            kernel = (self.weight - mean) / torch.sqrt(variance + 1e-10)
            return F.conv2d(x, kernel, None, self.stride, self.padding)

    for module in model.modules():
        if isinstance(module, Conv2d):
            module.__class__ = PerForward


def import_timm() -> Any:
    """Return timm; torchvision's packages from PyPI want CUDA for operators that timm's network does not use."""
    if "torchvision" not in sys.modules:
        _TORCHVISION.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            _TORCHVISION[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm  # noqa: PLC0415

    return timm


def timm_model(task: dict[str, Any]) -> nn.Module:
    """Return timm's network."""
    import_timm()
    from timm.models import resnetv2  # noqa: PLC0415

    depth, width = task["model"].removeprefix("R").split("x")
    units = {"14": [1, 1, 1, 1], "26": [2, 2, 2, 2], "50": [3, 4, 6, 3], "101": [3, 4, 23, 3], "152": [3, 8, 36, 3]}
    # What timm's own names call, which has our small models, too.
    model = resnetv2._create_resnetv2_bit(
        "resnetv2_50x1_bit", layers=units[depth], width_factor=float(width), num_classes=1000
    )
    if task["recomputes"]:
        model.set_grad_checkpointing(True)
    return model.to(memory_format=torch.channels_last)


def status_bytes(name: str) -> int:
    """Return a figure of this process: VmRSS, what is resident, or VmHWM, the most that was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
