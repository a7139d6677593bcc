"""Checkpoints on object storage: a file of chunks for each rank, and a commit record that makes them exist.

Every rank streams its share to `checkpoints/STEP-ATTEMPT/rankR.chunks`, and lists the chunks in `rankR.json`; when all
lists are there, rank 0 creates `checkpoints/STEP.json`, which names the files with their digests. Without that record a
checkpoint does not exist, so a crash at any point leaves the one before it. The attempt in the name keeps a restarted
run from mixing its files with those of the run that died. Nothing is staged on disk, and nothing in a file is executed.
"""

import hashlib
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

from pipeline.base.errors import CorruptShard, NotFound
from pipeline.base.parsing import parse_record
from pipeline.dataset.schema import sha256_hex
from pipeline.store.base import Store
from trainer.checkpoint.chunks import (
    Chunk,
    ChunkList,
    Part,
    as_bytes,
    cut,
    from_bytes,
    overlapping,
    own_parts,
    parts_of,
    runs,
)
from trainer.checkpoint.record import FOLDER, CheckpointFile, CheckpointRecord, UnreportedFigures, record_key
from trainer.checkpoint.torch_files import load_torch_files
from trainer.step.ranks import World, broadcast, gather

_READ_BYTES = 8 << 20
# What a rank holds beside its tensors until all is checked; more than that is read twice, to check and to fill. A
# choice: R152x2 on one rank is read once, and the largest model, which takes 7.4 GB, finds room where it trained.
_HELD_BYTES = 2 << 30
_READERS = 8  # concurrent reads of a load; a choice: one of 8 MiB at 50 ms latency gives 160 MB/s


def save(
    store: Store,
    world: World,
    state: dict[str, Tensor],
    *,
    step: int,
    attempt: str,
    stream: Mapping[str, Any],
    about: Mapping[str, Any],
) -> None:
    """Write a checkpoint; every rank must call. On return it is committed.

    Args:
        store: The run's store.
        world: This rank.
        state: Tensors by name, the same names on every rank.
        step: Optimizer steps done.
        attempt: Name of this start of the run, the same on every rank.
        stream: State of the data stream.
        about: Facts for whoever loads the weights.
    """
    folder = folder_of(step, attempt)
    files = write_parts(store, folder, world.rank, own_parts(state, world.rank, world.num_ranks))
    everyone = [file for part in gather(world, files) for file in part]
    if world.is_first:
        commit(store, step, folder, everyone, stream, about)
    broadcast(world, step)  # no rank goes on before the record is there


def folder_of(step: int, attempt: str) -> str:
    """Return the folder of a checkpoint's files."""
    return f"{FOLDER}/{step:09d}-{attempt}"


def list_key(folder: str, rank: int) -> str:
    """Return the key of the list of a rank's chunks, which is written last."""
    return f"{folder}/rank{rank}.json"


def write_parts(store: Store, folder: str, rank: int, parts: Iterable[Part]) -> list[CheckpointFile]:
    """Stream a rank's parts to the store, and return its two files: the chunks and their list."""
    name, chunks, digest, offset = f"rank{rank}.chunks", [], hashlib.sha256(), 0
    with store.writer(f"{folder}/{name}") as writer:
        for part in parts:
            for first, stop in cut(part):
                rows = part.rows[first:stop]
                body = as_bytes(rows)
                writer.write(body)
                digest.update(body)
                chunks.append(
                    Chunk(
                        name=part.name,
                        dtype=str(rows.dtype).removeprefix("torch."),
                        shape=part.shape,
                        start=part.start + first,
                        stop=part.start + stop,
                        offset=offset,
                        num_bytes=len(body),
                        blake3=blake3(body).hexdigest(),
                    )
                )
                offset += len(body)
        writer.finish()
    listed = ChunkList(num_bytes=offset, sha256=digest.hexdigest(), chunks=tuple(chunks)).model_dump_json().encode()
    store.create(list_key(folder, rank), listed)
    return files_listed(rank, listed)


def files_listed(rank: int, listed: bytes) -> list[CheckpointFile]:
    """Return the two files of a rank, from its list of chunks."""
    about = ChunkList.model_validate_json(listed)
    return [
        CheckpointFile(name=f"rank{rank}.chunks", num_bytes=about.num_bytes, sha256=about.sha256),
        CheckpointFile(name=f"rank{rank}.json", num_bytes=len(listed), sha256=sha256_hex(listed)),
    ]


def commit(
    store: Store,
    step: int,
    folder: str,
    files: Iterable[CheckpointFile],
    stream: Mapping[str, Any],
    about: Mapping[str, Any],
    unreported: tuple[UnreportedFigures, ...] = (),
) -> None:
    """Make a checkpoint exist whose files are all there."""
    record = CheckpointRecord(
        step=step,
        folder=folder,
        files=tuple(files),
        stream=dict(stream),
        about=dict(about),
        unreported=unreported,
        layout="chunks",
    )
    store.create(record_key(step), record.to_json())


def load(store: Store, world: World, record: CheckpointRecord, state: dict[str, Tensor]) -> None:
    """Fill the tensors of `state` in place from a checkpoint; every rank must call.

    A rank reads the chunks that overlap its parts, whichever ranks wrote them. All are checked on all ranks before the
    first tensor is touched.

    Raises:
        CorruptShard: A chunk is missing, or its content is not what was written; or a tensor is not in the checkpoint.
    """
    if record.layout == "torch":
        load_torch_files(store, world, record, state)
        return
    parts = {part.name: part for part in parts_of(state) if part.rows.numel()}
    is_held = sum(part.rows.nbytes for part in parts.values()) <= _HELD_BYTES
    reads: list[tuple[str, list[Chunk]]] = []
    held: list[tuple[Chunk, Tensor]] = []
    with _all_or_none(world):
        reads = _planned_reads(store, record, parts.values())
        for piece in _checked(store, reads):
            held += [piece] if is_held else []
    with _all_or_none(world), torch.no_grad():  # what is read again may have changed meanwhile
        for chunk, rows in held if is_held else _checked(store, reads):
            part = parts[chunk.name]
            start, stop = max(chunk.start, part.start), min(chunk.stop, part.start + part.rows.shape[0])
            target = part.rows[start - part.start : stop - part.start]
            target.copy_(rows[start - chunk.start : stop - chunk.start])


@contextmanager
def _all_or_none(world: World) -> Iterator[None]:
    """Raise on every rank what is damaged for one of them, so that all go on to another checkpoint together."""
    problem = None
    try:
        yield
    except (CorruptShard, NotFound) as error:
        problem = str(error)
    problems = [each for each in gather(world, problem) if each]
    if problems:
        raise CorruptShard(problems[0])


def _planned_reads(store: Store, record: CheckpointRecord, parts: Iterable[Part]) -> list[tuple[str, list[Chunk]]]:
    """Return what to read, as keys and runs of chunks: those that overlap the parts, each once."""
    files_by_name = _listed_chunks(store, record)
    by_file: defaultdict[str, set[Chunk]] = defaultdict(set)
    for part in parts:
        for chunk in overlapping(list(files_by_name[part.name]), part):
            by_file[files_by_name[part.name][chunk]].add(chunk)
    return [(f"{record.folder}/{file}", run) for file, chosen in by_file.items() for run in runs(chosen, _READ_BYTES)]


def _checked(store: Store, reads: Iterable[tuple[str, list[Chunk]]]) -> Iterator[tuple[Chunk, Tensor]]:
    """Read chunks, and yield each with its rows once it is checked; a few reads are ahead."""
    ahead: deque[Future[dict[Chunk, Tensor]]] = deque()
    with ThreadPoolExecutor(_READERS, thread_name_prefix="load") as pool:
        for key, run in reads:
            ahead.append(pool.submit(_read_run, store, key, run))
            if len(ahead) > _READERS:
                yield from ahead.popleft().result().items()
        while ahead:
            yield from ahead.popleft().result().items()


def _listed_chunks(store: Store, record: CheckpointRecord) -> dict[str, dict[Chunk, str]]:
    """Return the chunks of each tensor by name, with their files."""
    found: defaultdict[str, dict[Chunk, str]] = defaultdict(dict)
    for file in record.files:
        if not file.name.endswith(".json"):
            continue
        url = f"{store.url}/{record.folder}/{file.name}"
        body = store.read(f"{record.folder}/{file.name}")
        if sha256_hex(body) != file.sha256:
            raise CorruptShard(f"{url}: digest differs from its commit record")
        for chunk in parse_record(ChunkList, body, url).chunks:
            found[chunk.name][chunk] = f"{file.name.removesuffix('.json')}.chunks"
    return found


def _read_run(store: Store, key: str, run: list[Chunk]) -> dict[Chunk, Tensor]:
    first = run[0].offset
    body = memoryview(store.read_range(key, first, run[-1].offset + run[-1].num_bytes - first))
    found = {}
    for chunk in run:
        piece = body[chunk.offset - first : chunk.offset - first + chunk.num_bytes]
        if blake3(piece).hexdigest() != chunk.blake3:
            raise CorruptShard(
                f"{store.url}/{key}: digest of {chunk.name}, rows {chunk.start} to {chunk.stop}, differs"
            )
        found[chunk] = from_bytes(piece, chunk)
    return found
