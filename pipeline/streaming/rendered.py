"""Encoded pictures to batches of pixels, drawn by threads ahead of their use: for passes that go over data once.

Decoding and resizing leave Python's lock, so that threads of one process do what loader processes do for training.
"""

import itertools
import queue
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from random import Random
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.base.errors import BadImage
from pipeline.image.render import render
from pipeline.image.transforms import Transform

T = TypeVar("T")
_BATCHES_AHEAD = 3  # one in use by the consumer, one finished, one being drawn
_LOOK_SECONDS = 0.1  # between two looks whether the consumer has gone


class Picture(NamedTuple, Generic[T]):
    """An encoded picture.

    Attributes:
        about: What the caller knows it by.
        data: The encoded picture, or why it could not be had.
        is_trusted: See render.
    """

    about: T
    data: bytes | memoryview | BadImage
    is_trusted: bool = False


@dataclass(frozen=True)
class RenderedBatch(Generic[T]):
    """Pictures and their pixels.

    Attributes:
        abouts: One for each picture.
        images: uint8, shape (pictures, side, side, 3); zeros where a picture is bad.
        errors: Why a picture is bad, by its place.
    """

    abouts: list[T]
    images: npt.NDArray[np.uint8]
    errors: dict[int, BadImage]


class _Drawing(NamedTuple, Generic[T]):
    abouts: list[T]
    images: npt.NDArray[np.uint8]
    parts: "list[Future[dict[int, BadImage]]]"


def rendered(
    pictures: Generator[Picture[T]], transform: Transform, side_px: int, batch_size: int, num_threads: int = 1
) -> Iterator[RenderedBatch[T]]:
    """Yield the pictures in their order, as batches of which the last may be short.

    Args:
        pictures: Read in a thread, a few batches ahead.
        transform: From pictures to views; gets the same randomness for each.
        side_px: Of the views.
        batch_size: Most pictures of a batch.
        num_threads: That decode.

    Raises:
        BitError: As the pictures raise when they are read.
    """
    with ThreadPoolExecutor(num_threads, thread_name_prefix="render") as pool:
        ahead: _Ahead[T] = _Ahead(pool, num_threads, transform, side_px)
        reader = threading.Thread(target=ahead.read, args=(pictures, batch_size), name="render-reader")
        reader.start()
        try:
            while (found := ahead.queue.get()) is not None:
                if isinstance(found, Exception):
                    raise found
                errors = {place: error for part in found.parts for place, error in part.result().items()}
                yield RenderedBatch(found.abouts, found.images, errors)
        finally:
            ahead.is_over.set()
            reader.join()
            pool.shutdown(cancel_futures=True)


class _Ahead(Generic[T]):
    """The batches that are being read and drawn; in the queue the end is None, and what went wrong an exception."""

    def __init__(self, pool: ThreadPoolExecutor, num_threads: int, transform: Transform, side_px: int) -> None:
        self._pool = pool
        self._num_threads = num_threads
        self._transform = transform
        self._side_px = side_px
        self.queue: queue.Queue[_Drawing[T] | Exception | None] = queue.Queue(_BATCHES_AHEAD)
        self.is_over = threading.Event()

    def read(self, pictures: Generator[Picture[T]], batch_size: int) -> None:
        """Fill the queue until the pictures end or the consumer has gone."""
        try:
            with closing(pictures):
                while batch := list(itertools.islice(pictures, batch_size)):
                    if not self._put(self._drawing(batch)):
                        return
            self._put(None)
        except Exception as error:  # noqa: BLE001 - raised again by the consumer
            self._put(error)

    def _put(self, found: "_Drawing[T] | Exception | None") -> bool:
        while not self.is_over.is_set():
            try:
                self.queue.put(found, timeout=_LOOK_SECONDS)
            except queue.Full:
                continue
            return True
        return False

    def _drawing(self, batch: list[Picture[T]]) -> _Drawing[T]:
        images = np.zeros((len(batch), self._side_px, self._side_px, 3), np.uint8)
        parts = [
            self._pool.submit(self._render, batch, range(first, len(batch), self._num_threads), images)
            for first in range(min(self._num_threads, len(batch)))
        ]
        return _Drawing([picture.about for picture in batch], images, parts)

    def _render(self, batch: list[Picture[T]], places: range, images: npt.NDArray[np.uint8]) -> dict[int, BadImage]:
        errors: dict[int, BadImage] = {}
        for place in places:
            picture = batch[place]
            try:
                if isinstance(picture.data, BadImage):
                    raise picture.data
                render(bytes(picture.data), self._transform, Random(0), images[place], is_trusted=picture.is_trusted)
            except BadImage as error:
                images[place] = 0
                errors[place] = error
        return errors
