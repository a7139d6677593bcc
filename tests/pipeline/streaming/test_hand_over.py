"""Batches are the caller's without a copy: workers write to their memory only when nobody looks at it any more."""

import gc
import os
import signal
from random import Random

import numpy as np
import pytest
import torch

from pipeline.dataset.dataset import Dataset
from pipeline.streaming.stream import Stream
from tests.loading import (
    stream_of,
    taken,
    worker_pids,
)


def lent_by(stream: Stream, images: np.ndarray) -> bool:
    """Return whether pictures lie in the memory that the stream shares with its workers."""
    pool = stream._pool
    assert pool
    return np.shares_memory(images, pool._slots)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_is_handed_over_without_a_copy_and_its_memory_used_again_when_the_last_view_is_gone(
    dataset: Dataset, num_workers: int
) -> None:
    expected = taken(stream_of(dataset), 30)
    stream = stream_of(dataset, num_workers=num_workers)
    places = set()
    view = np.empty(0)
    try:
        for step in range(30):
            images = next(stream).images
            assert lent_by(stream, images)
            assert np.array_equal(images, expected[step].images)
            if step:
                assert np.array_equal(view, expected[step - 1].images[3, :, ::-1])  # alone keeps its batch
            places.add(images.__array_interface__["data"][0])
            images[0] = 0  # the caller's to write to
            view = torch.from_numpy(images).numpy()[3, :, ::-1]
        assert len(places) == 4
    finally:
        stream.close()


@pytest.mark.parametrize("seed", range(3))
def test_whatever_a_caller_keeps_and_drops_no_kept_batch_changes_through_kills_and_after_the_end(
    dataset: Dataset, seed: int
) -> None:
    random = Random(seed)
    expected = taken(stream_of(dataset), 40)
    stream = stream_of(dataset, num_workers=2)
    kept: dict[int, np.ndarray] = {}
    try:
        for step in range(40):
            kept[step] = next(stream).images
            assert sum(lent_by(stream, images) for images in kept.values()) <= 2
            for dropped in random.sample(sorted(kept), random.randrange(len(kept) + 1)):
                del kept[dropped]
            if step in (9, 21):
                os.kill(random.choice(worker_pids()), signal.SIGKILL)
            for number, images in kept.items():
                assert np.array_equal(images, expected[number].images)
        kept[40] = next(stream).images
    finally:
        stream.close()
    assert next(stream).places.shape == (18, 4)  # other workers, other memory
    stream.close()
    del kept[40]
    for number, images in kept.items():
        assert np.array_equal(images, expected[number].images)


def test_a_forked_child_that_drops_a_batch_does_not_give_its_parents_memory_back(dataset: Dataset) -> None:
    expected = taken(stream_of(dataset), 12)
    stream = stream_of(dataset, num_workers=1)
    try:
        first = next(stream)
        child = os.fork()
        if not child:
            del first
            gc.collect()
            os._exit(0)
        os.waitpid(child, 0)
        for step in range(1, 12):
            assert np.array_equal(next(stream).images, expected[step].images)
            assert np.array_equal(first.images, expected[0].images)
    finally:
        stream.close()
