"""Damages a dataset in every way we know, streams one epoch of it, and counts: nothing may be lost without a word.

    python -m tests.soak.damage

200 pictures in 8 shards of 32 blocks. Each damage is done to a copy of its own, which is streamed for exactly one
epoch by 1, 2 and 3 ranks, with 0 and 2 loader workers, with much memory and with little; all must yield the same
pictures, report the same samples and put the same ones in their place. A real S3 server stands behind a proxy that
breaks 5 requests, one in four. Beside it webdataset 1.0.2 reads the same tars: how many samples it yields with its
`warn_and_continue`, and what it raises without. Ends with 1 if anything was lost.
"""

import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import webdataset

from cluster.stack.services import start_stack, stop_stack
from pipeline.dataset.dataset import Dataset, open_dataset
from pipeline.image.transforms import PretrainView
from pipeline.store.url import open_store
from pipeline.streaming.loader.messages import BadSample, ReadCounts
from pipeline.streaming.order import OrderConfig
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import WORKER_BYTES, LoaderConfig, Stream
from tests.faults import FaultProxy
from tests.soak.damages import DAMAGES, NUM_SAMPLES, Damage, Expected, Key, damaged_copy, flipped, make, rewrite, tar_of

SIDE_PX = 16
ORDER = OrderConfig(seed=3, batch_size=20, num_lanes=10, window_blocks=2)
# Some damages hit more samples than the default limit of 16 allows.
ROOMY = LoaderConfig(max_bad_fraction=0.5)
# Just above what the windows need: blocks are read anew in every epoch, and parts of them on their own.
TIGHT = ROOMY.model_copy(update={"budget_bytes": 1_000_000})
TIGHT_WORKERS = TIGHT.model_copy(update={"num_workers": 2, "budget_bytes": 1_000_000 + 2 * WORKER_BYTES})
WAYS = ((1, ROOMY), (1, TIGHT), (2, TIGHT), (3, TIGHT), (1, TIGHT_WORKERS))
NETWORK_KINDS = ("flipped byte", "truncated", "reset", "503", "stalled")
_BROKEN_EVERY, _NUM_BROKEN = 4, 5
_STALL_SECONDS = 0.8  # a read is hedged after 0.5
_NAME_WIDTH = 38


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave.

    Attributes:
        images: Of all ranks, shape (samples, side, side, 3).
        keys: Shard and row of what was handed out, in order.
        bad: What was reported with the batches.
        heard: What was reported through `on_bad`.
        counts: Of all ranks.
    """

    images: npt.NDArray[np.uint8]
    keys: tuple[Key, ...]
    bad: tuple[BadSample, ...]
    heard: tuple[BadSample, ...]
    counts: ReadCounts

    def lost(self) -> set[Key]:
        """Return the samples that were due and neither handed out nor reported, or handed out more than once."""
        own = Counter(self.keys)
        own.subtract(one.substitute for one in self.bad)
        own.update((one.shard, one.row) for one in self.bad)
        return {key for key in all_keys() | own.keys() if own[key] != 1}

    def reported(self) -> Expected:
        """Return the reason of each sample that was reported."""
        return {(one.shard, one.row): one.reason for one in self.bad}

    def is_like(self, other: "Epoch") -> bool:
        """Return whether two epochs gave the same pictures and reported the same samples."""
        mine, others = ([replace(one, path="", detail="") for one in epoch.bad] for epoch in (self, other))
        return self.keys == other.keys and mine == others and np.array_equal(self.images, other.images)


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    damage: str
    due: int
    handed_out: int
    replaced: int
    reported: int
    webdataset_samples: str
    webdataset_error: str
    lost: int


def all_keys() -> set[Key]:
    """Return the samples of an epoch."""
    return {(number // 25, number % 25) for number in range(NUM_SAMPLES)}


def epoch_of(url: str | Dataset, num_ranks: int = 1, loader: LoaderConfig = ROOMY, num_epochs: int = 1) -> Epoch:
    """Stream whole epochs on any number of ranks, one after another in this process; return the last one."""
    heard: list[BadSample] = []
    views = [Selection(url if isinstance(url, Dataset) else open_dataset(url)) for _ in range(num_ranks)]
    streams = [
        Stream(
            selection, ORDER, PretrainView(SIDE_PX), rank=rank, num_ranks=num_ranks, loader=loader, on_bad=heard.append
        )
        for rank, selection in enumerate(views)
    ]
    try:
        for _ in range(num_epochs):
            heard.clear()
            before = [ReadCounts(**vars(stream.counts)) for stream in streams]
            parts = [next(stream) for _ in range(NUM_SAMPLES // ORDER.batch_size) for stream in streams]
    finally:
        for stream in streams:
            stream.close()
    counts = ReadCounts()
    for stream, earlier in zip(streams, before, strict=True):
        now = vars(stream.counts)
        counts.add(ReadCounts(**{name: value - getattr(earlier, name) for name, value in now.items()}))
    return Epoch(
        images=np.concatenate([part.images for part in parts]),
        keys=tuple((address.shard, address.row) for part in parts for address in part.addresses),
        bad=tuple(bad for part in parts for bad in part.bad),
        heard=tuple(heard),
        counts=counts,
    )


def webdataset_of(dataset: Dataset) -> tuple[int, str]:
    """Return the number of samples webdataset decodes from the tars if it is to go on, and its error if it is not."""
    urls = [str(tar_of(dataset, shard["shard"])) for shard in dataset.shards]

    def samples(handler: Callable[[Exception], bool]) -> Iterator[Any]:
        read = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False, handler=handler)
        return iter(read.decode("rgb8", handler=handler))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = sum(1 for _ in samples(webdataset.warn_and_continue))
        try:
            for _ in samples(webdataset.reraise_exception):
                pass
        except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
            return given, type(error).__name__
    return given, "none"


def line_of(name: str, epoch: Epoch, of_webdataset: tuple[str, str] = ("-", "-")) -> Line:
    """Return the table's line of an epoch."""
    substitutes = sum(1 for one in epoch.bad if one.substitute in all_keys())
    return Line(
        name, NUM_SAMPLES, len(epoch.keys), substitutes, len(epoch.reported()), *of_webdataset, lost=len(epoch.lost())
    )


def suffer(damage: Damage, sets: tuple[Path, Path], folder: Path) -> Line:
    """Stream a damaged copy in every way, check what came, and return the line of the table.

    Raises:
        AssertionError: Something was lost, reported wrongly, or differs between two ways to stream it.
    """
    dataset, expected = damaged_copy(damage, sets, folder)
    epochs = [epoch_of(dataset.store.url, num_ranks, loader) for num_ranks, loader in WAYS]
    for (num_ranks, loader), epoch in zip(WAYS, epochs, strict=True):
        way = f"{damage.name}: {num_ranks} ranks, {loader.num_workers} workers, {loader.budget_bytes} bytes"
        assert not epoch.lost(), f"{way}: {sorted(epoch.lost())} are lost"
        assert epoch.reported() == expected, f"{way}: {epoch.reported()} was reported, {expected} is damaged"
        assert len(epoch.bad) == len(expected), f"{way}: reported twice"
        assert sorted(map(repr, epoch.heard)) == sorted(map(repr, epoch.bad)), f"{way}: on_bad heard something else"
        assert epoch.is_like(epochs[0]), f"{way}: differs"
    given, error = webdataset_of(dataset)
    return line_of(damage.name, epochs[0], (str(given), error))


def cached_damage(sets: tuple[Path, Path], folder: Path) -> Line:
    """Damage every block of a disk cache; they are read anew, and all is as without a cache.

    Raises:
        AssertionError: It is not.
    """
    url, cache = str(sets[0]), folder / "cache"
    plain = epoch_of(url, loader=TIGHT)
    cached = TIGHT.model_copy(update={"cache_folder": str(cache)})
    epoch_of(url, loader=cached)
    blocks = [path for path in cache.glob("??/*") if path.stat().st_size]
    assert len(blocks) >= 30, f"only {len(blocks)} blocks were cached"
    for number, path in enumerate(blocks):
        rewrite(path, lambda body, cut=number % 2: body[:-1] if cut else flipped(body, len(body) // 2))  # type: ignore[misc]
    epoch = epoch_of(url, loader=cached)
    assert not epoch.lost()
    assert not epoch.bad
    assert epoch.is_like(plain)
    again = epoch_of(url, loader=cached)
    assert again.is_like(plain)
    assert again.counts.cache_hits > epoch.counts.cache_hits - len(blocks)
    return line_of("every cached block on disk damaged", epoch)


@contextmanager
def broken_network(kind: str) -> Iterator[tuple[FaultProxy, Callable[[], None]]]:
    """Put a proxy before the S3 server in use; armed by the function, it breaks 5 GETs, one in four."""
    armed, seen = [False], [0]

    def choose(method: str, path: str) -> str | None:
        seen[0] += armed[0] and method == "GET"
        is_due = armed[0] and method == "GET" and seen[0] % _BROKEN_EVERY == 0
        return kind if is_due and proxy.faults[kind] < _NUM_BROKEN else None

    def arm() -> None:
        armed[0] = True

    server = os.environ["AWS_ENDPOINT_URL"]
    proxy = FaultProxy(int(server.rpartition(":")[2]), choose, _STALL_SECONDS)
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{proxy.port}"
    try:
        yield proxy, arm
    finally:
        os.environ["AWS_ENDPOINT_URL"] = server
        proxy.close()


def upload(folder: Path, url: str) -> None:
    """Copy a dataset from a folder to S3."""
    source, target = open_store(str(folder)), open_store(url)
    for entry in source.walk():
        target.create(entry.key, source.read(entry.key))


def network_damage(kind: str, url: str, plain: Epoch) -> Line:
    """Stream a dataset through a network that damages now and then: only what is damaged itself may be reported.

    Raises:
        AssertionError: One was, or the epoch differs from an undisturbed one.
    """
    with broken_network(kind) as (proxy, arm):
        dataset = open_dataset(url)
        assert (len(dataset.shards), dataset.blocks.num_rows) > (0, 0)
        arm()
        epoch = epoch_of(dataset, loader=TIGHT.model_copy(update={"read_threads": 2}))
        assert proxy.faults[kind] == _NUM_BROKEN, proxy.faults
    assert not epoch.lost(), kind
    assert epoch.reported() == plain.reported(), kind
    assert epoch.is_like(plain), kind
    return line_of(f"network: {kind} now and then", epoch)


def print_line(line: Line | None) -> None:
    """Print a line, or the head of the table."""
    columns = ("damage", "due", "handed out", "replaced", "reported", "webdataset's samples", "webdataset's error")
    cells = columns if line is None else [str(value) for value in vars(line).values()][: len(columns)]
    widths = (_NAME_WIDTH, *map(len, columns[1:]))
    print(" | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip(), flush=True)


def main() -> int:
    """Print the table; return 1 if anything was lost."""
    failures = []
    print_line(None)
    with tempfile.TemporaryDirectory(prefix="damage-") as name:
        folder = Path(name)
        sets = make(folder)
        cases: list[Callable[[], Line]] = [
            lambda number=number, damage=damage: suffer(damage, sets, folder / str(number))  # type: ignore[misc]
            for number, damage in enumerate(DAMAGES)
        ]
        cases.append(lambda: cached_damage(sets, folder))
        stack = start_stack(folder / "stack", cpus_per_node=[], bucket="damage")
        os.environ.update(stack.environment)
        try:
            upload(sets[0], "s3://damage/set")
            plain = epoch_of(str(sets[0]))
            for kind in NETWORK_KINDS:
                cases.append(lambda kind=kind: network_damage(kind, "s3://damage/set", plain))  # type: ignore[misc]
            for case in cases:
                try:
                    line = case()
                except AssertionError as error:
                    failures.append(str(error))
                else:
                    print_line(line)
                    if line.lost:
                        failures.append(f"{line.damage}: {line.lost} lost")
        finally:
            stop_stack(stack)
    for failure in failures:
        print(f"FAILED: {failure}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
