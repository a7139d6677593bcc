"""From a dataset to batches of decoded, augmented pictures, with exact resume on any number of ranks."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.augment import Transform
from pipeline.dataset import Address
from pipeline.errors import BadImage, CorruptShard, ResumeMismatch
from pipeline.image import decode
from pipeline.order import Order, OrderConfig, Window, even_pieces, lanes_of_rank, samples_of
from pipeline.seeds import rng
from pipeline.view import Sample, View

_FETCH_THREADS = 8  # concurrent reads of a rank: 8 MiB each within 50 ms make 1.3 GB/s
_BATCHES_AHEAD = 2  # one being decoded while one waits: hides decoding behind the step, holds two batches


@dataclass(frozen=True)
class Batch:
    """A rank's part of a global batch.

    Attributes:
        images: uint8 RGB, shape (samples, px, px, 3).
        labels: Labels of each sample.
        addresses: Where each sample lies.
        epochs: Epoch of each sample, counted from 0.
    """

    images: npt.NDArray[np.uint8]
    labels: tuple[tuple[int, ...], ...]
    addresses: tuple[Address, ...]
    epochs: tuple[int, ...]


@dataclass
class _LaneCursor:
    """The window of a lane that is in memory."""

    window: Window
    pieces: list[list[Sample]]


class Stream:
    """An endless iterator over a rank's batches. The concatenation over ranks does not depend on their number.

    `state_dict` is the same on every rank, below 1 kB, and may be loaded on any number of ranks. For one thread.
    """

    def __init__(
        self,
        view: View,
        config: OrderConfig,
        transform: Transform,
        *,
        rank: int = 0,
        num_ranks: int = 1,
        decode_threads: int = 1,
    ) -> None:
        self._view = view
        self._config = config
        self._transform = transform
        self._lanes = lanes_of_rank(config.num_lanes, rank, num_ranks)
        self._samples_per_lane = config.samples_per_lane()
        self._order = Order(view.block_counts, config)
        self._cursors: dict[int, _LaneCursor] = {}
        self._decoders = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")
        self._fetchers = ThreadPoolExecutor(_FETCH_THREADS, thread_name_prefix="fetch")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read")
        self._ahead: deque[Future[Batch]] = deque()
        self._step = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        while len(self._ahead) < _BATCHES_AHEAD:
            self._ahead.append(self._reader.submit(self._make, self._step + len(self._ahead)))
        try:
            batch = self._ahead[0].result()
        except BaseException:
            self._drop_ahead()  # the same step is made again if the caller goes on
            raise
        self._ahead.popleft()
        self._step += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Gives the position after the last batch handed out."""
        return {"step": self._step, "view": self._view.identity} | self._config.model_dump()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to the position of `state`, in constant time.

        Raises:
            ResumeMismatch: It was taken from another dataset version, selection, seed, batch or lane count.
        """
        mine = self.state_dict()
        for name, value in mine.items():
            if name != "step" and state.get(name) != value:
                raise ResumeMismatch(
                    f"the data stream to resume had {name} {state.get(name)!r}, this one has {value!r}; "
                    f"resume with the same data and settings or start a new run"
                )
        self._drop_ahead()
        self._step = int(state["step"])

    def close(self) -> None:
        """Stops the threads; batches read ahead are dropped."""
        self._drop_ahead()
        self._reader.shutdown(cancel_futures=True)
        self._fetchers.shutdown(cancel_futures=True)
        self._decoders.shutdown(cancel_futures=True)

    def _drop_ahead(self) -> None:
        for future in self._ahead:
            future.cancel()
        for future in self._ahead:
            if not future.cancelled():
                future.exception()  # wait: the cursors belong to the reader while it runs
        self._ahead.clear()

    def _make(self, step: int) -> Batch:
        # Lanes are read side by side: the windows of many lanes end in the same batch.
        position = step * self._samples_per_lane
        per_lane = self._fetchers.map(lambda lane: list(self._lane_samples(lane, position)), self._lanes)
        chosen = [pair for samples in per_lane for pair in samples]
        images = list(self._decoders.map(self._decode, chosen))
        return Batch(
            images=np.stack(images),
            labels=tuple(sample.labels for _, sample in chosen),
            addresses=tuple(sample.address for _, sample in chosen),
            epochs=tuple(epoch for epoch, _ in chosen),
        )

    def _lane_samples(self, lane: int, position: int) -> Iterator[tuple[int, Sample]]:
        stop = position + self._samples_per_lane
        while position < stop:
            cursor = self._cursors.get(lane)
            if cursor is None or not cursor.window.start <= position < cursor.window.end:
                cursor = self._load(lane, position)
            count = min(stop, cursor.window.end) - position
            for index, sample in samples_of(cursor.window, position, count).tolist():
                yield cursor.window.epoch, cursor.pieces[index][sample - cursor.window.pieces[index].first]
            position += count

    def _load(self, lane: int, position: int) -> _LaneCursor:
        self._cursors.pop(lane, None)  # free the old window before the new one is read
        window = self._order.window(lane, position)
        cursor = _LaneCursor(window, [self._view.read_piece(piece) for piece in window.pieces])
        self._cursors[lane] = cursor
        return cursor

    def _decode(self, chosen: tuple[int, Sample]) -> npt.NDArray[np.uint8]:
        epoch, sample = chosen
        generator = rng(self._config.seed, "augment", epoch, sample.address.shard, sample.address.row)
        return self._transform(decode_sample(self._view, sample), generator)


def decode_sample(view: View, sample: Sample) -> npt.NDArray[np.uint8]:
    """Gives a sample's pixels, shape (height, width, 3).

    Raises:
        CorruptShard: It does not decode, although it did when it was packed.
    """
    try:
        return decode(sample.image)
    except BadImage as error:
        raise CorruptShard(
            f"{view.dataset.store.url}, shard {sample.address.shard}, sample {sample.address.row} does not decode "
            f"({error}); run `pipeline verify --level decode` on the dataset"
        ) from error


def one_pass(
    view: View, transform: Transform, batch_size: int, *, rank: int = 0, num_ranks: int = 1
) -> Iterator[Batch]:
    """Gives a rank's share of every sample exactly once, in dataset order, for evaluation; the last batch is short."""
    generator = rng(0, "evaluation")
    waiting: list[Sample] = []
    for piece in even_pieces(view.block_counts, rank, num_ranks):
        waiting += view.read_piece(piece)
        while len(waiting) >= batch_size:
            yield _evaluation_batch(view, transform, generator, waiting[:batch_size])
            del waiting[:batch_size]
    if waiting:
        yield _evaluation_batch(view, transform, generator, waiting)


def _evaluation_batch(view: View, transform: Transform, generator: np.random.Generator, samples: list[Sample]) -> Batch:
    return Batch(
        images=np.stack([transform(decode_sample(view, sample), generator) for sample in samples]),
        labels=tuple(sample.labels for sample in samples),
        addresses=tuple(sample.address for sample in samples),
        epochs=(0,) * len(samples),
    )
