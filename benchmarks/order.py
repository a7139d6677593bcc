"""Times the order of samples at full size, and measures how well it shuffles beside i.i.d. sampling and WebDataset.

    python benchmarks/order.py

- `size`: 4.1 M blocks (300 M samples), in a process of its own, whose memory is taken: laying out one epoch, jumping
  into its middle (a batch's samples for 256 lanes, one after the other for 8 ranks), and the same at an epoch's border,
  where two epochs are held. Physical limit: one numpy permutation of as many numbers.
- `reads`: blocks that the 256 lanes start to read at each step.
- `shuffle`: what batches of 512 hold of 1000 classes and 100 sources, 1300 samples a class. In the worst case samples
  lie sorted by class and source, so that a block holds one class; in the normal case blocks (and so shards) are filled
  in hash order, as our packing does. WebDataset shuffles whole shards (of 32 blocks), splits them among readers, and
  each reader shuffles through a buffer: its own `detshuffle` and `shuffle` run here, on sample numbers instead of
  samples. A batch takes the same number of samples of each reader. `distinct` is the mean of a batch; `chi2` the mean
  of Pearson's statistic over its degrees of freedom, 1 for i.i.d. samples, more where a batch is lopsided.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from side_by_side import environment, peak_bytes
from webdataset import filters

from pipeline.streaming.order import Order, OrderConfig, lanes_of_rank, samples_of

_NUM_BLOCKS, _BATCH, _LANES, _RANKS = 4_100_000, 4096, 256, 8
_NUM_CLASSES, _PER_CLASS, _CLASSES_PER_SOURCE = 1000, 1300, 10
_SMALL_BATCH, _BLOCKS_PER_SHARD = 512, 32

Ints = npt.NDArray[np.int64]


def block_counts(num_blocks: int) -> Ints:
    """Return 60 to 86 samples a block, 73 on average, shape (blocks,)."""
    return np.random.default_rng(0).integers(60, 87, num_blocks)


def resident_bytes() -> int:
    """Return the memory this process has resident now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def draw_batch(order: Order, step: int) -> int:
    """Return the number of samples drawn for all ranks' parts of a batch, every lane's window made anew."""
    each = order.config.samples_per_lane()
    drawn = 0
    for rank in range(_RANKS):
        for lane in lanes_of_rank(_LANES, rank, _RANKS):
            position, stop = step * each, (step + 1) * each
            while position < stop:
                window = order.window(lane, position)
                taken = samples_of(window, position, min(stop, window.end) - position)
                position += len(taken)
                drawn += len(taken)
    return drawn


def seconds_of(work: Callable[[], object]) -> float:
    """Time one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def size() -> None:
    """Lay out and jumps; print JSON. To be run in a process of its own."""
    counts = block_counts(_NUM_BLOCKS)
    before = resident_bytes()
    order = Order(counts, OrderConfig(batch_size=_BATCH, num_lanes=_LANES))
    steps = order.num_samples // _BATCH  # of an epoch, rounded down: the next step holds samples of two epochs
    found = {"build_s": seconds_of(lambda: order.window(0, 0))}
    found["jump_s"] = seconds_of(lambda: draw_batch(order, steps // 2))
    found["one_epoch_peak_bytes"] = peak_bytes() - before
    found["border_s"] = seconds_of(lambda: draw_batch(order, steps))
    found["border_again_s"] = seconds_of(lambda: draw_batch(order, steps))
    found["two_epochs_resident_bytes"] = resident_bytes() - before
    draw_batch(order, 2 * steps + steps // 2)  # a third epoch takes the place of the first
    found["peak_bytes"] = peak_bytes() - before
    found["permutation_s"] = min(
        seconds_of(lambda: np.random.default_rng(0).permutation(_NUM_BLOCKS)) for _ in range(3)
    )
    found["num_samples"] = order.num_samples
    found["counts_bytes"] = counts.nbytes
    print(json.dumps(found))


def size_in_child() -> None:
    """Run `size` in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--size"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    print(
        f"size: {_NUM_BLOCKS:,} blocks, {found['num_samples']:,} samples; {_LANES} lanes, {_RANKS} ranks, "
        f"batches of {_BATCH}\n"
        f"  one epoch laid out in {found['build_s']:.2f} s (a bare numpy permutation: {found['permutation_s']:.2f} s); "
        f"process growth at most {found['one_epoch_peak_bytes'] / 1e6:.0f} MB\n"
        f"  jump to the middle of the epoch, all lanes, all ranks: {found['jump_s']:.3f} s\n"
        f"  jump to the epoch's border: {found['border_s']:.2f} s with laying out the next epoch, "
        f"{found['border_again_s']:.3f} s again; two epochs held: {found['two_epochs_resident_bytes'] / 1e6:.0f} MB, "
        f"at most {found['peak_bytes'] / 1e6:.0f} MB when a third comes\n"
        f"  (beside the caller's counts of {found['counts_bytes'] / 1e6:.0f} MB)"
    )
    print(json.dumps(found))


def reads(num_steps: int = 1000) -> None:
    """Print how evenly reads are spread over steps."""
    order = Order(block_counts(_NUM_BLOCKS), OrderConfig(batch_size=_BATCH, num_lanes=_LANES))
    each = order.config.samples_per_lane()
    pieces = np.zeros(num_steps, np.int64)
    for lane in range(_LANES):
        position = order.window(lane, 0).end
        while position < num_steps * each:
            window = order.window(lane, position)
            pieces[position // each] += len(window.pieces)
            position = window.end
    print(
        f"reads: in {num_steps} steps the {_LANES} lanes start to read {pieces.mean():.0f} blocks a step after their "
        f"first windows, {np.percentile(pieces, 99):.0f} at the 99th percentile, at most {pieces.max()}; "
        f"{(pieces == 0).sum()} steps read none"
    )


def in_batches(lines: list[Ints]) -> Ints:
    """Cut equally long parts of each line into batches, shape (batches, samples)."""
    each = _SMALL_BATCH // len(lines)
    steps = min(len(line) for line in lines) // each
    return np.concatenate([line[: steps * each].reshape(steps, each) for line in lines], axis=1)


def ours(counts: Ints, num_lanes: int, window_blocks: int) -> Ints:
    """Yield one epoch of our order in batches of sample numbers."""
    config = OrderConfig(batch_size=_SMALL_BATCH, num_lanes=num_lanes, window_blocks=window_blocks)
    order = Order(counts, config)
    block_starts = np.cumsum(counts) - counts

    def line(lane: int) -> Iterator[Ints]:
        window = order.window(lane, 0)
        while window.epoch == 0:
            blocks = np.array([piece.block for piece in window.pieces])
            index, sample = samples_of(window, window.start, window.end - window.start).T
            yield block_starts[blocks[index]] + sample
            window = order.window(lane, window.end)

    return in_batches([np.concatenate(list(line(lane))) for lane in range(num_lanes)])


def webdataset(counts: Ints, num_readers: int, buffer: int) -> Ints:
    """Yield one epoch of WebDataset's order in batches of sample numbers."""
    starts = (np.cumsum(counts) - counts)[::_BLOCKS_PER_SHARD].tolist()
    shards = list(zip(starts, [*starts[1:], int(counts.sum())], strict=True))
    shuffled = list(filters.detshuffle(bufsize=len(shards), initial=len(shards)).run(iter(shards)))

    def line(reader: int) -> Iterator[int]:
        for first, stop in shuffled[reader::num_readers]:
            yield from range(first, stop)

    lines = [filters.shuffle(buffer, seed=reader)(line(reader)) for reader in range(num_readers)]
    return in_batches([np.fromiter(one, np.int64) for one in lines])


def lopsided(batches: Ints, num_values: int) -> tuple[float, float]:
    """Return the mean number of distinct values of a batch, and chi-square over its degrees of freedom.

    Args:
        batches: Values in [0, num_values), all equally frequent in the dataset, shape (batches, samples).
        num_values: How many values there are.
    """
    expected = batches.shape[1] / num_values
    counts = np.stack([np.bincount(batch, minlength=num_values) for batch in batches])
    chi2 = ((counts - expected) ** 2 / expected).sum(axis=1)
    return float((counts > 0).sum(axis=1).mean()), float(chi2.mean() / (num_values - 1))


def shuffle() -> None:
    """Print the table of shuffle quality."""
    num_samples = _NUM_CLASSES * _PER_CLASS
    ends = np.cumsum(block_counts(num_samples // 60))
    ends = np.append(ends[ends < num_samples], num_samples)
    counts = np.diff(ends, prepend=0)
    sorted_classes = np.arange(num_samples) // _PER_CLASS
    hashed_classes = np.random.default_rng(1).permutation(sorted_classes)
    contenders: dict[str, tuple[int, Callable[[], Ints]]] = {
        "i.i.d.": (
            num_samples,
            lambda: np.random.default_rng(2).integers(0, num_samples, (num_samples // _SMALL_BATCH, _SMALL_BATCH)),
        )
    }
    for num_lanes, window_blocks in ((16, 4), (16, 16), (64, 4), (64, 16), (256, 4)):
        contenders[f"ours, {num_lanes} lanes x {window_blocks} blocks"] = (
            num_lanes * window_blocks * round(counts.mean()),
            partial(ours, counts, num_lanes, window_blocks),
        )
    for readers, buffer in ((1, 1000), (1, 5000), (16, 1000), (16, 5000)):
        contenders[f"webdataset, {readers} x buffer of {buffer}"] = (
            readers * buffer,
            partial(webdataset, counts, readers, buffer),
        )
    print(
        f"\nshuffle: batches of {_SMALL_BATCH} out of {num_samples:,} samples in {len(counts):,} blocks, "
        f"{_NUM_CLASSES} classes, {_NUM_CLASSES // _CLASSES_PER_SOURCE} sources\n"
        "| order | samples held | sorted: distinct classes | chi2 | distinct sources | chi2 "
        "| hashed: distinct classes | chi2 | distinct sources | chi2 |\n" + "| --- " * 10 + "|"
    )
    for name, (held, make) in contenders.items():
        batches = make()
        cells = [name, f"{held:,}"]
        for classes in (sorted_classes, hashed_classes):
            found = classes[batches]
            for values, most in (
                (found, _NUM_CLASSES),
                (found // _CLASSES_PER_SOURCE, _NUM_CLASSES // _CLASSES_PER_SOURCE),
            ):
                distinct, chi2 = lopsided(values, most)
                cells += [f"{distinct:.1f}", f"{chi2:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().size:
        size()
    else:
        size_in_child()
        reads()
        shuffle()
        print(json.dumps(environment()))
