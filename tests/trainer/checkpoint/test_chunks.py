"""Chunks of tensors: whatever ranks wrote them, any part comes back, and only what overlaps it is read."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from pipeline.base.errors import CorruptShard
from pipeline.store.url import open_store
from trainer.checkpoint import chunks, sharded
from trainer.checkpoint.chunks import Chunk, Part, as_bytes, cut, from_bytes, overlapping, own_parts, runs
from trainer.checkpoint.record import latest
from trainer.checkpoint.sharded import load, save
from trainer.step.ranks import alone


def chunk(start: int, stop: int, shape: tuple[int, ...] = (10, 2)) -> Chunk:
    return Chunk(name="a", dtype="float32", shape=shape, start=start, stop=stop, offset=0, num_bytes=0, blake3="")


@given(
    num_rows=st.integers(1, 40),
    borders=st.lists(st.integers(1, 39), max_size=6),
    first=st.integers(0, 39),
    count=st.integers(1, 40),
)
def test_any_rows_are_found_in_the_chunks_that_overlap_them_and_in_no_others(
    num_rows: int, borders: list[int], first: int, count: int
) -> None:
    edges = sorted({0, num_rows, *(border for border in borders if border < num_rows)})
    stored = [chunk(start, stop, (num_rows, 2)) for start, stop in pairwise(edges)]
    first = min(first, num_rows - 1)
    part = Part("a", torch.empty(min(count, num_rows - first), 2), (num_rows, 2), first)
    found = overlapping(stored[::-1], part)
    covered = {row for each in found for row in range(each.start, each.stop)}
    wanted = set(range(first, first + part.rows.shape[0]))
    assert wanted <= covered
    assert all(wanted & set(range(each.start, each.stop)) for each in found)


@pytest.mark.parametrize("stored", [[], [chunk(0, 4)], [chunk(0, 4), chunk(5, 10)], [chunk(0, 10, (10, 3))]])
def test_missing_rows_and_other_shapes_are_refused(stored: list[Chunk]) -> None:
    with pytest.raises(CorruptShard, match=r"lacks rows|has shape"):
        overlapping(stored, Part("a", torch.empty(10, 2), (10, 2), 0))


@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=12), num_ranks=st.integers(1, 5))
def test_of_tensors_that_all_ranks_hold_each_is_written_once_and_the_bytes_are_shared(
    sizes: list[int], num_ranks: int
) -> None:
    state = {f"tensor{number:02d}": torch.zeros(size) for number, size in enumerate(sizes)}
    written = [part.name for rank in range(num_ranks) for part in own_parts(state, rank, num_ranks)]
    assert sorted(written) == sorted(state)
    loads = [sum(part.rows.nbytes for part in own_parts(state, rank, num_ranks)) for rank in range(num_ranks)]
    assert max(loads) - min(loads) <= 4 * max(sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_values_come_back_bit_for_bit_in_any_memory_format(dtype: torch.dtype) -> None:
    tensor = torch.randn(4, 3, 5, 5).to(dtype).to(memory_format=torch.channels_last)
    stored = Chunk(
        name="a", dtype=str(dtype).removeprefix("torch."), shape=tuple(tensor.shape), start=1, stop=3, offset=0,
        num_bytes=0, blake3="",
    )  # fmt: skip
    assert torch.equal(from_bytes(bytes(as_bytes(tensor[1:3])), stored), tensor[1:3])


def test_a_part_is_cut_into_chunks_of_about_the_size_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 100)
    rows = Part("a", torch.zeros(10, 8), (10, 8), 0)  # 32 bytes a row
    assert list(cut(rows)) == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert list(cut(Part("a", torch.zeros(2, 400), (2, 400), 0))) == [(0, 1), (1, 2)]


@given(num_rows=st.integers(0, 3000), num_ranks=st.sampled_from([2, 4, 8]), row_bytes=st.sampled_from([4, 400, 9000]))
def test_ranks_that_share_a_tensor_read_whole_chunks_of_their_own_rows(
    num_rows: int, num_ranks: int, row_bytes: int
) -> None:
    pieces = list(cut(Part("a", torch.zeros(num_rows, row_bytes // 4), (num_rows, row_bytes // 4), 0)))
    assert [row for start, stop in pieces for row in range(start, stop)] == list(range(num_rows))
    assert all(start < stop for start, stop in pieces)
    if num_rows * row_bytes > 64 << 10 and num_rows % 8 == 0:  # else rows do not part evenly, or are few
        bounds = {start for start, _ in pieces}
        assert bounds >= set(range(0, num_rows, num_rows // num_ranks))


def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "model/kernel": torch.randn(64, 8, 3, 3, generator=generator).to(memory_format=torch.channels_last),
        "model/count": torch.tensor(7),
        "momentum/kernel": torch.randn(64, 8, 3, 3, generator=generator),
    }


@pytest.mark.parametrize("held_bytes", [1 << 30, 0], ids=["held", "read twice"])
def test_one_flipped_byte_anywhere_is_found_before_the_model_is_touched(
    tmp_path: Path, held_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharded, "_HELD_BYTES", held_bytes)
    store = open_store(str(tmp_path))
    save(store, alone(), state(), step=1, attempt="a", stream={}, about={})
    record = latest(store)
    path = tmp_path / record.folder / "rank0.chunks"
    whole = path.read_bytes()
    blank = {name: torch.zeros_like(value) for name, value in state().items()}
    for place in range(0, len(whole), len(whole) // 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CorruptShard, match="digest of"):
            load(store, alone(), record, blank)
        assert all(not value.any() for value in blank.values())
    path.write_bytes(whole)
    load(store, alone(), record, blank)
    for name, value in state().items():
        assert torch.equal(blank[name], value)


def test_what_changes_between_its_check_and_its_use_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded, "_HELD_BYTES", 0)
    store = open_store(str(tmp_path))
    save(store, alone(), state(), step=1, attempt="a", stream={}, about={})
    record = latest(store)
    path = tmp_path / record.folder / "rank0.chunks"
    checked = sharded._checked

    def then_damaged(*arguments: object) -> list[tuple[Chunk, Tensor]]:
        found = list(checked(*arguments))
        path.write_bytes(b"\0" * path.stat().st_size)
        return found

    monkeypatch.setattr(sharded, "_checked", then_damaged)
    with pytest.raises(CorruptShard, match="digest of"):
        load(store, alone(), record, state())


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=20), most=st.integers(1, 30), data=st.data())
def test_runs_hold_every_chunk_once_side_by_side_and_no_more_than_wanted(
    sizes: list[int], most: int, data: st.DataObject
) -> None:
    offsets = [sum(sizes[:number]) for number in range(len(sizes))]
    whole = [
        chunk(number, number + 1, (len(sizes), 1)).model_copy(update={"offset": offset, "num_bytes": size})
        for number, (offset, size) in enumerate(zip(offsets, sizes, strict=True))
    ]
    chosen = [each for each in whole if data.draw(st.booleans())]
    found = list(runs(chosen[::-1], most))
    assert [each for run in found for each in run] == chosen
    for run in found:
        assert all(one.offset + one.num_bytes == other.offset for one, other in pairwise(run))
        assert len(run) == 1 or sum(each.num_bytes for each in run) <= most


def test_a_load_reads_what_it_needs_and_no_more(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    save(store, alone(), state(), step=1, attempt="a", stream={}, about={})
    record = latest(store)
    ranges: list[int] = []
    read_range = store.read_range
    store.read_range = lambda key, offset, count: ranges.append(count) or read_range(key, offset, count)
    load(store, alone(), record, {"model/kernel": torch.zeros(64, 8, 3, 3)})
    assert sum(ranges) == 64 * 8 * 9 * 4


def test_a_tensor_that_is_not_there_is_named(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    save(store, alone(), state(), step=1, attempt="a", stream={}, about={})
    with pytest.raises(CorruptShard, match="lacks rows 0 to 3 of model/other"):
        load(store, alone(), latest(store), {"model/other": torch.zeros(3)})


@given(
    shapes=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 5)), min_size=1, max_size=6),
    num_ranks=st.integers(1, 9),
)
def test_tensors_larger_than_a_share_are_divided_and_every_row_is_written_once(
    shapes: list[tuple[int, int]], num_ranks: int
) -> None:
    state = {
        f"tensor{number}": torch.arange(float(math.prod(shape))).reshape(shape) for number, shape in enumerate(shapes)
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "_LEAST_SHARE_BYTES", 16)
        written = [part for rank in range(num_ranks) for part in own_parts(state, rank, num_ranks)]
        loads = [sum(part.rows.nbytes for part in own_parts(state, rank, num_ranks)) for rank in range(num_ranks)]
    for name, tensor in state.items():
        pieces = sorted((part for part in written if part.name == name), key=lambda part: part.start)
        assert torch.equal(torch.cat([part.rows for part in pieces]), tensor)
        assert all(part.shape == tuple(tensor.shape) for part in pieces)
    row = max(4 * shape[1] for shape in shapes)
    assert max(loads) <= 2 * max(16, sum(loads) // num_ranks) + row


def test_a_checkpoint_in_pieces_of_many_ranks_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "_LEAST_SHARE_BYTES", 64)
    store, state = open_store(str(tmp_path)), {"a": torch.randn(50, 7), "b": torch.randn(3), "c": torch.tensor(2.0)}
    files = [
        file
        for rank in range(5)
        for file in sharded.write_parts(store, "checkpoints/1-x", rank, own_parts(state, rank, 5))
    ]
    sharded.commit(store, 1, "checkpoints/1-x", files, {}, {})
    loaded = {name: torch.zeros_like(value) for name, value in state.items()}
    load(store, alone(), latest(store), loaded)
    assert all(torch.equal(loaded[name], state[name]) for name in state)
