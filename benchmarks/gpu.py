"""All that is to be known of training on one GPU, in one command and in less than 8 minutes.

    python benchmarks/gpu.py OUT [--seconds 460] [--only PART] [--timm-python PYTHON] [--cpu]
    python benchmarks/gpu.py OUT --report

Parts, the most important first; one that does not fit into what is left of the time is left out, and said to be:
- tests: tests/trainer/test_gpu.py
- steps: training steps beside timm's, both compiled, with one and with eight micro-batches, in alternating rounds;
  memory and MFU; the ways to standardise kernels; then, of both, where the time of a step goes (`profile`)
- run: a whole `trainer pretrain` on photos, against the bare step, and where its time goes
- large: the largest batch of large models against what `trainer describe` foretells, recomputing and not
- loader: photos a second of one core and of all, from local files and S3, packed at full size and with --resize 256
- graphs: what compilation made of a step: graphs, breaks in them, kernels
- more: other ways to compile, against ours
- large compiled: speed of the large models

OUT gets gpu.jsonl, a line for each figure once it is known, and gpu.md, the tables; a second call with --only adds
to them. Every contender is a process of its own. All pictures are made here. timm may live in an environment of its
own. With --cpu everything is tried at sizes that mean nothing, without a compiler.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_bench import Bench, OutOfTime, Row
from gpu_parts import NEEDS, PARTS
from gpu_report import CPU, GPU, catalogue, fitting, report
from side_by_side import environment


def measured(bench: Bench, part: str) -> Iterator[Row]:
    """Yield the rows of a part; one with a reason where some are missing."""
    if not fitting(NEEDS if bench.device == "cuda" else dict.fromkeys(NEEDS, 0.0), part, bench.left):
        yield {"part": part, "reason": f"no time left: it needs {NEEDS[part]:.0f} s"}
        return
    try:
        for row in PARTS[part](bench):
            yield {"part": part, **row}
    except OutOfTime:
        yield {"part": part, "reason": "the time was over"}
    except (RuntimeError, OSError, ImportError, json.JSONDecodeError) as error:
        yield {"part": part, "reason": " ".join(str(error).split())[-300:]}


def main() -> None:
    """Measure, and write down what is known after each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--seconds", type=float, default=460.0)
    parser.add_argument("--only", action="append", choices=list(PARTS), help="may be given several times")
    parser.add_argument("--timm-python", default=sys.executable, help="the Python that has timm, and torch")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--backend", help="of torch.compile; inductor on a GPU, eager with --cpu")
    parser.add_argument("--report", action="store_true", help="write the tables of what is there, and measure nothing")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    options.out.mkdir(parents=True, exist_ok=True)
    sizes, lines = CPU if options.cpu else GPU, options.out / "gpu.jsonl"
    rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    about: dict[str, Any] = {}
    if not options.report:
        import torch  # noqa: PLC0415

        if not options.cpu and not torch.cuda.is_available():
            parser.error("torch finds no GPU on this machine; --cpu tries everything at sizes that mean nothing")
        card = "none" if options.cpu else torch.cuda.get_device_name()
        about = {"card": card, **environment(("timm", "triton"))}
        about["versions"] = {name: value for name, value in about["versions"].items() if value}
        with tempfile.TemporaryDirectory() as folder, lines.open("a") as sink:
            device = "cpu" if options.cpu else "cuda"
            backend = options.backend or ("eager" if options.cpu else "inductor")
            bench = Bench(sizes, device, Path(folder), deadline, options.timm_python, backend)
            for part in options.only or PARTS:
                for row in measured(bench, part):
                    rows.append({**row, "card": card, "commit": about["commit"]})
                    sink.write(json.dumps(rows[-1]) + "\n")
                    sink.flush()
                    print(json.dumps(row), flush=True)
    (options.out / "gpu.md").write_text(report(catalogue(sizes), rows, about))


if __name__ == "__main__":
    main()
