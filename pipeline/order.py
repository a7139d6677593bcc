"""The order of samples: a pure function of (block sizes, seed, lanes, window, position).

Each epoch the blocks are permuted and laid end to end; the line is dealt to `num_lanes` lanes as contiguous runs of
equal length (a block on a border is split between two lanes, its bytes still read once). Inside a lane, windows of
`window_blocks` pieces are shuffled sample by sample. The global batch at step t takes batch_size / num_lanes samples
of every lane, at lane positions [t * batch_size / num_lanes, (t + 1) * ...).

So the global batch depends on nothing but (blocks, config, t): any number of ranks that divides the lanes sees the
same batches, a position is reached in O(1), and ranks are even by construction. Where the lanes do not divide an
epoch, its spare samples go to the lanes in turn, so lanes never differ by more than one sample however many epochs
pass, and no epoch has a tail to drop. The trade-off: near an epoch's end a batch may hold samples of two epochs.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from pydantic import PositiveInt

from pipeline.errors import ConfigError
from pipeline.records import Record
from pipeline.seeds import rng

Ints = npt.NDArray[np.int64]


class OrderConfig(Record):
    """What decides the order of samples, besides the dataset.

    Attributes:
        seed: Key of every random decision.
        batch_size: Samples of a global batch; a multiple of `num_lanes`.
        num_lanes: Independent lines of samples; the number of ranks must divide it, now and after any resize.
        window_blocks: Pieces shuffled together in a lane. A rank holds lanes x window x block bytes.
    """

    seed: int = 0
    batch_size: PositiveInt
    num_lanes: PositiveInt = 16
    window_blocks: PositiveInt = 4

    def samples_per_lane(self) -> int:
        """Gives the samples that one lane adds to each global batch.

        Raises:
            ConfigError: The batch is not a multiple of the lanes.
        """
        if self.batch_size % self.num_lanes:
            raise ConfigError(
                f"a batch of {self.batch_size} is not a multiple of {self.num_lanes} lanes; change one of them"
            )
        return self.batch_size // self.num_lanes


def lanes_of_rank(num_lanes: int, rank: int, num_ranks: int) -> range:
    """Gives the lanes that a rank reads.

    Raises:
        ConfigError: The ranks do not divide the lanes, or there is no such rank.
    """
    if not 0 <= rank < num_ranks:
        raise ConfigError(f"rank {rank} is not one of {num_ranks}")
    if num_lanes % num_ranks:
        raise ConfigError(f"{num_ranks} workers do not divide {num_lanes} lanes; use a divisor of it as worker count")
    lanes_per_rank = num_lanes // num_ranks
    return range(rank * lanes_per_rank, (rank + 1) * lanes_per_rank)


@dataclass(frozen=True)
class Piece:
    """Samples [first, first + count) of a block."""

    block: int
    first: int
    count: int


@dataclass(frozen=True)
class Window:
    """Pieces of one lane that are shuffled together.

    Attributes:
        epoch: Counted from 0.
        start: Lane position of the window's first sample, over all epochs.
        pieces: What it holds.
        permutation: Place among the pieces' samples of each lane position, shape (samples,).
    """

    epoch: int
    start: int
    pieces: tuple[Piece, ...]
    permutation: Ints

    @property
    def end(self) -> int:
        """Lane position after the window's last sample."""
        return self.start + len(self.permutation)


class Order:
    """The order over blocks of `block_counts` samples, shape (blocks,)."""

    def __init__(self, block_counts: Ints, config: OrderConfig) -> None:
        self.num_samples = int(block_counts.sum())
        if self.num_samples < 1:
            raise ConfigError("the dataset (or the chosen part of it) has no sample")
        self.config = config
        self._block_counts = block_counts
        self._epoch = lru_cache(maxsize=2)(self._permuted_blocks)

    def window(self, lane: int, position: int) -> Window:
        """Gives the window that holds a lane position (counted over all epochs)."""
        epoch = self._epoch_of(lane, position)
        epoch_start = self._lane_start(lane, epoch)
        pieces = self._lane_pieces(lane, epoch)
        # ends has shape (pieces,): lane position, within the epoch, after each piece
        ends = np.cumsum([piece.count for piece in pieces])
        width = self.config.window_blocks
        piece_index = int(np.searchsorted(ends, position - epoch_start, side="right"))
        number = piece_index // width
        chosen = pieces[number * width : (number + 1) * width]
        before = int(ends[number * width - 1]) if number else 0
        generator = rng(self.config.seed, "window", epoch, lane, number)
        return Window(
            epoch=epoch,
            start=epoch_start + before,
            pieces=tuple(chosen),
            permutation=generator.permutation(sum(piece.count for piece in chosen)),
        )

    def _permuted_blocks(self, epoch: int) -> tuple[Ints, Ints]:
        """Gives the epoch's block order and the line position after each, both of shape (blocks,)."""
        order = rng(self.config.seed, "blocks", epoch).permutation(len(self._block_counts))
        return order, np.cumsum(self._block_counts[order])

    def _lane_start(self, lane: int, epoch: int) -> int:
        """Gives the lane's samples before `epoch`: spare samples are dealt to the lanes in turn."""
        num_lanes = self.config.num_lanes
        each, spare = divmod(self.num_samples, num_lanes)
        return epoch * each + (epoch * spare + num_lanes - 1 - lane) // num_lanes

    def _epoch_of(self, lane: int, position: int) -> int:
        epoch = max(0, position * self.config.num_lanes // self.num_samples - 1)
        while self._lane_start(lane, epoch + 1) <= position:
            epoch += 1
        return epoch

    def _lane_pieces(self, lane: int, epoch: int) -> list[Piece]:
        order, line_ends = self._epoch(epoch)
        start = sum(self._lane_length(other, epoch) for other in range(lane))
        stop = start + self._lane_length(lane, epoch)
        pieces = []
        place = int(np.searchsorted(line_ends, start, side="right"))
        while start < stop:
            block = int(order[place])
            block_start = int(line_ends[place]) - int(self._block_counts[block])
            piece_stop = min(stop, int(line_ends[place]))
            if piece_stop > start:
                pieces.append(Piece(block, start - block_start, piece_stop - start))
            start = piece_stop
            place += 1
        return pieces

    def _lane_length(self, lane: int, epoch: int) -> int:
        return self._lane_start(lane, epoch + 1) - self._lane_start(lane, epoch)


def samples_of(window: Window, position: int, count: int) -> Ints:
    """Gives the samples at lane positions [position, position + count) of a window.

    Returns:
        Shape (count, 2): index of the piece in the window, and of the sample in its block.
    """
    places = window.permutation[position - window.start : position - window.start + count]
    counts = np.array([piece.count for piece in window.pieces])
    firsts = np.array([piece.first for piece in window.pieces])
    ends = np.cumsum(counts)
    index = np.searchsorted(ends, places, side="right")
    return np.stack([index, places - (ends - counts)[index] + firsts[index]], axis=1)


def even_pieces(block_counts: Ints, rank: int, num_ranks: int) -> list[Piece]:
    """Gives a rank's share of one pass in dataset order: contiguous, sizes differ by at most one sample."""
    total = int(block_counts.sum())
    start, stop = total * rank // num_ranks, total * (rank + 1) // num_ranks
    pieces = []
    block_start = 0
    for block, count in enumerate(block_counts.tolist()):
        first, last = max(start, block_start), min(stop, block_start + count)
        if first < last:
            pieces.append(Piece(block, first - block_start, last - first))
        block_start += count
    return pieces
