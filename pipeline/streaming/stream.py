"""From datasets to batches of decoded, augmented pictures, with exact resume on any number of ranks and workers."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeInt, PositiveInt

from pipeline.base.errors import ConfigError, CorruptShard, ResumeMismatch
from pipeline.base.records import Record
from pipeline.base.seeds import key128
from pipeline.dataset.dataset import SIDECAR_CACHE_BYTES, Address
from pipeline.image.transforms import Transform
from pipeline.streaming.loader.messages import BadSample, Done, ReadCounts, WindowRequest, WindowSpec, Work
from pipeline.streaming.loader.worker_pool import WorkerPool
from pipeline.streaming.mixture import Mixture
from pipeline.streaming.order import ORDER_VERSION, Order, OrderConfig, Piece, lanes_of_rank, samples_of
from pipeline.streaming.selection import Selection

logger = logging.getLogger(__name__)

_LEAST_DEFAULT_BUDGET_BYTES = 1 << 30
_NUM_SLOTS = 4  # batches: two lent to the caller, one finished, one being filled
WORKER_BYTES = 90_000_000  # of a loader process without pictures: growth of a rank by workers (benchmarks/stream.py)
_BAD_SAMPLES_GRACE = 16  # a choice: so many bad ones never stop a run, however short it is


class LoaderConfig(Record):
    """How batches are loaded; none of it changes what is in them.

    Attributes:
        num_workers: Processes of a rank that read and decode; 0 for a thread of its own process, and so is None, which
            leaves the choice to those who know the machine.
        budget_bytes: Memory of a rank for encoded pictures, finished batches and its worker processes; None for 1 GiB,
            or, where that is more, for what they need and its windows once again, to read ahead.
        read_threads: Concurrent reads of a worker.
        cache_folder: Folder on a local disk for blocks that were read, shared by all ranks of a node; None for none.
        cache_bytes: Its limit.
        max_bad_fraction: Share of the samples that may be replaced for damage before the stream stops.
    """

    num_workers: NonNegativeInt | None = None
    budget_bytes: PositiveInt | None = None
    read_threads: PositiveInt = 4
    cache_folder: str | None = None
    cache_bytes: PositiveInt = 100_000_000_000
    max_bad_fraction: float = Field(0.001, ge=0, le=1)


@dataclass(frozen=True)
class WeightedSelection:
    """One of the datasets that a stream mixes.

    Attributes:
        selection: What is read of it.
        weight: Its share of the samples, against the other sources' weights.
    """

    selection: Selection
    weight: float = 1.0


@dataclass(frozen=True)
class Batch:
    """A rank's part of a global batch.

    Attributes:
        images: uint8 RGB, shape (samples, px, px, 3), the caller's own to keep and to write to. Workers wrote it, and
            write there again when the array, its views and tensors of it are gone. While two batches are kept,
            further ones are copies.
        labels: Labels of each sample.
        places: Number of the source, epoch of the source counted from 0, shard and row of each sample: shape
            (samples, 4).
        bad: Samples that were due and were replaced by others, since they are damaged.
        sources: Names that the samples had in their sources, where a pass was asked for them; else none.
    """

    images: npt.NDArray[np.uint8]
    labels: tuple[tuple[int, ...], ...]
    places: npt.NDArray[np.int64]
    bad: tuple[BadSample, ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where each sample lies in its source."""
        return tuple(Address(shard, row) for shard, row in self.places[:, 2:].tolist())

    @property
    def epochs(self) -> tuple[int, ...]:
        """Epoch of each sample in its source, counted from 0."""
        return tuple(self.places[:, 1].tolist())


def warn_of(bad: BadSample) -> None:
    """Log a sample that was replaced."""
    logger.warning(
        "step %d: sample %d of %s is bad (%s: %s); sample %s took its place",
        *(bad.step, bad.row, bad.path, bad.reason, bad.detail, bad.substitute),
    )


class Stream:
    """An endless iterator over a rank's batches. The concatenation over ranks does not depend on their number.

    `state_dict` is the same on every rank, below 1 kB, and may be loaded on any number of ranks and loader workers.
    Workers start at the first batch. For one thread; close it.
    """

    def __init__(
        self,
        sources: Selection | Sequence[WeightedSelection],
        order: OrderConfig,
        transform: Transform,
        *,
        rank: int = 0,
        num_ranks: int = 1,
        loader: LoaderConfig | None = None,
        on_bad: Callable[[BadSample], None] = warn_of,
    ) -> None:
        """Prepare a stream; read nothing but the manifests.

        Args:
            sources: What is streamed; several datasets are mixed by weight.
            order: What decides the order.
            transform: From pictures to views.
            rank: This rank.
            num_ranks: All ranks.
            loader: How batches are loaded.
            on_bad: Called with each sample that was replaced.

        Raises:
            ConfigError: Lanes, batch, ranks, weights or budget do not fit.
        """
        self._sources = (WeightedSelection(sources),) if isinstance(sources, Selection) else tuple(sources)
        self._order = order
        self._transform = transform
        self._loader = loader or LoaderConfig()
        self._on_bad = on_bad
        self._lanes = lanes_of_rank(order.num_lanes, rank, num_ranks)
        self._samples_per_lane = order.samples_per_lane()
        self._mixture = Mixture(tuple(source.weight for source in self._sources), self._samples_per_lane)
        self._orders = [
            Order(source.selection.block_counts, _order_of(order, number))
            for number, source in enumerate(self._sources)
        ]
        self._side_px = _side_of(transform)
        self._picture_bytes, self._keeps_all = self._budget()
        self._pool: WorkerPool | None = None
        self._step = 0
        self._num_bad = 0
        self.counts = ReadCounts()
        self.wait_seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        started = time.perf_counter()
        try:
            if self._pool is None:
                self._pool = self._started()
            images, parts = self._pool.batch(self._step)
            self._count(parts)
        except BaseException:
            self.close()  # if the caller goes on, it gets the same step
            raise
        finally:
            self.wait_seconds += time.perf_counter() - started
        self._step += 1
        return Batch(
            images=images,
            labels=tuple(labels for part in parts for labels in part.labels),
            places=np.concatenate([part.places for part in parts]),
            bad=tuple(bad for part in parts for bad in part.bad),
        )

    @property
    def identity(self) -> str:
        """Digest of what is streamed: datasets with their versions, choices and weights."""
        parts = [(source.selection.identity, source.weight) for source in self._sources]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch handed out."""
        return {"step": self._step, "order": ORDER_VERSION, "data": self.identity} | self._order.model_dump()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the position of `state`, in constant time.

        Raises:
            ResumeMismatch: It was taken from another dataset version, selection, seed, batch or lane count.
        """
        for name, value in self.state_dict().items():
            if name != "step" and state.get(name) != value:
                raise ResumeMismatch(
                    f"the data stream to resume had {name} {state.get(name)!r}, this one has {value!r}; "
                    f"resume with the same data and settings or start a new run"
                )
        self.close()
        self._step = int(state["step"])
        self._num_bad = 0

    def close(self) -> None:
        """Stop the workers; batches finished ahead are dropped. The next batch starts them again."""
        pool, self._pool = self._pool, None
        if pool:
            pool.close()

    def _budget(self) -> tuple[int, bool]:
        """Return the bytes that the rank may hold of encoded pictures, and whether each worker can keep all of them.

        What is kept is read once, not once an epoch.

        Raises:
            ConfigError: The rank's budget does not hold its windows and batches.
        """
        batch_bytes = len(self._lanes) * self._samples_per_lane * self._side_px**2 * 3
        sidecars = sum(source.selection.reads_sidecars for source in self._sources) * SIDECAR_CACHE_BYTES
        fixed = _NUM_SLOTS * batch_bytes + self._num_workers * WORKER_BYTES + max(1, self._num_workers) * sidecars
        windows = len(self._lanes) * sum(self._window_bytes)
        kept = max(1, self._num_workers) * sum(_kept_bytes(source.selection) for source in self._sources)
        needed = min(windows, kept) + fixed
        budget = self._loader.budget_bytes or max(_LEAST_DEFAULT_BUDGET_BYTES, needed + min(windows, kept))
        if needed > budget:
            raise ConfigError(
                f"a rank of {len(self._lanes)} lanes needs {needed / 1e6:,.1f} MB for its shuffle windows, batches, "
                f"sidecars and {self._num_workers} worker processes, its budget is {budget / 1e6:,.1f} MB; raise "
                f"budget_bytes, or lower window_blocks ({self._order.window_blocks}) or the lanes of a rank"
            )
        return budget - fixed, kept + fixed <= budget

    @property
    def _window_bytes(self) -> tuple[int, ...]:
        return tuple(self._order.window_blocks * source.selection.max_block_bytes for source in self._sources)

    @property
    def _num_workers(self) -> int:
        return min(self._loader.num_workers or 0, len(self._lanes))

    def _started(self) -> WorkerPool:
        num_workers = max(1, self._num_workers)
        works = []
        for number in range(num_workers):
            mine = lanes_of_rank(len(self._lanes), number, num_workers)
            works.append(
                Work(
                    datasets=tuple(source.selection.dataset for source in self._sources),
                    mixture=self._mixture,
                    seed=self._order.seed,
                    lanes=self._lanes[mine.start : mine.stop],
                    samples_per_lane=self._samples_per_lane,
                    first_step=self._step,
                    slots=tuple(range(_NUM_SLOTS)),
                    transform=self._transform,
                    side_px=self._side_px,
                    num_slots=_NUM_SLOTS,
                    first_place=mine.start * self._samples_per_lane,
                    batch_size=len(self._lanes) * self._samples_per_lane,
                    budget_bytes=self._picture_bytes // num_workers
                    if self._keeps_all
                    else self._picture_bytes * len(mine) // len(self._lanes),
                    window_bytes=self._window_bytes,
                    keep_all=self._keeps_all,
                    read_threads=self._loader.read_threads,
                    cache=(self._loader.cache_folder, self._loader.cache_bytes) if self._loader.cache_folder else None,
                )
            )
        return WorkerPool(works, self._window, in_processes=self._num_workers > 0)

    def _window(self, request: WindowRequest) -> WindowSpec:
        window = self._orders[request.source].window(request.lane, request.position)
        places = samples_of(window, window.start, len(window.permutation)).astype(np.int32)
        selection = self._sources[request.source].selection
        pieces = window.pieces
        if self._keeps_all:
            # Whole blocks, since these stay: the pieces at the borders of lanes are others in every epoch.
            pieces = tuple(Piece(piece.block, 0, int(selection.block_counts[piece.block])) for piece in pieces)
        places[:, 1] -= np.array([piece.first for piece in pieces], np.int32)[places[:, 0]]
        return WindowSpec(
            source=request.source,
            lane=request.lane,
            epoch=window.epoch,
            start=window.start,
            position=request.position,
            spans=tuple(selection.span(piece) for piece in pieces),
            places=places,
        )

    def _count(self, parts: Sequence[Done]) -> None:
        for part in parts:
            self.counts.add(part.counts)
            for bad in part.bad:
                self._num_bad += 1
                self._on_bad(bad)
        last = next((bad for part in reversed(parts) for bad in reversed(part.bad)), None)
        limit = _BAD_SAMPLES_GRACE + self._loader.max_bad_fraction * self.counts.samples
        if last and self._num_bad > limit:
            raise CorruptShard(
                f"{self._num_bad} of {self.counts.samples:,} samples were bad, the last in {last.path} ({last.reason}: "
                f"{last.detail}); run `pipeline verify` and `pipeline repair` on the dataset, or raise "
                f"max_bad_fraction ({self._loader.max_bad_fraction})"
            )


def _order_of(order: OrderConfig, source: int) -> OrderConfig:
    """Return the order with the source's own seed: sets of equal blocks must not be read in the same order."""
    return order.model_copy(update={"seed": key128(order.seed, "source", source)}) if source else order


def _kept_bytes(selection: Selection) -> int:
    """Return what all selected samples take in memory, at most: blocks of which half is wanted are held whole."""
    return selection.num_bytes * (1 if selection.num_samples == selection.dataset.version.num_samples else 2)


def _side_of(transform: Transform) -> int:
    placement = transform(64, 64, Random(0))
    return placement.side_px if placement.crop is None else placement.crop[2] - placement.crop[0]
