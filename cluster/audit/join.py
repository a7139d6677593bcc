"""Exact Hamming join of 256-bit codes, and its reduction to one best match for each pair of pictures."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.fingerprint import CODE_BYTES, dihedral_codes

# Of two hundred photos no two different ones are closer than 89 bits; crops to 95 % are up to 51 at the 95th percentile
# (docs/decisions/0003-sign-hash.md). FAISS's flat index costs the same at any radius.
DEFAULT_RADIUS = 62
_QUERIES_PER_CALL = 8192

CANDIDATE_SCHEMA = pa.schema(
    [
        ("up_shard", pa.int32()),
        ("up_row", pa.int32()),
        ("down_shard", pa.int32()),
        ("down_row", pa.int32()),
        ("distance", pa.int16()),
        ("element", pa.int8()),
    ]
)

Codes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


def codes_of(samples: pa.Table) -> Codes:
    """Gives the `code` column as an array of shape (samples, 32)."""
    joined = b"".join(samples["code"].to_pylist())
    return np.frombuffer(joined, np.uint8).reshape(-1, CODE_BYTES)


def hamming_pairs(indexed: Codes, queries: Codes, radius: int) -> tuple[Ints, Ints, Ints]:
    """Gives every pair of codes at most `radius` bits apart.

    Args:
        indexed: Shape (indexed, 32).
        queries: Shape (queries, 32).
        radius: Largest distance, inclusive, in bits.

    Returns:
        (query index, indexed index, distance), each of shape (pairs,), by query and then by index.
    """
    import faiss  # noqa: PLC0415 - half a second that `--help` need not pay

    index = faiss.IndexBinaryFlat(8 * CODE_BYTES)
    index.add(np.ascontiguousarray(indexed))
    # Empty arrays in front keep the types where there is no query.
    found: list[tuple[Ints, Ints, Ints]] = [(np.zeros(0, np.int64),) * 3]
    for start in range(0, len(queries), _QUERIES_PER_CALL):
        chunk = np.ascontiguousarray(queries[start : start + _QUERIES_PER_CALL])
        limits, distances, ids = index.range_search(chunk, radius + 1)  # FAISS's radius is exclusive
        rows = np.repeat(np.arange(len(chunk)), np.asarray(np.diff(limits), np.int64)) + start
        found.append((rows, np.asarray(ids, np.int64), np.asarray(distances, np.int64)))
    query, match, distance = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((match, query))
    return query[order], match[order], distance[order]


def candidates(upstream: pa.Table, downstream: pa.Table, radius: int) -> pa.Table:
    """Joins two sets of samples under all eight flips and turns.

    Args:
        upstream: Has shard, row, code.
        downstream: Has shard, row, code; this side is indexed with its variants.
        radius: See hamming_pairs.

    Returns:
        Table of CANDIDATE_SCHEMA with one row for each pair of pictures: its smallest distance and the first element
        of fingerprint.DIHEDRAL that reaches it, applied to the downstream picture. Sorted by addresses.
    """
    num_down = downstream.num_rows
    variants = dihedral_codes(codes_of(downstream)).reshape(-1, CODE_BYTES)
    up, match, distance = hamming_pairs(variants, codes_of(upstream), radius)
    element, down = (match // num_down, match % num_down) if num_down else (match, match)
    order = np.lexsort((element, distance, down, up))
    up, down, distance, element = up[order], down[order], distance[order], element[order]
    first = np.ones(len(up), bool)
    first[1:] = (up[1:] != up[:-1]) | (down[1:] != down[:-1])
    up, down, distance, element = up[first], down[first], distance[first], element[first]
    columns = [
        upstream["shard"].take(pa.array(up)),
        upstream["row"].take(pa.array(up)),
        downstream["shard"].take(pa.array(down)),
        downstream["row"].take(pa.array(down)),
        pa.array(distance.astype(np.int16)),
        pa.array(element.astype(np.int8)),
    ]
    arrays = [column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column for column in columns]
    table = pa.table(arrays, schema=CANDIDATE_SCHEMA)
    return table.sort_by([(name, "ascending") for name in CANDIDATE_SCHEMA.names[:4]])


def cap_hubs(pairs: pa.Table, most: int) -> tuple[pa.Table, dict[tuple[int, int], int]]:
    """Keeps the `most` closest upstream matches of each downstream picture.

    Returns:
        The kept pairs, and the number of matches of each picture that had more.
    """
    order = [("down_shard", "ascending"), ("down_row", "ascending"), ("distance", "ascending"),
             ("up_shard", "ascending"), ("up_row", "ascending")]  # fmt: skip
    ordered = pairs.sort_by(order)
    keys = list(zip(ordered["down_shard"].to_pylist(), ordered["down_row"].to_pylist(), strict=True))
    counts: dict[tuple[int, int], int] = {}
    keep = []
    for key in keys:
        counts[key] = counts.get(key, 0) + 1
        keep.append(counts[key] <= most)
    return ordered.filter(pa.array(keep, pa.bool_())), {key: count for key, count in counts.items() if count > most}
