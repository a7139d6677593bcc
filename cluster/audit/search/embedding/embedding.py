"""Candidates by embedding: pairs whose vectors are nearer than those of other pictures, of the whole or of parts.

Embeddings find copies that a hash of the whole picture misses: crops, borders, overlays, collages. All pairs of vectors
are compared. How near a copy is depends on what is left of the picture, and how near others are on the picture: what
counts is how far a cosine stands above those of the nearest others, as in the descriptor track of ISC21 (Yokoo 2021;
there the others are a set of their own, here they are the rest of the downstream side), and the pair's rank.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cluster.audit.base.tables import ADDRESS_COLUMNS
from cluster.audit.search.embedding.models import DIMENSIONS, Nearness, Vectors
from cluster.audit.search.join import is_first_of_run, is_itself

EMBEDDING_VERSION = 3  # raised with every change of which pairs are candidates
VIEW_COLUMN = "view"  # number of the part of the picture; 0 is the whole
_NUM_OTHERS = 10  # nearest other pictures, whose mean cosine is the background of a pair
_MOST_OF_UPSTREAM = 5  # downstream pictures that may be candidates of one upstream picture, unless sure or equal
_ROUNDING = 1e-3  # by which a product of matrices may differ from the cosine
_VECTORS_PER_STEP = 64  # of the upstream side; with 100,000 of the other their products take 26 MB
_PICTURES_PER_STEP = 512  # of the upstream side; a choice
_PAIRS_PER_STEP = 8192  # whose vectors are copied: 17 MB
COSINE_SCHEMA = pa.schema([*((name, pa.int32()) for name in ADDRESS_COLUMNS), ("cosine", pa.float32())])


@dataclass(frozen=True)
class ViewVectors:
    """The vectors of a set, a row for each part of a picture.

    Attributes:
        shard: Of the picture, int32, shape (rows,).
        row: Of the picture in its shard, likewise.
        view: Number of the part, 0 the whole.
        vectors: Unit vectors, float32, shape (rows, 256).
    """

    shard: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    view: npt.NDArray[np.int8]
    vectors: Vectors

    @classmethod
    def of(cls, table: pa.Table) -> "ViewVectors":
        """Return the rows of a table with shard, row, view, vector (list of 256 float16)."""
        flat = pc.list_flatten(table["vector"]).to_numpy()
        vectors = np.asarray(flat, np.float32).reshape(-1, DIMENSIONS)
        shard, row, view = (table[name].to_numpy() for name in ("shard", "row", VIEW_COLUMN))
        return cls(shard, row, view, vectors)

    @classmethod
    def joined(cls, parts: Sequence["ViewVectors"]) -> "ViewVectors":
        """Return the rows of all parts, of which there is one at least."""
        columns = ([getattr(part, name) for part in parts] for name in ("shard", "row", "view", "vectors"))
        return cls(*map(np.concatenate, columns))

    def taken(self, rows: npt.NDArray[np.bool_] | slice) -> "ViewVectors":
        """Return some rows: a slice, or those where a mask is true."""
        return ViewVectors(self.shard[rows], self.row[rows], self.view[rows], self.vectors[rows])


def view_candidates(
    upstream: ViewVectors, downstream: ViewVectors, nearness: Nearness, *, is_within: bool = False
) -> pa.Table:
    """Return the pairs that are near, as whole pictures, or as a whole one and a part of the other.

    Args:
        upstream: Vectors of a shard.
        downstream: Vectors of the whole other side.
        nearness: What near means for the model.
        is_within: Whether both sides are one set, where a picture is no candidate of itself.

    Returns:
        Table of COSINE_SCHEMA, each pair of addresses once, at its largest cosine, sorted by addresses. The pairs of an
        upstream picture depend on it and on the downstream side alone.
    """
    wholes = downstream.taken(downstream.view == 0)
    begins = np.flatnonzero(is_first_of_run(upstream.shard, upstream.row))[::_PICTURES_PER_STEP]
    found = [COSINE_SCHEMA.empty_table()]
    # Pairs that are near and do not stand out are very many: those of some pictures at a time are in memory.
    for begin, end in pairwise([*begins, len(upstream.row)]):
        some = upstream.taken(slice(begin, end))
        for up, down in ((some.taken(some.view == 0), downstream), (some.taken(some.view != 0), wholes)):
            near = _pairs(up, down, nearness)
            found.append(_standing_out(near.filter(pa.array(~is_itself(near))) if is_within else near, nearness))
    return each_once(pa.concat_tables(found))


def each_once(pairs: pa.Table) -> pa.Table:
    """Return each pair of addresses of a table of COSINE_SCHEMA once, at its largest cosine, sorted by addresses."""
    ordered = pairs.sort_by([*((name, "ascending") for name in ADDRESS_COLUMNS), ("cosine", "descending")])
    return ordered.filter(pa.array(is_first_of_run(*(ordered[name].to_numpy() for name in ADDRESS_COLUMNS))))


def _pairs(upstream: ViewVectors, downstream: ViewVectors, nearness: Nearness) -> pa.Table:
    """Return the nearest pictures of each upstream one, and all sure ones, each once, at its largest cosine.

    Returns:
        Table of COSINE_SCHEMA, with all that `_standing_out` looks at. An upstream picture itself may be among them.
    """
    views = 1 + int(downstream.view.max(initial=0))
    steps = list(_near_rows(upstream.vectors, downstream.vectors, nearness, (_NUM_OTHERS + 2) * views))
    up, down = (np.concatenate([np.zeros(0, np.int64), *(step[side] for step in steps)]) for side in (0, 1))
    cosines = np.concatenate([np.zeros(0, np.float32), *(step[2] for step in steps)])
    columns = [upstream.shard[up], upstream.row[up], downstream.shard[down], downstream.row[down]]
    order = np.lexsort((-cosines, *columns[::-1]))
    kept = order[is_first_of_run(*(column[order] for column in columns))]
    arrays = [*(column[kept] for column in columns), cosines[kept].astype(np.float32)]
    return pa.table([pa.array(array) for array in arrays], schema=COSINE_SCHEMA)


def _near_rows(
    up: Vectors, down: Vectors, nearness: Nearness, most: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Vectors]]:
    """Yield rows of both sides and their cosines: at least the `most` nearest of each upstream row, and all sure ones.

    They come some pairs at a time, and have at least the least cosine that is near.
    """
    for start in range(0, len(up), _VECTORS_PER_STEP):
        products = up[start : start + _VECTORS_PER_STEP] @ down.T
        rows, others = np.nonzero(products >= nearness.cosine_from - _ROUNDING)
        values = products[rows, others]
        nearest = values >= np.minimum(_least_of_most(rows, values, most), nearness.sure_from) - 2 * _ROUNDING
        rows, others = rows[nearest], others[nearest]
        for first in range(0, len(rows), _PAIRS_PER_STEP):
            some, their = rows[first : first + _PAIRS_PER_STEP] + start, others[first : first + _PAIRS_PER_STEP]
            # One by one: how a product of matrices rounds a number depends on their shapes.
            cosines = np.einsum("ij,ij->i", up[some], down[their])
            near = cosines >= nearness.cosine_from
            yield some[near], their[near], cosines[near]


def _least_of_most(rows: npt.NDArray[np.int64], values: Vectors, most: int) -> Vectors:
    """Return for each value the least of the `most` largest ones in its row, -1 where it has no more; rows ascend."""
    begins = np.flatnonzero(is_first_of_run(rows))
    ends = np.append(begins[1:], len(rows))[: len(begins)]
    least = np.full(len(begins), -1, np.float32)
    for number in np.flatnonzero(ends - begins > most):
        own = values[begins[number] : ends[number]]
        least[number] = np.partition(own, len(own) - most)[len(own) - most]
    return np.repeat(least, ends - begins)


def _standing_out(pairs: pa.Table, nearness: Nearness) -> pa.Table:
    """Keep the pairs of each upstream picture that stand out from the rest of them, and sure ones."""
    up, down = ADDRESS_COLUMNS[:2], ADDRESS_COLUMNS[2:]
    ordered = pairs.sort_by([*((name, "ascending") for name in up), ("cosine", "descending"),
                             *((name, "ascending") for name in down)])  # fmt: skip
    if not ordered.num_rows:
        return ordered
    cosines = ordered["cosine"].to_numpy().astype(np.float64)
    begins = np.flatnonzero(is_first_of_run(*(ordered[name].to_numpy() for name in up)))
    counts = np.diff(np.append(begins, len(cosines)))
    picture = np.repeat(np.arange(len(begins)), counts)
    place = np.arange(len(cosines)) - begins[picture]
    nearest = np.full((len(begins), _NUM_OTHERS + 1), nearness.cosine_from)
    first = place <= _NUM_OTHERS
    nearest[picture[first], place[first]] = cosines[first]
    ties = np.flatnonzero(is_first_of_run(picture, cosines))
    rank = np.repeat(place[ties], np.diff(np.append(ties, len(place))))  # equal ones have the rank of their first
    background = (nearest.sum(axis=1)[picture] - cosines) / _NUM_OTHERS
    stands_out = (rank < _MOST_OF_UPSTREAM) & (cosines - background >= nearness.margin)
    return ordered.filter(pa.array(stands_out | (cosines >= nearness.sure_from)))
