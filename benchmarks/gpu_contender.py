"""One contender of benchmarks/gpu.py, in a process of its own; obeys lines on standard input.

Orders, each answered by a line of JSON; CASE is MICRO NUM_MICRO, pictures of a forward pass and forward passes a step:
`logits PRECISION`; `warm CASE`, which compiles; `steps CASE COUNT`, seconds of a step; `peak CASE`, bytes of a step;
`profile CASE`, where the time of a step goes; `graphs CASE`, what compilation made of it.
With the role `run` it runs `trainer.jobs.pretrain` and prints its rows of metrics, the last ones under the profiler.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from model_contender import our_step, plain_step, status_bytes, timm_model
from torch import nn

_CLASSES = 1000
_PROFILED_STEPS = 3
_SHOWN = 15  # lines of a profile
# What each of our variants changes: of the network's compilation, and of what makes its kernels once a step.
_VARIANTS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, kernels compiled": {"kernels": {}},
    "ours, kernels compiled and joined": {"kernels": {"options": {"combo_kernels": True}}},
    "ours, standardised in the graph": {"in_graph": True},
    "ours, CUDA graphs": {"network": {"mode": "reduce-overhead"}},
    "ours, max-autotune": {"network": {"mode": "max-autotune-no-cudagraphs"}},
    "ours, 1x1 as products": {"network": {"options": {"conv_1x1_as_mm": True}}},
    "ours, cuDNN tries all": {"cudnn": True},
}
OURS = tuple(_VARIANTS)


class Steps:
    """A network with its training step on one device.

    Args:
        task: role, model, px, device, precision, recomputes, weights (a file), backend (of torch.compile; none for
            eager kernels).
    """

    def __init__(self, task: dict[str, Any]) -> None:
        self._task, self._device = task, torch.device(task["device"])
        self.is_gpu = self._device.type == "cuda"
        role = task["role"]
        if role == "timm":
            if self.is_gpu:  # a whole one; model_contender makes do without
                import torchvision  # noqa: F401, PLC0415
            self._model: nn.Module = timm_model(task).to(self._device)
        else:
            from trainer.model.build import new_model  # noqa: PLC0415 - timm's environment may have none of it

            self._model = new_model(task["model"], _CLASSES, seed=0, device=self._device, recomputes=task["recomputes"])
        self._model.load_state_dict(torch.load(task["weights"], weights_only=True, map_location=self._device))
        self._optimizer = self._our_optimizer(_VARIANTS[role]) if role != "timm" else None
        if task["backend"]:
            network = _VARIANTS.get(role, {}).get("network", {})
            self._model.compile(backend=task["backend"], dynamic=False, **(network if self.is_gpu else {}))
        self._steps: dict[tuple[int, int], Callable[[], None]] = {}

    def _our_optimizer(self, variant: dict[str, Any]) -> Any:
        from trainer.step.optimizer import MasterOptimizer  # noqa: PLC0415

        class InGraph(MasterOptimizer):
            """Leaves the standardisation to the network's graph, in every forward pass."""

            def kernels(self, dtype: torch.dtype | None = None) -> Any:
                return nullcontext()

        torch.backends.cudnn.benchmark = "cudnn" in variant
        optimizer = (InGraph if "in_graph" in variant else MasterOptimizer)(self._model, 0.9, 1e-4)
        if "kernels" in variant and self._task["backend"]:
            options = variant["kernels"] if self._task["backend"] == "inductor" else {}
            optimizer.compile(backend=self._task["backend"], dynamic=False, **options)
        return optimizer

    def step(self, micro: int, num_micro: int) -> Callable[[], None]:
        """Return a step of this case."""
        if (micro, num_micro) not in self._steps:
            task = {**self._task, "micro": micro, "num_micro": num_micro}
            take = our_step(self._model, task, self._optimizer) if self._optimizer else plain_step(self._model, task)
            count, px = micro * num_micro, task["px"]
            images = torch.randn(count, 3, px, px, device=self._device).to(memory_format=torch.channels_last)
            labels = torch.arange(count, device=self._device) % _CLASSES
            self._steps = {(micro, num_micro): lambda: take(images, labels)}  # the pictures of the last case go
        return self._steps[micro, num_micro]

    def wait(self) -> None:
        """Wait for the device."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def seconds(self, micro: int, num_micro: int, count: int) -> float:
        """Return the seconds of a step, over `count` of them."""
        step = self.step(micro, num_micro)
        self.wait()
        began = time.perf_counter()
        for _ in range(count):
            step()
        self.wait()
        return (time.perf_counter() - began) / count

    def peak(self, micro: int, num_micro: int) -> int:
        """Return the most memory of a step; on a CPU that of the process."""
        if self.is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.seconds(micro, num_micro, 2)
        return torch.cuda.max_memory_allocated() if self.is_gpu else status_bytes("VmHWM")

    def fits(self, micro: int) -> dict[str, Any]:
        """Return peak and seconds of a step with so many pictures in one forward pass; nothing if it does not fit."""
        try:
            return {"bytes": self.peak(micro, 1), "seconds": self.seconds(micro, 1, 2)}
        except torch.OutOfMemoryError:
            self._steps.clear()
            return {}

    def logits(self, precision: str) -> list[float]:
        """Return the logits of one picture in inference."""
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(1, 3, self._task["px"], self._task["px"], generator=generator).to(self._device)
        half = torch.autocast(self._device.type, torch.bfloat16, enabled=precision == "bfloat16")
        self._model.eval()
        with torch.no_grad(), half:  # not through __call__, which would compile this, too
            found = self._model.forward(image.contiguous(memory_format=torch.channels_last))
        return found[0].float().tolist()

    def profile(self, micro: int, num_micro: int) -> dict[str, Any]:
        """Return the busy share of the device and where its time goes."""
        step = self.step(micro, num_micro)
        self.wait()
        with profiled(self._device) as found:
            for _ in range(_PROFILED_STEPS):
                step()
            self.wait()
        return found

    def graphs(self, micro: int, num_micro: int) -> dict[str, int]:
        """Return what compilation made of a step, and of another one after it: nothing, if nothing changes."""
        from torch._dynamo.utils import counters  # noqa: PLC0415
        from torch._inductor import metrics  # noqa: PLC0415

        def count() -> dict[str, int]:
            return {
                "graphs": counters["stats"]["unique_graphs"],
                "breaks": sum(counters["graph_break"].values()),
                "kernels": metrics.generated_kernel_count,
            }

        counters.clear()
        metrics.reset()
        with torch._inductor.utils.fresh_inductor_cache():  # from a cache no kernel is generated
            self.seconds(micro, num_micro, 1)
        first = count()
        self.seconds(micro, num_micro, 2)
        return first | {"compiled later": count()["graphs"] - first["graphs"]}


@contextmanager
def profiled(device: torch.device) -> Iterator[dict[str, Any]]:
    """Profile what runs inside; what is yielded is filled at the end."""
    kinds = torch.profiler.ProfilerActivity
    is_gpu = device.type == "cuda"
    found: dict[str, Any] = {}
    began = time.perf_counter()
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA] if is_gpu else [kinds.CPU]) as profile:
        yield found
        if is_gpu:
            torch.cuda.synchronize()
        wall_us = 1e6 * (time.perf_counter() - began)
    kind = torch.autograd.DeviceType.CUDA if is_gpu else torch.autograd.DeviceType.CPU
    events = [event for event in profile.key_averages() if event.device_type == kind]
    spent = {e.key: (e.self_device_time_total if is_gpu else e.self_cpu_time_total, e.count) for e in events}
    total = sum(us for us, _ in spent.values())
    shown = sorted(spent.items(), key=lambda item: -item[1][0])[:_SHOWN]
    found |= {
        "busy": total / wall_us,
        "launches": sum(count for _, count in spent.values()),
        "table": [[name[:90], us / total, count] for name, (us, count) in shown],
    }


def whole_run(task: dict[str, Any]) -> None:
    """Run a pretraining; print the rows of metrics, then the profile of its last rows."""
    from pipeline.streaming.stream import LoaderConfig  # noqa: PLC0415
    from trainer.jobs.config import PretrainConfig  # noqa: PLC0415
    from trainer.jobs.pretrain import pretrain  # noqa: PLC0415
    from trainer.recipes.pretrain import PretrainRecipe  # noqa: PLC0415
    from trainer.step.ranks import World  # noqa: PLC0415

    batch, every = task["micro"] * task["num_micro"], task["row_steps"]
    recipe = PretrainRecipe(
        loss="softmax", epochs=task["rows"] * every * batch / task["num_samples"], decay_epochs=(), batch_size=batch,
        warmup_steps=0, resolution_px=task["px"], lr_per_256=0.001,
    )  # fmt: skip
    config = PretrainConfig(
        data=task["data"], data_version=1, out=task["out"], model=task["model"], recipe=recipe,
        microbatch_size=task["micro"], precision="bfloat16", compiled=task["compiled"], log_every_steps=every,
        checkpoint_every_steps=10**6, num_lanes=min(16, batch), loader=LoaderConfig(num_workers=task["num_workers"]),
    )  # fmt: skip
    device = torch.device(task["device"])
    profiler = profiled(device)
    seen: dict[str, Any] = {}

    def report(row: dict[str, Any]) -> None:
        print(json.dumps({"row": row}), flush=True)
        rows = row["step"] // every
        if rows == task["rows"] - 1:
            seen["profile"] = profiler.__enter__()
        elif rows == task["rows"]:
            profiler.__exit__(None, None, None)

    pretrain(config, World(0, 1, device), report)
    print(json.dumps(seen), flush=True)


def product_flops(device: str) -> float:
    """Return the floating-point operations a second of a product of matrices in bfloat16."""
    size = 8192 if device == "cuda" else 512
    one = torch.randn(size, size, device=device, dtype=torch.bfloat16)

    def seconds(count: int) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(count):
            one @ one
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / count

    seconds(3)
    return 2 * size**3 / seconds(10)


def main() -> None:
    """Obey until the input ends."""
    task = json.loads(sys.argv[1])
    if task["role"] == "run":
        whole_run(task)
        return
    steps = Steps(task)
    orders: dict[str, Callable[..., Any]] = {
        "logits": steps.logits,
        "warm": lambda micro, num_micro: steps.seconds(int(micro), int(num_micro), 4 if steps.is_gpu else 1),
        "steps": lambda micro, num_micro, count: steps.seconds(int(micro), int(num_micro), int(count)),
        "peak": lambda micro, num_micro: steps.peak(int(micro), int(num_micro)),
        "fits": lambda micro: steps.fits(int(micro)),
        "profile": lambda micro, num_micro: steps.profile(int(micro), int(num_micro)),
        "graphs": lambda micro, num_micro: steps.graphs(int(micro), int(num_micro)),
        "product": lambda: product_flops(task["device"]),
    }
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        name, *arguments = line.split()
        print(json.dumps(orders[name](*arguments)), flush=True)


if __name__ == "__main__":
    main()
