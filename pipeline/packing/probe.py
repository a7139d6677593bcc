"""Trying a few pictures before a plan is cut: how large sources are, how much of them is stored, how long it takes."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa

from pipeline.base.errors import BadImage
from pipeline.image.policy import ImagePolicy, prepare
from pipeline.packing.fetch import fetch
from pipeline.packing.plan import UNKNOWN_IMAGE_BYTES
from pipeline.packing.sources.rows import Source


@dataclass(frozen=True)
class Probe:
    """What trying a few pictures showed.

    Attributes:
        mean_source_bytes: Of a picture as it lies in its source.
        stored_fraction: Bytes stored per byte read, in thousandths, so that it is the same everywhere.
        seconds_per_image: Of reading and preparing one picture in one process.
    """

    mean_source_bytes: int = UNKNOWN_IMAGE_BYTES
    stored_fraction: float = 1.0
    seconds_per_image: float = 0.0


def prober(policy: ImagePolicy) -> Callable[[pa.Table, Sequence[tuple[str, Source]]], Probe]:
    """Return the function that reads and prepares a sample of rows; those that fail are skipped."""

    def probe(rows: pa.Table, sources: Sequence[tuple[str, Source]]) -> Probe:
        bases = [source.url for _, source in sources]
        columns = [source.image_column for _, source in sources]
        num_read = num_stored = count = 0
        started = time.perf_counter()
        for _, data in fetch(rows, bases, columns, policy.max_bytes):
            with suppress(BadImage):
                if isinstance(data, BadImage):
                    raise data
                num_stored += len(prepare(data, policy).data)
                num_read += len(data)
                count += 1
        if not count:
            return Probe()
        seconds = (time.perf_counter() - started) / count
        return Probe(num_read // count, round(num_stored / num_read, 3), seconds)

    return probe
