"""What the parts of benchmarks/gpu.py share: the time that is left, programs that end with it, contenders."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from gpu_report import Sizes

_HERE = Path(__file__).parent
_ROOT = _HERE.parent
sys.path.append(str(_ROOT))  # where nothing is installed
CONTENDER = _HERE / "gpu_contender.py"
Row = dict[str, Any]
Ask = Callable[..., Any]  # gives an order to a contender, and returns its answer


class OutOfTime(Exception):  # noqa: N818
    """The time is spent."""


@dataclass
class Bench:
    """What the parts share.

    Attributes:
        sizes: What is measured.
        device: cuda or cpu.
        folder: For data and weights.
        deadline: On the monotonic clock.
        timm_python: Where timm is.
        bare: Images a second of our step alone, once it is known.
    """

    sizes: Sizes
    device: str
    folder: Path
    deadline: float
    timm_python: str
    backend: str
    bare: float | None = None

    @property
    def left(self) -> float:
        """Return the seconds that are left."""
        return self.deadline - time.monotonic()

    def environment(self) -> dict[str, str]:
        """Return that of programs, which find us where nothing is installed."""
        paths = (str(_ROOT), os.environ.get("PYTHONPATH"))
        found = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        return found if self.device == "cuda" else {**found, "OMP_NUM_THREADS": "1"}  # several run side by side

    def call(self, command: list[Any], **variables: str) -> str:
        """Return the output of a program, which is ended when the time is."""
        try:
            done = subprocess.run(
                [str(part) for part in command], capture_output=True, text=True, timeout=max(1.0, self.left),
                check=False, env={**self.environment(), **variables}, cwd=_ROOT,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise OutOfTime from error
        if done.returncode:
            raise RuntimeError(f"{command[0]} ended with {done.returncode}: {(done.stderr or done.stdout)[-600:]}")
        return done.stdout

    def weights(self, model: str) -> str:
        """Return a file of weights whose head tells pictures apart."""
        path = self.folder / f"{model}.pt"
        if not path.exists():
            code = (
                "import torch; from trainer.model.build import new_model; "
                f"model = new_model({model!r}, 1000, seed=0); "
                "torch.nn.init.normal_(model.head.fc.weight, std=0.1, generator=torch.Generator().manual_seed(1)); "
                f"torch.save(model.state_dict(), {str(path)!r})"
            )
            self.call([sys.executable, "-c", code])
        return str(path)

    @contextmanager
    def contender(self, role: str, model: str, px: int, **task: Any) -> Iterator[Ask]:
        """Run a contender, which begins at once; what is yielded gives it an order and returns its answer."""
        python = self.timm_python if role == "timm" else sys.executable
        defaults = {"precision": "bfloat16", "recomputes": False, "backend": self.backend, "device": self.device}
        weights = self.weights(model)
        task = {"role": role, "model": model, "px": px, "weights": weights, **defaults, **task}
        with open(self.folder / f"{role}.log", "w") as log:
            process = subprocess.Popen(
                [python, CONTENDER, json.dumps(task)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=self.environment(),
            )  # fmt: skip

        def answer() -> Any:
            assert process.stdout
            if not select.select([process.stdout], [], [], max(0.0, self.left))[0]:
                raise OutOfTime
            line = process.stdout.readline()
            if not line:
                end = (self.folder / f"{role}.log").read_text()[-600:]
                raise RuntimeError(f"{role}, {model} ended with {process.wait()}: {end}")
            return json.loads(line)

        is_ready = False

        def ask(*order: Any) -> Any:
            nonlocal is_ready
            is_ready = is_ready or answer() == "ready"
            assert process.stdin
            process.stdin.write(f"{' '.join(map(str, order))}\n")
            process.stdin.flush()
            return answer()

        try:
            yield ask
        finally:
            process.kill()
            process.communicate()

    def has_timm(self) -> bool:
        """Return whether timm can be imported where it is looked for."""
        code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('timm') is None)"
        return subprocess.run([self.timm_python, "-c", code], check=False).returncode == 0

    def mfu(self, model: str, px: int, images_per_second: float) -> float | None:
        """Return the MFU by the data sheet of the card; None for one that is not known."""
        import torch  # noqa: PLC0415

        from trainer.model.architecture import parse_architecture  # noqa: PLC0415
        from trainer.model.cost import layers  # noqa: PLC0415
        from trainer.model.peak import peak_flops, utilisation  # noqa: PLC0415

        peak = peak_flops(torch.cuda.get_device_name()) if self.device == "cuda" else None
        macs = sum(layer.num_macs for layer in layers(parse_architecture(model), 1000, px))
        return utilisation(images_per_second, macs, 1, peak) if peak else None


def spread(name: str, values: list[float], **more: Any) -> Row:
    """Return the row of a figure that was taken several times."""
    return {"name": name, "value": median(values), "low": min(values), "high": max(values), **more}
