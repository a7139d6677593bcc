"""What a run is measured on while it trains: a part of its training set that it never trains on, or other sets."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from pydantic import PositiveInt, model_validator

from pipeline.base.errors import ConfigError
from pipeline.base.records import Record
from pipeline.base.seeds import rng

_SPREADS = 6.0  # standard deviations: once in 1e9 fewer rows than wanted are drawn at first


class HeldOut(Record):
    """Pictures that a run is measured on: some of its training set, or a dataset of their own.

    Attributes:
        num_samples: Of the training set, left out of training; None with a dataset of their own.
        data: URL of that dataset; None for a part of the training set.
        data_version: Manifest version from which they are drawn, or that of the other dataset. Later versions of the
            training set change nothing about which pictures are held out.
        seed: Key of the choice; of its own, so that runs with other seeds are measured on the same pictures.
    """

    num_samples: PositiveInt | None = None
    data: str | None = None
    data_version: int
    seed: int = 0

    @model_validator(mode="after")
    def _is_one_of_both(self) -> "HeldOut":
        if (self.num_samples is None) == (self.data is None):
            raise ValueError("give num_samples of the training set, or data of its own")
        return self


class ProbeSet(Record):
    """A labelled set for the linear few-shot probe [big_vision, evaluators/fewshot_lsr.py].

    Attributes:
        name: Of its figures.
        train: URL of the pictures that the probe learns from.
        train_version: Their manifest version.
        test: URL of the pictures that it is tested on.
        test_version: Their manifest version.
    """

    name: str
    train: str
    train_version: int
    test: str
    test_version: int


def held_out_rows(num_samples_by_shard: Sequence[int], count: int, seed: int) -> dict[int, npt.NDArray[np.int64]]:
    """Return the rows of each shard that are held out: the `count` with the lowest keyed random numbers.

    A shard's numbers depend on the seed and the shard alone, so they are the same on every rank and start.

    Args:
        num_samples_by_shard: Samples of each shard.
        count: Rows to hold out, at least 1.
        seed: Key of the choice.

    Raises:
        ConfigError: Nothing would be left to train on.
    """
    total = sum(num_samples_by_shard)
    if count >= total:
        raise ConfigError(
            f"{count:,} held-out pictures leave nothing to train on: the training set has {total:,}; hold out fewer"
        )
    likely = count + _SPREADS * math.sqrt(count)
    while True:
        parts = list(_drawn(num_samples_by_shard, seed, likely / total))
        shards, rows, draws = map(np.concatenate, zip(*parts, strict=True))
        if len(rows) >= count:
            break
        likely *= 2
    lowest = np.sort(np.argsort(draws, kind="stable")[:count])
    shards, rows = shards[lowest], rows[lowest]
    numbers, starts = np.unique(shards, return_index=True)
    return dict(zip(numbers.tolist(), np.split(rows, starts[1:]), strict=True))


def _drawn(
    num_samples_by_shard: Sequence[int], seed: int, share: float
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
    """Yield for each shard the shard, row and random number of all rows whose number is below a share."""
    for shard, num_samples in enumerate(num_samples_by_shard):
        draws = rng(seed, "held out", shard).random(num_samples)
        rows = np.flatnonzero(draws < share)
        yield np.full(len(rows), shard, np.int64), rows, draws[rows]
