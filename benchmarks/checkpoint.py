"""Checkpoints: how long training waits for one, how long it takes, what it costs in memory; and what a load reads.

    python benchmarks/checkpoint.py FOLDER|s3://BUCKET/PREFIX [--mb 500] [--rounds 5]

Contenders, on the same state (306 tensors, as R50x1 has with its momentum), each round in turn:
- `ours`: BackgroundSaver, streamed to the store with digests of every chunk.
- `ours, waiting`: the same, the loop waits for the commit (sharded.save).
- `torch`: torch.distributed.checkpoint.save to files, and `torch, async`: async_save; FOLDER only, no digests.
Compared first: every tensor that comes back. Physical limit: a copy of the state in memory at about 5 GB/s a core; the
write itself goes on beside the steps. `an eighth` is a load of one eighth of each tensor, as one of eight ranks does.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import psutil
import torch
from side_by_side import environment
from torch import Tensor

from pipeline.store.url import open_store
from trainer.checkpoint.background import BackgroundSaver
from trainer.checkpoint.chunks import Part
from trainer.checkpoint.record import CheckpointRecord, read_record
from trainer.checkpoint.retention import Retention
from trainer.checkpoint.sharded import _planned_reads, load, save
from trainer.step.ranks import alone

_TENSORS = 306


def state_of(num_bytes: int) -> dict[str, Tensor]:
    """Return tensors of equal size that together have about so many bytes."""
    rows = max(8, num_bytes // _TENSORS // 4 // 64)
    generator = torch.Generator().manual_seed(0)
    return {f"model/{number:03d}": torch.randn(rows, 64, generator=generator) for number in range(_TENSORS)}


class PeakMemory:
    """Watches the process's resident memory."""

    def __enter__(self) -> "PeakMemory":
        self._process, self._is_over = psutil.Process(), threading.Event()
        self.before = self.peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._is_over.wait(0.005):
            self.peak = max(self.peak, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    @property
    def extra(self) -> int:
        """Bytes above the start."""
        return self.peak - self.before


def main() -> None:
    """Print a line a contender."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--mb", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    state = state_of(options.mb * 1_000_000)
    num_bytes = sum(tensor.nbytes for tensor in state.values())
    store = open_store(options.out)
    stalls: dict[str, list[float]] = {}
    durable: dict[str, list[float]] = {}
    extras: dict[str, list[float]] = {}

    def note(name: str, stalled: float, done: float, extra: int) -> None:
        for table, value in ((stalls, stalled), (durable, done), (extras, extra / num_bytes)):
            table.setdefault(name, []).append(value)

    saver = BackgroundSaver(store, alone(), "background", None, Retention(newest=1))
    step = 0
    for _ in range(options.rounds):
        step += 1
        with PeakMemory() as memory:
            began = time.perf_counter()
            saver.start(state, step=step, stream={}, about={})
            stalled = time.perf_counter() - began
            saver.wait()
        note("ours", stalled, time.perf_counter() - began, memory.extra)
        step += 1
        with PeakMemory() as memory:
            began = time.perf_counter()
            save(store, alone(), state, step=step, attempt="waiting", stream={}, about={})
        note("ours, waiting", time.perf_counter() - began, time.perf_counter() - began, memory.extra)
        if "://" not in options.out:
            for name, stalled, done, extra in _torch(state, Path(options.out)):
                note(name, stalled, done, extra)
    record = read_record(store, step)
    print(f"{num_bytes / 1e6:.0f} MB in {_TENSORS} tensors, {options.rounds} rounds, {options.out}")
    print("| contender | training waits, s | durable after, s | extra memory / state |")
    print("| --- | --- | --- | --- |")
    for name, waits in stalls.items():
        print(f"| {name} | {_spread(waits)} | {_spread(durable[name])} | {_spread(extras[name])} |")
    print(f"an eighth: {_share_of_an_eighth(store, record, state):.3f} of the bytes read")
    print(json.dumps(environment()))


def _share_of_an_eighth(store: Any, record: CheckpointRecord, state: dict[str, Tensor]) -> float:
    """Return the share of a checkpoint's bytes that one of eight ranks reads; the whole is compared first."""
    back = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    load(store, alone(), record, back)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    reads = _planned_reads(store, record, [_eighth(name, tensor) for name, tensor in state.items()])
    read = sum(chunk.num_bytes for _, run in reads for chunk in run)
    return read / sum(tensor.nbytes for tensor in state.values())


def _torch(state: dict[str, Tensor], out: Path) -> list[tuple[str, float, float, int]]:
    from torch.distributed.checkpoint import FileSystemWriter, async_save  # noqa: PLC0415
    from torch.distributed.checkpoint.state_dict_saver import save as dcp_save  # noqa: PLC0415

    found = []
    warnings.filterwarnings("ignore")
    for name in ("torch", "torch, async"):
        folder = Path(tempfile.mkdtemp(dir=out))
        writer = FileSystemWriter(folder, single_file_per_rank=True)
        with PeakMemory() as memory:
            began = time.perf_counter()
            if name == "torch":
                dcp_save(state, storage_writer=writer, no_dist=True)
                stalled = time.perf_counter() - began
            else:
                future = async_save(state, storage_writer=writer, no_dist=True)
                stalled = time.perf_counter() - began
                future.result()  # type: ignore[union-attr]
        found.append((name, stalled, time.perf_counter() - began, memory.extra))
        shutil.rmtree(folder)
    return found


def _eighth(name: str, tensor: Tensor) -> Part:
    """Return the rows that the fourth of eight FSDP2 ranks holds."""
    rows = -(-tensor.shape[0] // 8)
    return Part(name, torch.empty(rows, *tensor.shape[1:]), tuple(tensor.shape), 3 * rows)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
