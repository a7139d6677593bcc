"""The messages between a rank and its loader workers. Plain data: it crosses process borders."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.dataset.dataset import Dataset
from pipeline.image.transforms import Transform
from pipeline.streaming.mixture import Mixture
from pipeline.streaming.selection import Span

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Work:
    """What a worker does, from its first message to its end.

    Attributes:
        datasets: Of the sources, in order.
        mixture: Which source each lane position is drawn from.
        seed: Key of the augmentation.
        lanes: Lanes of this worker.
        samples_per_lane: Samples of each lane in a batch.
        first_step: Where it begins.
        slots: Places in the shared memory of the first batches; those of later ones are granted.
        transform: From pictures to views.
        side_px: Of the views.
        num_slots: Batches that the shared memory holds.
        first_place: Place of the worker's first sample in the rank's batch.
        batch_size: Samples of the rank's batch.
        budget_bytes: For encoded pictures in this worker.
        window_bytes: Of each source, most bytes of a lane's window: what each lane may hold of the budget in any case.
        keep_all: Whether everything that was read stays in memory, since it fits.
        read_threads: Concurrent reads.
        cache: Folder and byte limit of the block cache on disk; None for none.
    """

    datasets: tuple[Dataset, ...]
    mixture: Mixture
    seed: int
    lanes: range
    samples_per_lane: int
    first_step: int
    slots: tuple[int, ...]
    transform: Transform
    side_px: int
    num_slots: int
    first_place: int
    batch_size: int
    budget_bytes: int
    window_bytes: tuple[int, ...]
    keep_all: bool
    read_threads: int
    cache: tuple[str, int] | None


@dataclass(frozen=True)
class WindowRequest:
    """Worker to rank: which window holds this position of a lane?"""

    source: int
    lane: int
    position: int


@dataclass(frozen=True)
class WindowSpec:
    """Rank to worker: a window of one source's lane.

    Attributes:
        source: Number of the source.
        lane: The lane.
        epoch: Of the source, counted from 0.
        start: Lane position of its first sample, over all epochs.
        position: Lane position that was asked for; those before it are not wanted.
        spans: Pieces that it mixes.
        places: For each lane position: span, and place among the span's wanted samples. Shape (samples, 2).
    """

    source: int
    lane: int
    epoch: int
    start: int
    position: int
    spans: tuple[Span, ...]
    places: npt.NDArray[np.int32]


@dataclass(frozen=True)
class SlotGranted:
    """Rank to worker: the first batch that has no slot yet goes to this one."""

    slot: int


@dataclass(frozen=True)
class BadSample:
    """A sample that was due and could not be used.

    Attributes:
        step: Batch it was due in.
        source: Number of the source.
        shard: Of the source's dataset.
        path: Of the shard's tar.
        row: In the shard.
        epoch: Of the source.
        reason: `missing`, `truncated`, `checksum` or the reason of a picture that does not decode.
        detail: For people.
        substitute: Shard and row of the sample that took its place.
    """

    step: int
    source: int
    shard: int
    path: str
    row: int
    epoch: int
    reason: str
    detail: str
    substitute: tuple[int, int]


@dataclass
class ReadCounts:
    """What a loader did and where its time went; sums.

    Attributes:
        samples: Pictures decoded.
        bytes_read: Bytes that came from storage.
        reads: Range reads answered.
        retries: Reads repeated after an error.
        hedges: Reads started twice because they were slow.
        cache_hits: Blocks found on disk.
        read_seconds: All reads together; more than the clock's where they overlap.
        decode_seconds: Decoding and resizing.
        wait_read_seconds: The decoder waited for encoded pictures.
    """

    samples: int = 0
    bytes_read: int = 0
    reads: int = 0
    retries: int = 0
    hedges: int = 0
    cache_hits: int = 0
    read_seconds: float = 0.0
    decode_seconds: float = 0.0
    wait_read_seconds: float = 0.0

    def add(self, other: "ReadCounts") -> None:
        """Add another's counts to these."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def since(self, before: "ReadCounts") -> "ReadCounts":
        """Return what was counted after `before`, an earlier state of these counts."""
        return ReadCounts(**{name: value - getattr(before, name) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Done:
    """Worker to rank: this worker's part of a batch lies in its slot.

    Attributes:
        step: Of the batch.
        places: Source, epoch, shard and row of each sample, shape (samples, 4).
        labels: Of each sample.
        bad: Samples that others took the place of.
        counts: Since the message before.
    """

    step: int
    places: Ints
    labels: tuple[tuple[int, ...], ...]
    bad: tuple[BadSample, ...] = ()
    counts: ReadCounts = field(default_factory=ReadCounts)


@dataclass(frozen=True)
class Failed:
    """Worker to rank: this error ended the worker."""

    error: BaseException


Message = Any  # one of the above
