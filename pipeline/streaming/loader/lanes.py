"""The lanes of one worker: their open windows, the samples due, and what takes the place of a damaged one."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.base.errors import BadImage, CorruptShard
from pipeline.base.seeds import sample_uniform
from pipeline.image.render import render
from pipeline.streaming.loader.blocks import Damaged, Loaded, SampleSlice
from pipeline.streaming.loader.messages import BadSample, ReadCounts, WindowRequest, WindowSpec, Work
from pipeline.streaming.loader.read_ahead import Lane, Prefetcher
from pipeline.streaming.selection import Span


@dataclass
class _Window:
    """A window of a lane, its spans read or being read.

    Attributes:
        spec: What it holds.
        loads: Of each span; None once all its samples were used.
        left: Samples of each span that were not used yet.
    """

    spec: WindowSpec
    loads: list["Future[Loaded] | None"]
    left: list[int]

    @property
    def end(self) -> int:
        """Lane position after its last sample."""
        return self.spec.start + len(self.spec.places)


class Taken(NamedTuple):
    """What lies at a place of a batch.

    Attributes:
        place: Source, epoch, shard and row.
        labels: Of the sample.
        bad: The sample that was due, where another took its place.
    """

    place: tuple[int, int, int, int]
    labels: tuple[int, ...]
    bad: BadSample | None


class Lanes:
    """Renders the samples of a worker's lanes, position by position. For one thread."""

    def __init__(
        self,
        work: Work,
        prefetcher: Prefetcher,
        read: Callable[[int, Span], Loaded],
        request: Callable[[WindowRequest], None],
        wait: Callable[[], None],
        counts: ReadCounts,
    ) -> None:
        """Prepare; request nothing yet.

        Args:
            work: See Work.
            prefetcher: Reads spans ahead.
            read: Reads a span at once, for the rare sample whose bytes were released.
            request: Asks the rank for a window; the answer comes to `arrived`.
            wait: Returns after at least one message of the rank was handled.
            counts: Receives where the time goes.
        """
        self._work = work
        self._prefetcher = prefetcher
        self._read = read
        self._request = request
        self._wait = wait
        self._counts = counts
        self._open: dict[Lane, _Window] = {}
        self._next: dict[Lane, _Window] = {}
        self._kept: dict[tuple[int, int, int], Future[Loaded]] = {}

    def begin(self) -> None:
        """Ask for the first window of every lane."""
        for lane in self._work.lanes:
            starts = self._work.mixture.starts(lane, self._work.first_step * self._work.samples_per_lane)
            for source, position in enumerate(starts):
                self._request(WindowRequest(source, lane, position))

    def arrived(self, spec: WindowSpec) -> None:
        """Take a window that was requested, and queue its spans."""
        lane = (spec.source, spec.lane)
        per_step = self._work.samples_per_lane * self._work.mixture.shares[spec.source]
        wanted = spec.places[spec.position - spec.start :, 0]
        left = np.bincount(wanted, minlength=len(spec.spans)).tolist()
        loads = [
            self._load(spec, span, spec.position / per_step) if count else None
            for span, count in zip(spec.spans, left, strict=True)
        ]
        self._next[lane] = _Window(spec, loads, left)

    def take(self, source: int, lane: int, position: int, step: int, out: npt.NDArray[np.uint8]) -> Taken:
        """Render the sample at a lane position of a source into `out`, shape (side, side, 3).

        Raises:
            CorruptShard: No sample of the window can be used.
        """
        window = self._window((source, lane), position)
        index = position - window.spec.start
        due: tuple[Span, Damaged] | None = None
        for holder, span_index, loaded, sample in self._candidates(window, index):
            span = holder.spec.spans[span_index]
            rendered = self._rendered(window.spec, span, loaded, sample, out)
            if isinstance(rendered, SampleSlice):
                place = (source, window.spec.epoch, span.shard, rendered.row)
                bad = None if due is None else _bad_sample(window.spec, *due, step, (span.shard, rendered.row))
                self._used(window, int(window.spec.places[index, 0]))
                return Taken(place, rendered.labels, bad)
            due = due or (span, rendered)
        detail = f": {due[1].detail}" if due else ""
        raise CorruptShard(
            f"no sample of two windows near {window.spec.spans[0].path} can be used{detail}; "
            f"run `pipeline verify` on the dataset"
        )

    def _window(self, lane: Lane, position: int) -> _Window:
        window = self._open.get(lane)
        if window is None or position >= window.end:
            while lane not in self._next:
                self._wait()
            window = self._open[lane] = self._next.pop(lane)
            self._request(WindowRequest(*lane, window.end))
        return window

    def _load(self, spec: WindowSpec, span: Span, need: float) -> "Future[Loaded]":
        if not self._work.keep_all:
            return self._prefetcher.want((spec.source, spec.lane), span, need)
        key = (spec.source, span.shard, span.offset)
        if key not in self._kept:
            self._kept[key] = self._prefetcher.want((spec.source, spec.lane), span, need)
        return self._kept[key]

    def _candidates(self, window: _Window, index: int) -> Iterator[tuple[_Window, int, Loaded, SampleSlice | Damaged]]:
        """Yield the sample that is due, those after it in the window, around its end, and those of the next window."""
        count = len(window.spec.places)
        for step in range(count):
            yield self._candidate(window, (index + step) % count)
        lane = (window.spec.source, window.spec.lane)
        while lane not in self._next:
            self._wait()
        following = self._next[lane]
        for place in range(following.spec.position - following.spec.start, len(following.spec.places)):
            yield self._candidate(following, place)

    def _candidate(self, window: _Window, place: int) -> tuple[_Window, int, Loaded, SampleSlice | Damaged]:
        span_index, number = window.spec.places[place].tolist()
        load = window.loads[span_index]
        # Without a load its bytes were released.
        loaded = self._result(load) if load else self._read(window.spec.source, window.spec.spans[span_index])
        return window, span_index, loaded, loaded.samples[number]

    def _result(self, load: "Future[Loaded]") -> Loaded:
        if not load.done():
            started = time.perf_counter()
            self._prefetcher.hurry(load)
            load.exception()
            self._counts.wait_read_seconds += time.perf_counter() - started
        return load.result()

    def _rendered(
        self, spec: WindowSpec, span: Span, loaded: Loaded, sample: SampleSlice | Damaged, out: npt.NDArray[np.uint8]
    ) -> SampleSlice | Damaged:
        """Render a sample; return it, or why it cannot be used."""
        if isinstance(sample, Damaged):
            return sample
        random = sample_uniform(self._work.seed, "augment", spec.source, spec.epoch, span.shard, sample.row)
        started = time.perf_counter()
        try:
            is_trusted = self._work.datasets[spec.source].is_trusted(span.shard)
            render(
                bytes(loaded.body[sample.start : sample.stop]), self._work.transform, random, out, is_trusted=is_trusted
            )
        except BadImage as error:
            return Damaged(sample.row, error.reason, error.detail)
        finally:
            self._counts.decode_seconds += time.perf_counter() - started
        self._counts.samples += 1
        return sample

    def _used(self, window: _Window, span_index: int) -> None:
        window.left[span_index] -= 1
        if not window.left[span_index] and not self._work.keep_all:
            window.loads[span_index] = None
            self._prefetcher.release((window.spec.source, window.spec.lane), window.spec.spans[span_index])


def _bad_sample(spec: WindowSpec, span: Span, fault: Damaged, step: int, substitute: tuple[int, int]) -> BadSample:
    return BadSample(
        step=step,
        source=spec.source,
        shard=span.shard,
        path=span.path,
        row=fault.row,
        epoch=spec.epoch,
        reason=fault.reason,
        detail=fault.detail,
        substitute=substitute,
    )
