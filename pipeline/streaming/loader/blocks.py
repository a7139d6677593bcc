"""From a span to its samples: read, checked, and where damaged, what can be salvaged of it."""

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import orjson
import pyarrow as pa
from crc32c import crc32c

from pipeline.base.errors import CorruptShard, NotFound, StorageError
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.schema import image_digest, is_adopted
from pipeline.dataset.tar_format import contents
from pipeline.store.block_cache import BlockCache
from pipeline.store.hedged_reads import RangeReader
from pipeline.store.memory_map import MappedFile
from pipeline.store.retry import READS_BEFORE_DAMAGE
from pipeline.streaming.selection import Span

_LARGEST_GAP_BYTES = 1 << 20  # a choice: unwanted bytes that cost less than a request of their own


class SampleSlice(NamedTuple):
    """One sample in the body it was read with.

    Attributes:
        row: In its shard.
        start: First byte of the encoded picture in the body.
        stop: Byte after it.
        labels: May be empty.
    """

    row: int
    start: int
    stop: int
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Damaged:
    """One sample that could not be read.

    Attributes:
        row: In its shard.
        reason: One word: `missing`, `truncated`, `checksum`, `undecodable`.
        detail: For people.
    """

    row: int
    reason: str
    detail: str


@dataclass(frozen=True)
class Loaded:
    """The samples of a span.

    Attributes:
        body: What was read or mapped; pictures are parts of it.
        samples: One for each wanted row, in order.
    """

    body: bytes | memoryview
    samples: tuple[SampleSlice | Damaged, ...]


class BlockReader:
    """Reads spans of one dataset. Safe for threads."""

    def __init__(
        self,
        dataset: Dataset,
        ranged: RangeReader,
        cache: BlockCache | None,
        *,
        in_order: bool = False,
        mapped: bool = False,
    ) -> None:
        """Open a reader.

        Args:
            dataset: What is read.
            ranged: By which it is read.
            cache: Of blocks.
            in_order: Whether spans come in the order of the dataset. Then a sidecar serves all spans of its shard, and
                lists the samples in a third of the time that their tar headers take (1.4 us instead of 3.8).
            mapped: Whether local tars are mapped instead of read; see memory_map.MappedFile.
        """
        self._dataset = dataset
        self._ranged = ranged
        self._cache = cache
        self._in_order = in_order
        self._mapped = mapped
        self._tar: tuple[int, MappedFile] | None = None  # the last one
        self.bytes_read = 0

    def read(self, span: Span) -> Loaded:
        """Return the samples of a span. Damage that stays after three reads ends as `Damaged`, sample by sample.

        Raises:
            Unreachable: The store does not answer.
            Denied: The credentials are wrong.
        """
        loaded = self._undamaged(span) or min(
            (self._salvaged(span) for _ in range(READS_BEFORE_DAMAGE)), key=_num_damaged
        )
        return loaded if span.is_read_whole else _only_samples(loaded)

    def _undamaged(self, span: Span) -> Loaded | None:
        for attempt in range(READS_BEFORE_DAMAGE):
            try:
                body = self._cached(span)
                # A second attempt reads all of the block: its checksum can be right where the sidecar is not.
                if body is None and not span.is_read_whole and not attempt:
                    return self._scattered(span)
                return self._whole_block(span, body, is_first=not attempt)
            except (CorruptShard, NotFound):
                continue
        return None

    def _cached(self, span: Span) -> bytes | None:
        body = self._cache.get(_cache_key(span)) if self._cache else None
        if body is not None and self._cache and crc32c(body) != span.crc32c:
            self._cache.discard(_cache_key(span))
            return None
        return body

    def _whole_block(self, span: Span, body: bytes | None, *, is_first: bool) -> Loaded:
        """Return a block whose checksum is right; only a first attempt takes what a damaged sidecar or disk spoils."""
        by_sidecar = self._is_adopted(span) or (self._in_order and is_first)
        mapped = self._map(span) if self._mapped and by_sidecar and is_first else None
        if mapped is not None:
            _check(mapped, span)
            return Loaded(mapped, self._listed(span, -span.offset))
        if body is None:
            body = self._read(span, span.offset, span.num_bytes)
            _check(body, span)
            if self._cache:
                self._cache.put(_cache_key(span), body)
        return Loaded(body, self._listed(span, -span.offset) if by_sidecar else _entries_by_headers(body, span))

    def _map(self, span: Span) -> memoryview | None:
        """Return a block of a local tar; None where it or its sidecar cannot be mapped: reading it raises why."""
        last = self._tar
        try:
            tar = last[1] if last and last[0] == span.shard else MappedFile(self._dataset.shard_url(span.shard))
            body = tar.part(span.offset, span.num_bytes)
            self._dataset.samples(span.shard)  # is held from now on; without the thread of a read that may be slow
        except (OSError, ValueError, StorageError, CorruptShard):
            return None
        self._tar = span.shard, tar
        self.bytes_read += span.num_bytes
        return body

    def _scattered(self, span: Span) -> Loaded:
        """Read the wanted samples, near ones at once; without the block's checksum each digest is checked."""
        bodies: list[bytes] = []
        entries: list[SampleSlice] = []
        digests = self._sidecar(span)["digest"].to_pylist()
        for run in _nearby(self._listed(span, 0)):
            start, stop = run[0].start, run[-1].stop
            shift = sum(map(len, bodies)) - start
            bodies.append(self._read(span, start, stop - start))
            entries += [SampleSlice(e.row, e.start + shift, e.stop + shift, e.labels) for e in run]
        loaded = Loaded(b"".join(bodies), tuple(entries))
        for entry, digest in zip(entries, digests, strict=True):
            if image_digest(loaded.body[entry.start : entry.stop]) != digest:
                raise CorruptShard(f"{span.path}, sample {entry.row}: digest differs from the sidecar")
        return loaded

    def _salvaged(self, span: Span) -> Loaded:
        """Return the samples whose own digest is right, from what is left of a damaged block."""
        try:
            available = self._ranged.read(lambda: self._dataset.store.num_bytes(span.path)) - span.offset
            body = self._read(span, span.offset, max(0, min(span.num_bytes, available)))
        except NotFound as error:
            return _lost(span, "missing", str(error))
        except CorruptShard as error:
            return _lost(span, "truncated", str(error))
        try:
            sidecar = self._sidecar(span)
        except (CorruptShard, NotFound) as error:
            return _lost(span, "checksum", f"the block is damaged, and so is its sidecar: {error}")
        salvaged: list[SampleSlice | Damaged] = []
        for entry, digest in zip(self._listed(span, -span.offset), sidecar["digest"].to_pylist(), strict=True):
            if entry.stop > len(body):
                salvaged.append(Damaged(entry.row, "truncated", f"{span.path} ends before this sample"))
            elif image_digest(body[entry.start : entry.stop]) != digest:
                salvaged.append(
                    Damaged(entry.row, "checksum", f"{span.path}: the picture's digest is not the sidecar's")
                )
            else:
                salvaged.append(entry)
        return Loaded(body, tuple(salvaged))

    def _read(self, span: Span, offset: int, num_bytes: int) -> bytes:
        if num_bytes == 0:
            return b""
        body = self._ranged.read(lambda: self._dataset.read_span(span.shard, offset, num_bytes))
        self.bytes_read += num_bytes
        return body

    def _is_adopted(self, span: Span) -> bool:
        """Return whether the tar is third-party: then only the sidecar knows which members are samples."""
        return is_adopted(self._dataset.shards[span.shard]["sidecar"])

    def _sidecar(self, span: Span) -> pa.Table:
        sidecar = self._dataset.held_samples(span.shard)
        if sidecar is None:
            sidecar = self._ranged.read(lambda: self._dataset.samples(span.shard))
        return sidecar.slice(span.first_row, span.num_rows) if span.rows is None else sidecar.take(span.rows)

    def _listed(self, span: Span, shift: int) -> tuple[SampleSlice, ...]:
        """Return the wanted samples as the sidecar lists them, offsets moved by `shift`."""
        sidecar = self._sidecar(span)
        starts = sidecar["image_offset"].to_numpy() + shift
        stops = starts + sidecar["image_bytes"].to_numpy()
        labels = sidecar["labels"].combine_chunks()
        bounds, values = labels.offsets.tolist(), labels.values.tolist()
        labels_of_row = [tuple(values[start:stop]) for start, stop in itertools.pairwise(bounds)]
        rows = zip(span.wanted.tolist(), starts.tolist(), stops.tolist(), labels_of_row, strict=True)
        return tuple(map(SampleSlice._make, rows))


def _check(body: bytes | memoryview, span: Span) -> None:
    if crc32c(body) != span.crc32c:
        raise CorruptShard(f"{span.path}, bytes {span.offset} to {span.offset + span.num_bytes}: checksum")


def _entries_by_headers(body: bytes, span: Span) -> tuple[SampleSlice, ...]:
    """Return the wanted samples of a block that our packer wrote, from its tar headers: no request for the sidecar."""
    found: list[SampleSlice] = []
    try:
        in_turn = iter(contents(body))  # picture, class, JSON of each sample: the format has no other members
        for image, _, about in zip(in_turn, in_turn, in_turn, strict=True):
            labels = orjson.loads(body[about[0] : about[1]])["labels"]
            found.append(SampleSlice(span.first_row + len(found), *image, tuple(labels)))
    except (ValueError, KeyError) as error:
        raise CorruptShard(f"{span.path} at {span.offset} holds members that its format does not have") from error
    if len(found) != span.num_rows:
        raise CorruptShard(f"{span.path} at {span.offset}: {len(found)} samples, the manifest says {span.num_rows}")
    return tuple(found) if span.rows is None else tuple(found[row - span.first_row] for row in span.rows.tolist())


def _nearby(entries: tuple[SampleSlice, ...]) -> list[list[SampleSlice]]:
    """Group samples whose distance in the tar is small."""
    runs: list[list[SampleSlice]] = []
    for entry in entries:
        if runs and entry.start - runs[-1][-1].stop <= _LARGEST_GAP_BYTES:
            runs[-1].append(entry)
        else:
            runs.append([entry])
    return runs


def _only_samples(loaded: Loaded) -> Loaded:
    """Drop what lies between the samples: a part of a block holds no more than its share of the budget."""
    parts: list[bytes] = []
    samples: list[SampleSlice | Damaged] = []
    start = 0
    for sample in loaded.samples:
        if isinstance(sample, Damaged):
            samples.append(sample)
            continue
        parts.append(bytes(loaded.body[sample.start : sample.stop]))
        samples.append(SampleSlice(sample.row, start, start + len(parts[-1]), sample.labels))
        start += len(parts[-1])
    return Loaded(b"".join(parts), tuple(samples))


def _num_damaged(loaded: Loaded) -> int:
    return sum(isinstance(sample, Damaged) for sample in loaded.samples)


def _cache_key(span: Span) -> str:
    return f"{span.digest}:{span.offset}"


def _lost(span: Span, reason: str, detail: str) -> Loaded:
    return Loaded(b"", tuple(Damaged(row, reason, detail) for row in span.wanted.tolist()))
