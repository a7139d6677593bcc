"""How tensors are cut into chunks for storage: runs of rows of a tensor, whoever holds them.

A chunk is rows `start` to `stop` of a tensor's first axis, contiguous, with a digest of its own. So any part of a
tensor is read from the chunks that overlap it, on any number of ranks, replicated or sharded, and each is checked.
"""

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Self

import torch
from pydantic import model_validator
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from pipeline.base.errors import CorruptShard
from pipeline.base.records import Record

# A choice: small against the larger kernels, so that a rank reads little beyond its part of them; chunks that lie side
# by side are read at once.
CHUNK_BYTES = 256 << 10
# No chunk reaches over an eighth of its part, so that groups of 2, 4 and 8 ranks read nothing beyond theirs. Smaller
# parts are stored whole: all of them together are a small share of any model.
_EIGHTHS, _WHOLE_BYTES = 8, 64 << 10
_LEAST_SHARE_BYTES = 1 << 20  # a choice: smaller tensors are not divided between ranks


class Chunk(Record):
    """Rows of one tensor in a file of a checkpoint.

    Attributes:
        name: Of the tensor.
        dtype: Such as `float32`.
        shape: Of the whole tensor; () is stored as one row.
        start: First row, of the first axis.
        stop: Row after the last one.
        offset: First byte in the file.
        num_bytes: Bytes in the file.
        blake3: Of them, 64 hexadecimal digits.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    offset: int
    num_bytes: int
    blake3: str


class ChunkList(Record):
    """What a rank wrote of a checkpoint.

    Attributes:
        num_bytes: Of its file.
        sha256: Of its file.
        chunks: In the order of the file.
    """

    num_bytes: int
    sha256: str
    chunks: tuple[Chunk, ...]

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        """Refuse what does not fit together, before memory is taken or a tensor is made of it."""
        for chunk in self.chunks:
            _check_size(chunk)
        return self


def _check_size(chunk: Chunk) -> None:
    dtype = getattr(torch, chunk.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{chunk.dtype!r} is no type of numbers")  # noqa: TRY004 - pydantic asks for it
    if not 0 <= chunk.start <= chunk.stop or min(chunk.offset, *chunk.shape, 0) < 0:
        raise ValueError("a negative row, offset or axis")
    if chunk.num_bytes != (chunk.stop - chunk.start) * math.prod(chunk.shape[1:]) * dtype.itemsize:
        raise ValueError(f"{chunk.num_bytes:,} bytes are not rows {chunk.start} to {chunk.stop} of {chunk.name}")


class Part(NamedTuple):
    """Rows of a tensor that a rank holds.

    Attributes:
        name: Of the tensor.
        rows: They themselves, shape (rows, ...), sharing memory with the tensor.
        shape: Of the whole tensor.
        start: Number of the first row.
    """

    name: str
    rows: Tensor
    shape: tuple[int, ...]
    start: int


def parts_of(state: Mapping[str, Tensor]) -> list[Part]:
    """Return the rows of each tensor that this rank holds: of a sharded one its own, of any other all.

    Raises:
        NotImplementedError: A tensor is sharded along another axis than its first.
    """
    return [_part(name, tensor) for name, tensor in sorted(state.items())]


def _part(name: str, tensor: Tensor) -> Part:
    if not isinstance(tensor, DTensor):
        rows = tensor.detach()
        return Part(name, rows.reshape(1) if rows.ndim == 0 else rows, tuple(tensor.shape), 0)
    if any(placement.is_shard() and not placement.is_shard(dim=0) for placement in tensor.placements):
        raise NotImplementedError(f"{name} is sharded by {tensor.placements}; only the first axis can be saved")
    _, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return Part(name, tensor.to_local().detach(), tuple(tensor.shape), offsets[0])


def own_parts(state: Mapping[str, Tensor], rank: int, num_ranks: int) -> list[Part]:
    """Return what a rank writes: its shards, and of the tensors that all ranks hold about its share of the bytes.

    Tensors larger than a share are divided: of R152x4 on 512 ranks one has 599 MB, and a share 17. Where several groups
    of ranks share a copy each, the first one writes.
    """
    parts = parts_of(state)
    own = [part for part in parts if _is_own_shard(part, state[part.name])]
    common = [part for part in parts if not isinstance(state[part.name], DTensor)]
    share = max(_LEAST_SHARE_BYTES, sum(part.rows.nbytes for part in common) // num_ranks)
    pieces = [piece for part in common for piece in (_divided(part, share) if num_ranks > 1 else [part])]
    given = [(0, each) for each in range(num_ranks)]  # a heap: bytes of each rank so far
    for piece in sorted(pieces, key=lambda piece: (-piece.rows.nbytes, piece.name, piece.start)):
        num_bytes, writer = given[0]
        heapq.heapreplace(given, (num_bytes + piece.rows.nbytes, writer))
        if writer == rank:
            own.append(piece)
    return sorted(own, key=lambda part: (part.name, part.start))


def _is_own_shard(part: Part, tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor) and bool(part.rows.numel()) and _is_of_first_replica(tensor)


def _divided(part: Part, most_bytes: int) -> Iterator[Part]:
    """Yield a part in runs of rows of at most so many bytes, at least a row each."""
    num_rows = part.rows.shape[0]
    rows_per_piece = max(1, most_bytes * num_rows // max(1, part.rows.nbytes))
    for first in range(0, max(1, num_rows), rows_per_piece):
        yield part._replace(rows=part.rows[first : first + rows_per_piece], start=part.start + first)


def _is_of_first_replica(tensor: DTensor) -> bool:
    places = tensor.device_mesh.get_coordinate() or ()
    return not any(
        place for place, placement in zip(places, tensor.placements, strict=False) if placement.is_replicate()
    )


def cut(part: Part) -> Iterator[tuple[int, int]]:
    """Yield the first row of each chunk of a part, and the one after its last: about CHUNK_BYTES within an eighth."""
    num_rows = part.rows.shape[0]
    rows_per_chunk = max(1, CHUNK_BYTES * num_rows // max(1, part.rows.nbytes))
    rows_per_eighth = num_rows if part.rows.nbytes <= _WHOLE_BYTES else -(-num_rows // _EIGHTHS)
    for first in range(0, num_rows, max(1, rows_per_eighth)):
        stop = min(first + rows_per_eighth, num_rows)
        for start in range(first, stop, rows_per_chunk):
            yield start, min(start + rows_per_chunk, stop)


def as_bytes(rows: Tensor) -> memoryview:
    """Return the values of a tensor as bytes, in the order of its axes."""
    return memoryview(rows.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def from_bytes(body: bytes | memoryview, chunk: Chunk) -> Tensor:
    """Return the rows of a chunk, shape (stop - start, ...)."""
    dtype = getattr(torch, chunk.dtype)
    return torch.frombuffer(bytearray(body), dtype=dtype).reshape(chunk.stop - chunk.start, *chunk.shape[1:])


def runs(chunks: Iterable[Chunk], most_bytes: int) -> Iterator[list[Chunk]]:
    """Yield the chunks of a file in runs that lie side by side, each of about `most_bytes` at most."""
    run: list[Chunk] = []
    for chunk in sorted(chunks, key=lambda chunk: chunk.offset):
        is_next = bool(run) and run[-1].offset + run[-1].num_bytes == chunk.offset
        if run and not (is_next and chunk.offset + chunk.num_bytes - run[0].offset <= most_bytes):
            yield run
            run = []
        run.append(chunk)
    if run:
        yield run


def overlapping(chunks: Sequence[Chunk], part: Part) -> list[Chunk]:
    """Return the chunks that together hold a part, in order.

    Raises:
        CorruptShard: They are not there, do not meet, or are of a tensor of another shape.
    """
    start, stop = part.start, part.start + part.rows.shape[0]
    found = sorted((c for c in chunks if c.start < stop and c.stop > start), key=lambda chunk: chunk.start)
    at = start
    for chunk in found:
        if chunk.shape != part.shape:
            raise CorruptShard(f"{part.name} has shape {chunk.shape} in the checkpoint, {part.shape} in the model")
        if chunk.start > at:
            break
        at = max(at, chunk.stop)
    if at < stop:
        raise CorruptShard(f"the checkpoint lacks rows {at} to {stop} of {part.name}")
    return found
