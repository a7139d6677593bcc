"""How fast a stream is, and what limits it."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipeline.streaming.loader.messages import ReadCounts
from pipeline.streaming.stream import Batch, Stream

Stage = Literal["reading", "decoding", "the consumer"]

_WARM_UP_BATCHES = 8  # a choice: beyond the batches that wait in shared memory when the first one is asked for
_READY_FRACTION = 0.05  # a choice: who waits less than this for batches gains nothing from a faster loader
_LOG_SECONDS = 1.0


@dataclass(frozen=True)
class Limit:
    """What limits the speed of a stream.

    Attributes:
        stage: What the others wait for.
        reason: The figures that show it.
        remedy: What to do.
    """

    stage: Stage
    reason: str
    remedy: str


def limiting_stage(
    counts: ReadCounts, seconds: float, num_workers: int, wait_seconds: float, num_cpus: int | None = None
) -> Limit:
    """Return which stage the others wait for.

    Whether it is the consumer, the consumer's own waiting decides and not the workers': one whose part of a batch is
    ready also stands still while another worker finishes its own.

    Args:
        counts: Of the stretch of time.
        seconds: Its length by the clock.
        num_workers: Decoders, at least 1.
        wait_seconds: How much of it the consumer waited for batches.
        num_cpus: CPUs that the decoders may use; those of this process by default.
    """
    cpus = num_cpus or len(os.sched_getaffinity(0))
    decoder_seconds = max(seconds * num_workers, 1e-9)
    if wait_seconds < _READY_FRACTION * seconds:
        return Limit(
            "the consumer",
            f"it waited for batches {wait_seconds / max(seconds, 1e-9):.0%} of the time",
            "a faster loader would gain nothing; the decoders have time to spare",
        )
    if counts.wait_read_seconds > counts.decode_seconds:
        each = counts.read_seconds / max(1, counts.reads)
        return Limit(
            "reading",
            f"decoders waited for encoded pictures {_share(counts.wait_read_seconds, decoder_seconds)} of the time "
            f"and decoded {_share(counts.decode_seconds, decoder_seconds)}; a read took {1000 * each:,.0f} ms",
            "read more at once (read threads), read further ahead (a larger budget), keep blocks on a local disk (a "
            "cache folder), or pack smaller pictures (`pipeline shard --resize`)",
        )
    more = (
        f"add loader workers ({num_workers} for {cpus} CPUs)"
        if num_workers < cpus
        else f"{num_workers} loader workers have {cpus} CPUs: use more CPUs"
    )
    return Limit(
        "decoding",
        f"decoders were busy {_share(counts.decode_seconds, decoder_seconds)} of the time and waited for encoded "
        f"pictures {_share(counts.wait_read_seconds, decoder_seconds)}",
        f"{more}, or pack smaller pictures (`pipeline shard --resize`)",
    )


def _share(part: float, whole: float) -> str:
    # ReadCounts come with finished batches, so a short stretch may count more seconds than it had.
    return f"{min(part / whole, 1.0):.0%}"


@dataclass(frozen=True)
class Lap:
    """What a stream did in a stretch of time.

    Attributes:
        counts: Of the loader.
        images: Pictures handed out.
        bad_samples: Of them, substitutes for damaged ones.
        seconds: Its length by the clock.
        wait_seconds: How much of it the consumer waited for batches.
        num_workers: Decoders.
    """

    counts: ReadCounts
    images: int
    bad_samples: int
    seconds: float
    wait_seconds: float
    num_workers: int

    @property
    def limit(self) -> Limit:
        """What limited the stream."""
        return limiting_stage(self.counts, self.seconds, self.num_workers, self.wait_seconds)

    @property
    def wait_fraction(self) -> float:
        """Share of the time that the consumer waited."""
        return self.wait_seconds / self.seconds

    def figures(self) -> dict[str, Any]:
        """Return the figures about the loader and not its consumer: rates, sums, `limiting_stage`."""
        counts = self.counts
        return {
            "read_mb_per_second": round(counts.bytes_read / 1e6 / self.seconds, 3),
            "reads": counts.reads,
            "retries": counts.retries,
            "hedges": counts.hedges,
            "cache_hits": counts.cache_hits,
            "bad_samples": self.bad_samples,
            "limiting_stage": self.limit.stage,
        }

    def row(self) -> dict[str, Any]:
        """Return all figures, for a log."""
        counts, decoder_seconds = self.counts, self.seconds * self.num_workers
        return {
            "seconds": round(self.seconds, 3),
            "images": self.images,
            "images_per_second": round(self.images / self.seconds, 1),
            "data_wait_fraction": round(self.wait_fraction, 4),
            **self.figures(),
            "reads_per_second": round(counts.reads / self.seconds, 2),
            "read_ms": round(1000 * counts.read_seconds / max(1, counts.reads), 2),
            "decode_ms": round(1000 * counts.decode_seconds / max(1, counts.samples), 3),
            "decode_fraction": round(min(counts.decode_seconds / decoder_seconds, 1.0), 4),
            "read_wait_fraction": round(min(counts.wait_read_seconds / decoder_seconds, 1.0), 4),
        }


class Laps:
    """Measures a stream from lap to lap. Call `took` with every batch."""

    def __init__(self, stream: Stream, num_workers: int) -> None:
        """Start the first lap.

        Args:
            stream: What is measured.
            num_workers: Loader processes of the stream; 0 for a thread.
        """
        self._stream = stream
        self._num_workers = max(1, num_workers)
        self._begin()

    @property
    def seconds(self) -> float:
        """Length of the lap so far."""
        return time.perf_counter() - self._started

    def took(self, batch: Batch) -> None:
        """Count a batch that the stream returned."""
        self._images += len(batch.labels)
        self._bad_samples += len(batch.bad)

    def lap(self) -> Lap:
        """End the lap, return it and start the next."""
        now, before = self._stream.counts, self._counts
        lap = Lap(
            counts=now.since(before),
            images=self._images,
            bad_samples=self._bad_samples,
            seconds=max(self.seconds, 1e-9),
            wait_seconds=self._stream.wait_seconds - self._waited,
            num_workers=self._num_workers,
        )
        self._begin()
        return lap

    def _begin(self) -> None:
        self._counts = replace(self._stream.counts)
        self._waited = self._stream.wait_seconds
        self._images = self._bad_samples = 0
        self._started = time.perf_counter()


def measure(
    stream: Stream, num_workers: int, seconds: float, on_second: Callable[[Lap], None] = lambda lap: None
) -> Lap:
    """Take batches as fast as they come, after a warm-up that is not counted; an interrupt ends it early.

    Args:
        stream: Is closed at the end.
        num_workers: Loader processes of the stream; 0 for a thread.
        seconds: How long, by the clock; at least one batch.
        on_second: Called with each second, or each batch where batches take longer.

    Raises:
        KeyboardInterrupt: It came before the first batch that counts.
        BitError: The stream's own.
    """
    try:
        for _ in range(_WARM_UP_BATCHES):
            next(stream)
        whole, parts = Laps(stream, num_workers), Laps(stream, num_workers)
        num_batches = 0
        try:
            while not num_batches or whole.seconds < seconds:
                batch = next(stream)
                num_batches += 1
                whole.took(batch)
                parts.took(batch)
                if parts.seconds >= _LOG_SECONDS:
                    on_second(parts.lap())
        except KeyboardInterrupt:
            if not num_batches:
                raise
        return whole.lap()
    finally:
        stream.close()
