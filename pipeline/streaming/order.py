"""The order of samples: a pure function of (block sizes, seed, lanes, window, position).

Each epoch the blocks are permuted and laid end to end; the line is dealt to `num_lanes` lanes as contiguous runs of
equal length (a block on a border is split between two lanes). Inside a lane, windows of
`window_blocks` pieces are shuffled sample by sample. The global batch at step t takes batch_size / num_lanes samples
of every lane, at lane positions [t * batch_size / num_lanes, (t + 1) * ...).

So the global batch depends on nothing but (blocks, config, t): any number of ranks up to the number of lanes sees the
same batches, and a position is reached by two binary searches in the epoch's line. Where the lanes do not divide an
epoch, its spare samples go to the lanes in turn, so lanes never differ by more than one sample however many epochs
pass, and no epoch has a tail to drop. The trade-off: near an epoch's end a batch may hold samples of two epochs.

Lanes run at the same pace, so windows of equal size would end, and be read anew, in many lanes within a few steps, with
little to read in between. Therefore the first window of lane l in an epoch holds only 1 + (l mod window_blocks) pieces,
which spreads the ends of all later ones. Its price is that these first windows are shuffled among fewer blocks. Where
an epoch begins, all lanes still start a window together.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock

import numpy as np
import numpy.typing as npt
from pydantic import PositiveInt

from pipeline.base.errors import ConfigError
from pipeline.base.records import Record
from pipeline.base.seeds import rng

Ints = npt.NDArray[np.int64]
ORDER_VERSION = "lanes/2"  # of the rules in this module: another order must not be taken for a resumed one
_PIECES_AT_ONCE = 4096


class OrderConfig(Record):
    """What decides the order of samples, besides the dataset.

    Attributes:
        seed: Key of every random decision.
        batch_size: Samples of a global batch; a multiple of `num_lanes`.
        num_lanes: Independent lines of samples; the most ranks that can share the work, now and after any resize.
        window_blocks: Pieces shuffled together in a lane. A rank holds lanes x window x block bytes.
    """

    seed: int = 0
    batch_size: PositiveInt
    num_lanes: PositiveInt = 16
    window_blocks: PositiveInt = 4

    def samples_per_lane(self) -> int:
        """Return the samples that one lane adds to each global batch.

        Raises:
            ConfigError: The batch is not a multiple of the lanes.
        """
        if self.batch_size % self.num_lanes:
            raise ConfigError(
                f"a batch of {self.batch_size} is not a multiple of {self.num_lanes} lanes; change one of them"
            )
        return self.batch_size // self.num_lanes


def lanes_of_rank(num_lanes: int, rank: int, num_ranks: int) -> range:
    """Return the lanes that a rank reads: neighbours, at least one, and no rank has over one more than another.

    The global batch is the same for every number of ranks. Where it does not divide the lanes, the ranks' parts of the
    batch differ by one lane's samples, so a mean over the batch (a loss, a gradient) is the ranks' means weighted by
    their share `len(lanes_of_rank(...)) / num_lanes`, not their plain mean.

    Raises:
        ConfigError: There are more ranks than lanes, or there is no such rank.
    """
    if not 0 <= rank < num_ranks:
        raise ConfigError(f"rank {rank} is not one of {num_ranks}")
    if num_ranks > num_lanes:
        raise ConfigError(
            f"{num_ranks} workers cannot share {num_lanes} lanes, each needs one: use at most {num_lanes} workers, or "
            f"start a new run with num_lanes of {num_ranks} or more"
        )
    return range(num_lanes * rank // num_ranks, num_lanes * (rank + 1) // num_ranks)


@dataclass(frozen=True)
class Piece:
    """Samples [first, first + count) of a block; at least one."""

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
    """The order over blocks of `block_counts` samples, shape (blocks,), integers; a block may be empty.

    Safe to share between threads. It holds `block_counts`, and 4 bytes a block and 12 in each of two epochs besides.

    Attributes:
        num_samples: Samples of an epoch.
        config: As given.

    Raises:
        ConfigError: There is no sample.
    """

    def __init__(self, block_counts: Ints, config: OrderConfig) -> None:
        self.num_samples = int(block_counts.sum())
        if self.num_samples < 1:
            raise ConfigError("the dataset (or the chosen part of it) has no sample")
        self.config = config
        self._block_counts = block_counts
        # shape (blocks with samples,); 2^31 blocks of 8 MiB are more than there is
        self._filled = np.flatnonzero(block_counts).astype(np.int32)
        # Two, because a batch at an epoch's border draws from both sides. The lock lets one thread lay out an epoch
        # while the others wait, instead of each laying out its own.
        self._line = lru_cache(maxsize=2)(self._lay_out)
        self._line_lock = Lock()

    def window(self, lane: int, position: int) -> Window:
        """Return the window that holds a lane position, in O(log blocks + samples of the window).

        The first window of an epoch takes the time to permute all blocks on top.

        Args:
            lane: In [0, num_lanes).
            position: In samples of the lane over all epochs, from 0.
        """
        # Samples are dealt to the lanes in turn: this one is the position * num_lanes + lane -th, over all epochs.
        epoch = (position * self.config.num_lanes + lane) // self.num_samples
        line_start, lane_start = self._starts(lane, epoch)
        line_stop, _ = self._starts(lane + 1, epoch)
        with self._line_lock:
            blocks, ends = self._line(epoch)
        # Places are indices into the epoch's line of blocks; the lane's pieces lie at [first, last).
        first = int(np.searchsorted(ends, line_start, side="right"))
        last = int(np.searchsorted(ends, line_stop, side="left")) + 1
        place = int(np.searchsorted(ends, line_start + position - lane_start, side="right"))
        number, begin, end = self._window_at(lane, place - first)
        chosen = slice(first + begin, min(first + end, last))
        pieces = _cut(blocks[chosen], self._block_counts[blocks[chosen]], ends[chosen], line_start, line_stop)
        before = int(ends[first + begin - 1]) - line_start if begin else 0
        generator = rng(self.config.seed, "window", epoch, lane, number)
        return Window(
            epoch=epoch,
            start=lane_start + before,
            pieces=tuple(pieces),
            permutation=generator.permutation(sum(piece.count for piece in pieces)),
        )

    def _lay_out(self, epoch: int) -> tuple[npt.NDArray[np.int32], Ints]:
        """Return the epoch's line: its blocks and the line position after each, both of shape (filled blocks,)."""
        blocks = rng(self.config.seed, "blocks", epoch).permutation(self._filled)
        return blocks, np.cumsum(self._block_counts[blocks], dtype=np.int64)

    def _starts(self, lane: int, epoch: int) -> tuple[int, int]:
        """Return where a lane starts in the epoch's line, and the lane's position there (its samples before).

        Before an epoch, every lane was dealt `each` samples and the first `spare` lanes one more. What the lanes below
        `lane` are dealt in the epoch is the difference of what they were dealt before the next one and before this one.
        """
        each, spare = divmod(epoch * self.num_samples, self.config.num_lanes)
        next_each, next_spare = divmod((epoch + 1) * self.num_samples, self.config.num_lanes)
        line_start = (next_each - each) * lane + min(next_spare, lane) - min(spare, lane)
        return line_start, each + (lane < spare)

    def _window_at(self, lane: int, index: int) -> tuple[int, int, int]:
        """Return the number and the pieces [begin, end) of the window with the lane's `index`-th piece of the epoch."""
        width = self.config.window_blocks
        head = 1 + lane % width
        number = (index - head) // width + 1
        end = head + number * width
        return number, max(0, end - width), end


def _cut(blocks: npt.NDArray[np.int32], counts: Ints, ends: Ints, start: int, stop: int) -> list[Piece]:
    """Return what [start, stop) of a line of blocks holds, without empty pieces; the arrays have shape (blocks,)."""
    starts = ends - counts
    firsts = np.maximum(start, starts)
    lasts = np.minimum(stop, ends)
    held = firsts < lasts
    columns = (blocks, firsts - starts, lasts - firsts)
    return [Piece(*row) for row in zip(*(column[held].tolist() for column in columns), strict=True)]


def samples_of(window: Window, position: int, count: int) -> Ints:
    """Return the samples at lane positions [position, position + count) of a window, all within it.

    Returns:
        Shape (count, 2): index of the piece in the window, and of the sample in its block.
    """
    places = window.permutation[position - window.start : position - window.start + count]
    counts = np.array([piece.count for piece in window.pieces])
    firsts = np.array([piece.first for piece in window.pieces])
    ends = np.cumsum(counts)
    index = np.searchsorted(ends, places, side="right")
    return np.stack([index, places - (ends - counts)[index] + firsts[index]], axis=1)


def even_pieces(block_counts: Ints, rank: int, num_ranks: int) -> Iterator[Piece]:
    """Yield a rank's share of one pass in dataset order: contiguous, sizes differ by at most one sample.

    Args:
        block_counts: Samples of each block, shape (blocks,), integers; a block may be empty.
        rank: In [0, num_ranks).
        num_ranks: At least 1.
    """
    ends = np.cumsum(block_counts, dtype=np.int64)
    total = int(block_counts.sum())
    start, stop = total * rank // num_ranks, total * (rank + 1) // num_ranks
    first = int(np.searchsorted(ends, start, side="right"))
    last = int(np.searchsorted(ends, stop, side="left")) + 1
    for begin in range(first, min(last, len(ends)), _PIECES_AT_ONCE):
        blocks = np.arange(begin, min(begin + _PIECES_AT_ONCE, last, len(ends)), dtype=np.int32)
        yield from _cut(blocks, block_counts[blocks], ends[blocks], start, stop)
