"""Replays a run on hundreds of ranks without one: the real order, lanes and checkpoints, with times that are assumed.

    python benchmarks/simulate.py [--nodes 64] [--gpus 8] [--model R152x4] [--images 300e6] [--price 2.5]

Real are which lane reads which block when (pipeline.streaming.order), which rank has which lanes, which rank writes
which rows of which tensor (trainer.checkpoint.chunks), and how often a run saves (trainer.checkpoint.interval).
Assumed are the rate of a GPU (trainer.jobs.forecast names its sources), latency and rate of the store, and failures.
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.streaming.order import Order, OrderConfig, lanes_of_rank
from trainer.checkpoint.chunks import own_parts
from trainer.checkpoint.interval import seconds_between_saves
from trainer.jobs.forecast import GPU_HOURS_PER_FAILURE, RESTART_SECONDS, SHARE_OF_PEAK, checkpoint_bytes
from trainer.model.architecture import parse_architecture
from trainer.model.cost import layers
from trainer.model.network import ResNetV2
from trainer.model.peak import FLOPS_PER_MAC, PASSES, PEAK_FLOPS

_BLOCK_BYTES, _PICTURE_BYTES = 8 << 20, 108_000  # docs/benchmarks/streaming.md
_FIRST_BYTE_SECONDS, _STREAM_BYTES_PER_SECOND = 0.05, 80e6  # of a GET from an object store in the same region; assumed
_PARTITIONS = 16  # of a bucket, by prefix; assumed
_SLOW_FACTOR = 50.0  # of a partition that is throttled
_WRITE_BYTES_PER_SECOND = 75e6  # of a rank to the store (trainer.jobs.forecast)
_COPY_BYTES_PER_SECOND = 2e9
_REDUCE_SECONDS = 0.05  # of a step that is not hidden behind the backward pass; assumed
_JITTER = 0.02  # standard deviation of a rank's step
_GET_DOLLARS, _PUT_DOLLARS = 0.4e-6, 5e-6  # a request, list price of S3 in us-east-1
_PART_BYTES = 64 << 20  # of an upload


@dataclass(frozen=True)
class Cluster:
    """What a step takes.

    Attributes:
        num_ranks: GPUs.
        picture_seconds: Of a GPU for a picture.
        order: Of the samples.
        lanes: How many, and the batch.
    """

    num_ranks: int
    picture_seconds: float
    order: Order
    lanes: OrderConfig

    def step_seconds(self, num_ranks: int, slow: Sequence[float], chance: np.random.Generator) -> float:
        """Return the time of one step: that of the rank with the most lanes and the slowest node."""
        held = np.array([len(lanes_of_rank(self.lanes.num_lanes, rank, num_ranks)) for rank in range(num_ranks)])
        pace = np.ones(num_ranks)
        pace[: len(slow)] = slow
        jitter = chance.lognormal(0.0, _JITTER, num_ranks)
        return (
            float((held * self.lanes.samples_per_lane() * self.picture_seconds * pace * jitter).max()) + _REDUCE_SECONDS
        )


def reads_by_step(cluster: Cluster, num_steps: int) -> np.ndarray:
    """Return how many blocks all lanes begin to read in each step, shape (steps,), by the real order."""
    counts = np.zeros(num_steps, np.int64)
    each = cluster.lanes.samples_per_lane()
    for lane in range(cluster.lanes.num_lanes):
        position = 0
        while position // each < num_steps:
            window = cluster.order.window(lane, position)
            counts[position // each] += len(window.pieces)
            position = window.end
    return counts


def data_waits(cluster: Cluster, num_steps: int, step_seconds: float, slow_share: float, seed: int = 0) -> float:
    """Return the share of the time that the group waits for the slowest window of any lane.

    A window is read while the one before it is used, its blocks side by side; all ranks wait for the last one.
    """
    chance, each = np.random.default_rng(seed), cluster.lanes.samples_per_lane()
    begins: dict[
        int, list[tuple[int, float]]
    ] = {}  # by step: when the reading of a window began, and how long it takes
    for lane in range(cluster.lanes.num_lanes):
        window = cluster.order.window(lane, 0)
        while window.end // each < num_steps:
            before, window = window.start // each, cluster.order.window(lane, window.end)
            count = len(window.pieces)
            seconds = _FIRST_BYTE_SECONDS * chance.lognormal(0.0, 0.6, count) + _BLOCK_BYTES / _STREAM_BYTES_PER_SECOND
            is_slow = chance.random(count) < slow_share
            reading = float((seconds * np.where(is_slow, _SLOW_FACTOR, 1.0)).max())
            begins.setdefault(window.start // each, []).append((before, reading))
    clock = np.zeros(num_steps + 1)  # when each step begins
    for step in range(num_steps):
        ready = max((clock[before] + reading for before, reading in begins.get(step, ())), default=0.0)
        clock[step] = max(clock[step], ready)
        clock[step + 1] = clock[step] + step_seconds
    return 1 - num_steps * step_seconds / float(clock[-1])


def written_by_rank(model: ResNetV2, num_ranks: int) -> np.ndarray:
    """Return the bytes that each rank writes of a checkpoint, shape (ranks,), by the real division."""
    state = {f"{kind}/{name}": value for kind in ("model", "momentum") for name, value in model.state_dict().items()}
    return np.array([sum(p.rows.nbytes for p in own_parts(state, rank, num_ranks)) for rank in range(num_ranks)])


def goodput(days: float, save: float, stall: float, failure: float, restart: float, seed: int = 0) -> tuple[float, int]:
    """Return the share of the time that goes into kept steps, and the failures, of a run that fails at random."""
    chance, now, kept, failures = np.random.default_rng(seed), 0.0, 0.0, 0
    interval, end = seconds_between_saves(stall, save, failure), days * 86_400
    while now < end:
        until = now + chance.exponential(failure)
        cycle = interval + stall
        saved = max(0, math.floor((min(until, end) - now - save) / cycle))  # only a committed save is kept
        kept += saved * interval if until < end else (end - now) * interval / cycle
        failures += until < end
        now = until + restart
    return min(1.0, kept / end), failures


def overview(args: argparse.Namespace, cluster: Cluster) -> Iterator[str]:
    """Yield what a run takes where nothing happens."""
    step = cluster.step_seconds(cluster.num_ranks, (), np.random.default_rng(0))
    rate, num_blocks = args.batch / step, int(args.images * _PICTURE_BYTES / _BLOCK_BYTES)
    began = time.monotonic()
    cluster.order.window(0, 0)
    laid_out = time.monotonic() - began
    hours = args.epochs * args.images / rate / 3600
    yield f"{args.model} at {args.px} px on {args.nodes} x {args.gpus} {args.gpu}, batch {args.batch:,}"
    yield f"a step {step:.2f} s, {rate:,.0f} images/s, {rate * _PICTURE_BYTES / 1e9:.2f} GB/s from the store"
    yield f"an epoch of {args.images:,.0f} images {hours / args.epochs:,.1f} h; its order takes {laid_out:.2f} s"
    gpu_hours = hours * cluster.num_ranks
    yield f"{args.epochs:g} epochs {hours:,.0f} h, {gpu_hours:,.0f} GPU hours, ${gpu_hours * args.price:,.0f}"
    yield f"GETs of an epoch {num_blocks:,}, ${num_blocks * _GET_DOLLARS:,.2f}"


def lanes_table(args: argparse.Namespace, clusters: Sequence[Cluster]) -> Iterator[str]:
    """Yield what the number of lanes decides: shuffling, memory, requests, and the rate when ranks are lost."""
    chance = np.random.default_rng(0)
    yield "| lanes | pictures shuffled | MiB a rank | GETs at the start | GETs/s | images/s | a node lost | 10 % lost |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for each in clusters:
        steps = 12 * (_BLOCK_BYTES // _PICTURE_BYTES) // each.lanes.samples_per_lane()
        reads = reads_by_step(each, steps)
        lost = (each.num_ranks, each.num_ranks - args.gpus, round(each.num_ranks * 0.9))
        paces = [each.step_seconds(ranks, (), chance) for ranks in lost]
        blocks = each.lanes.num_lanes * each.lanes.window_blocks
        rates = " | ".join(f"{args.batch / pace:,.0f}" for pace in paces)
        yield (
            f"| {each.lanes.num_lanes:,} | {blocks * _BLOCK_BYTES // _PICTURE_BYTES:,} | "
            f"{blocks * (_BLOCK_BYTES >> 20) // each.num_ranks:,} | {reads[0]:,} | "
            f"{reads[steps // 2 :].mean() / paces[0]:,.0f} | {rates} |"
        )


def disturbances_table(args: argparse.Namespace, cluster: Cluster) -> Iterator[str]:
    """Yield the rate with slow nodes and a slow part of the store."""
    chance, steps = np.random.default_rng(0), 12 * (_BLOCK_BYTES // _PICTURE_BYTES) // cluster.lanes.samples_per_lane()
    best = args.batch / cluster.step_seconds(cluster.num_ranks, (), chance)
    yield "| what happens | images/s | of the best |"
    yield "| --- | --- | --- |"
    for what, pace, share in (
        ("nothing", 1.0, 0.0),
        ("a node 20 % slower", 1.2, 0.0),
        ("a node at half its pace", 2.0, 0.0),
        (f"one of {_PARTITIONS} partitions of the store {_SLOW_FACTOR:.0f} times slower", 1.0, 1 / _PARTITIONS),
    ):
        step = cluster.step_seconds(cluster.num_ranks, (pace,) * args.gpus, chance)
        rate = args.batch / step * (1 - data_waits(cluster, steps, step, share))
        yield f"| {what} | {rate:,.0f} | {rate / best:.0%} |"


def checkpoints_table(args: argparse.Namespace, num_ranks: int) -> Iterator[str]:
    """Yield what saves and failures take."""
    architecture = parse_architecture(args.model)
    with torch.device("meta"):
        model = ResNetV2(architecture, args.classes)
    size = checkpoint_bytes(sum(layer.num_parameters for layer in layers(architecture, args.classes, args.px)))
    written = written_by_rank(model, num_ranks)
    save, stall = written.max() / _WRITE_BYTES_PER_SECOND, written.max() / _COPY_BYTES_PER_SECOND
    puts = size / _PART_BYTES + 2 * num_ranks
    yield (
        f"checkpoint {size / 1e9:.1f} GB; a rank writes {written.mean() / 1e6:,.1f} MB, at most "
        f"{written.max() / 1e6:,.1f}: durable after {save:.1f} s, {puts:,.0f} PUTs, ${puts * _PUT_DOLLARS:.3f}"
    )
    yield "\n| GPU hours a failure | restart, s | failures in 30 days | saves every, s | goodput |"
    yield "| --- | --- | --- | --- | --- |"
    for hours in GPU_HOURS_PER_FAILURE:
        for restart in RESTART_SECONDS:
            failure = hours * 3600 / num_ranks
            share, failures = goodput(30.0, save, stall, failure, restart)
            interval = seconds_between_saves(stall, save, failure)
            yield f"| {hours:,.0f} | {restart:.0f} | {failures} | {interval:.0f} | {share:.1%} |"


def tables(args: argparse.Namespace) -> Iterator[str]:
    """Yield all tables, line by line."""
    num_ranks = args.nodes * args.gpus
    macs = sum(layer.num_macs for layer in layers(parse_architecture(args.model), args.classes, args.px))
    picture_seconds = macs * FLOPS_PER_MAC * PASSES / (PEAK_FLOPS[args.gpu] * SHARE_OF_PEAK.high)
    num_blocks = int(args.images * _PICTURE_BYTES / _BLOCK_BYTES)
    counts = np.full(num_blocks, int(args.images / num_blocks), np.int64)
    numbers = sorted({each for each in (num_ranks, 2 * num_ranks, 4 * num_ranks, args.batch) if args.batch % each == 0})
    configs = [OrderConfig(batch_size=args.batch, num_lanes=each) for each in numbers]
    clusters = [Cluster(num_ranks, picture_seconds, Order(counts, config), config) for config in configs]
    for part in (
        overview(args, clusters[-1]),
        lanes_table(args, clusters),
        disturbances_table(args, clusters[-1]),
        checkpoints_table(args, num_ranks),
    ):
        yield from part
        yield ""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--gpu", default="H100", choices=PEAK_FLOPS)
    parser.add_argument("--model", default="R152x4")
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--classes", type=int, default=18_291)
    parser.add_argument("--images", type=float, default=300e6)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--epochs", type=float, default=40.0)
    parser.add_argument("--price", type=float, default=2.5, help="dollars of a GPU for an hour")
    for line in tables(parser.parse_args()):
        print(line, flush=True)


if __name__ == "__main__":
    main()
