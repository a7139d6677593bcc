"""Exact Hamming join of 256-bit codes under all flips and turns, with one best match for each pair of pictures."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cluster.audit.base.tables import ADDRESS_COLUMNS, CANDIDATE_SCHEMA, CLOSE_BITS
from cluster.audit.search.hamming import Codes, HammingIndex, Ints, Words, build_index, distances, parity_words, search
from pipeline.image.fingerprint import CODE_BYTES, dihedral_codes

JOIN_VERSION = 3  # raised with every change of what candidates, cap_hubs, shard_matches and proposals return
VARIANTS_COLUMN = "variant_codes"
CROPS_COLUMN = "crop_codes"
INSETS_COLUMN = "inset_codes"
# One of many parts is near by chance more often than one of few variants. It proposes a pair, and proves nothing.
_LEAST_PART_BITS = CLOSE_BITS + 1
_MORE_CROP_BITS = 4  # beyond the radius: of 7.5 M pairs of different pictures 1,927 are candidates, without crops 1,627
_TRANSPOSED = 4  # the element of DIHEDRAL that swaps rows and columns only
TIE_COLUMN = "tie"
_PAIRS_PER_STEP = 1 << 18
_CODES_PER_STEP = 1 << 14  # whose eight turned ones are in memory, 4 MiB; a choice


def codes_of(samples: pa.Table, name: str = "code") -> Codes:
    """Return a column of 32-byte binaries as an array of shape (samples, 32).

    Raises:
        ValueError: A code is missing.
    """
    column = samples[name].cast(pa.binary(CODE_BYTES)).combine_chunks()
    if column.null_count:
        raise ValueError(f"{column.null_count} of {len(column)} values of {name} are missing")
    array = column.chunk(0) if isinstance(column, pa.ChunkedArray) and column.num_chunks else column
    if not len(array):
        return np.zeros((0, CODE_BYTES), np.uint8)
    whole = np.frombuffer(array.buffers()[1], np.uint8).reshape(-1, CODE_BYTES)
    return whole[array.offset : array.offset + len(array)]


def is_first_of_run(*columns: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which rows differ from the row before in any of the columns, which have one length; the first does."""
    first = np.ones(len(columns[0]), bool)
    first[1:] = np.any([np.diff(column) != 0 for column in columns], axis=0)
    return first


def is_itself(pairs: pa.Table) -> npt.NDArray[np.bool_]:
    """Return which pairs, by their addresses, are of a picture with itself."""
    up_shard, up_row, down_shard, down_row = (pairs[name].to_numpy() for name in ADDRESS_COLUMNS)
    return np.asarray((up_shard == down_shard) & (up_row == down_row), bool)


@dataclass(frozen=True)
class DownstreamIndex:
    """The downstream side of a join; built by `index_downstream`, read by any number of joins.

    Attributes:
        addresses: shard and row of each downstream picture.
        codes: Own and variant codes of all pictures, shape (codes, 32).
        owner: Number of the downstream picture of each code.
        index: Of the codes, and for own and variant codes of those of the transposed pictures, folded.
        least_bits: What smaller distances count as.
        most_bits: What larger distances count as: the radius of the join.
    """

    addresses: pa.Table
    codes: Codes
    owner: Ints
    index: HammingIndex
    least_bits: int
    most_bits: int


def index_downstream(downstream: pa.Table, radius: int) -> DownstreamIndex:
    """Build the index of the downstream side of a join.

    Args:
        downstream: Has shard, row, code, and may have `variant_codes`: lists of further codes of a picture, as
            variants.variant_codes returns them.
        radius: Largest distance, inclusive, in bits.
    """
    codes, owner = codes_of(downstream), np.arange(downstream.num_rows)
    if VARIANTS_COLUMN in downstream.column_names:
        counts = pc.list_value_length(downstream[VARIANTS_COLUMN]).to_numpy()
        more = codes_of(pa.table({"code": pc.list_flatten(downstream[VARIANTS_COLUMN])}))
        codes, owner = np.concatenate([codes, more]), np.concatenate([owner, np.repeat(owner, counts)])
    words = [_words(codes), _words(codes, _TRANSPOSED)]
    index = build_index(np.concatenate(words), radius, folded=True)
    return DownstreamIndex(downstream.select(["shard", "row"]), codes, owner, index, 0, radius)


def index_crops(downstream: pa.Table, radius: int) -> DownstreamIndex:
    """Build an index of the crops of downstream pictures, under all flips, but not turned.

    Args:
        downstream: Has shard, row and `crop_codes`: the codes of a picture one after the other.
        radius: Largest distance, inclusive, in bits.
    """
    bodies = downstream[CROPS_COLUMN].to_pylist()
    codes = np.frombuffer(b"".join(bodies), np.uint8).reshape(-1, CODE_BYTES)
    owner = np.repeat(np.arange(len(bodies)), [len(body) // CODE_BYTES for body in bodies])
    index = build_index(_words(codes), radius + _MORE_CROP_BITS, folded=True)
    return DownstreamIndex(downstream.select(["shard", "row"]), codes, owner, index, _LEAST_PART_BITS, radius)


def _words(codes: Codes, element: int = 0) -> Words:
    """Return the words of pictures under an element of DIHEDRAL: see parity_words."""
    words = np.empty((len(codes), CODE_BYTES // 8), np.uint64)
    for start in range(0, len(codes), _CODES_PER_STEP):
        step = slice(start, start + _CODES_PER_STEP)
        words[step] = parity_words(dihedral_codes(codes[step])[element] if element else codes[step])
    return words


def index_wholes(downstream: pa.Table, radius: int) -> DownstreamIndex:
    """Build an index of the downstream pictures as they are, with which parts of upstream pictures are compared.

    Args:
        downstream: Has shard, row, code.
        radius: Largest distance, inclusive, in bits.
    """
    return replace(index_downstream(downstream.select(["shard", "row", "code"]), radius), least_bits=_LEAST_PART_BITS)


def candidates(upstream: pa.Table, downstream: pa.Table | DownstreamIndex, radius: int) -> pa.Table:
    """Join two sets of samples under all eight flips and turns.

    Args:
        upstream: Has shard, row, code.
        downstream: The smaller side, as index_downstream takes it, or its index, which several joins can share.
        radius: Largest distance, inclusive, in bits.

    Returns:
        Table of CANDIDATE_SCHEMA with one row for each pair of pictures: its smallest distance and the first element
        of fingerprint.DIHEDRAL that reaches it, applied to the downstream picture. Sorted by addresses.

    Raises:
        ValueError: The index was built for another radius.
    """
    side = downstream if isinstance(downstream, DownstreamIndex) else index_downstream(downstream, radius)
    if side.most_bits != radius:
        raise ValueError(f"the index was built for radius {side.most_bits}, the join is at {radius}")
    up_codes = codes_of(upstream)
    up, entry = search(side.index, parity_words(up_codes))
    code = entry % len(side.codes)
    best = np.empty((2, len(up)), np.int64)  # distance, element
    for start in range(0, len(up), _PAIRS_PER_STEP):
        step = slice(start, start + _PAIRS_PER_STEP)
        turned = distances(dihedral_codes(side.codes[code[step]]), up_codes[up[step]])
        best[:, step] = turned.min(axis=0).clip(side.least_bits, side.most_bits), turned.argmin(axis=0)
    down, (distance, element) = side.owner[code], best
    order = np.lexsort((element, distance, down, up))
    kept = order[is_first_of_run(up[order], down[order])]
    columns = [
        *(upstream[name].take(pa.array(up[kept])) for name in ("shard", "row")),
        *(side.addresses[name].take(pa.array(down[kept])) for name in ("shard", "row")),
        pa.chunked_array([pa.array(distance[kept].astype(np.int16))]),
        pa.chunked_array([pa.array(element[kept].astype(np.int8))]),
    ]
    table = pa.table([column.combine_chunks() for column in columns], schema=CANDIDATE_SCHEMA)
    return table.sort_by([(name, "ascending") for name in ADDRESS_COLUMNS])


def closest(tables: Iterable[pa.Table]) -> pa.Table:
    """Return one row for each pair of pictures in any of several tables of CANDIDATE_SCHEMA: its smallest distance."""
    pairs = pa.concat_tables([CANDIDATE_SCHEMA.empty_table(), *tables])
    ordered = pairs.sort_by([(name, "ascending") for name in CANDIDATE_SCHEMA.names])
    return ordered.filter(pa.array(is_first_of_run(*(ordered[name].to_numpy() for name in ADDRESS_COLUMNS))))


def cap_hubs(
    pairs: pa.Table, most: int, by: Literal["distance", "cosine"] = "distance"
) -> tuple[pa.Table, dict[tuple[int, int], int]]:
    """Keep the `most` closest upstream matches of each downstream picture.

    Args:
        pairs: Has the addresses and the column `by`, and may have `tie`: numbers of the upstream pictures.
        most: Matches of one picture.
        by: What is close: a small distance, or a large cosine. Ties go by `tie`, then by upstream address.

    Returns:
        The kept pairs, sorted by downstream address and then from the closest on, and the number of matches of each
        picture that has more.
    """
    closest_first = "ascending" if by == "distance" else "descending"
    order = {"down_shard": "ascending", "down_row": "ascending", by: closest_first, TIE_COLUMN: "ascending",
             "up_shard": "ascending", "up_row": "ascending"}  # fmt: skip
    ordered = pairs.sort_by([(name, way) for name, way in order.items() if name in pairs.column_names])
    if not ordered.num_rows:
        return ordered, {}
    shard, row = (ordered[name].to_numpy() for name in ("down_shard", "down_row"))
    begins = np.flatnonzero(is_first_of_run(shard, row))
    counts = np.diff(np.append(begins, len(shard)))
    rank = np.arange(len(shard)) - np.repeat(begins, counts)
    full = counts > most
    keys = zip(shard[begins[full]].tolist(), row[begins[full]].tolist(), strict=True)
    return ordered.filter(pc.less(pa.array(rank), most)), dict(zip(keys, counts[full].tolist(), strict=True))
