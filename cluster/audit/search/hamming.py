"""Exact range search in 256-bit codes, with or without flips: hamming.c, called through ctypes.

Up to radius 31 codes are looked up by their chunks (multi-index hashing, Norouzi et al. 2012); above that every code is
compared. `benchmarks/join.py` has the rates of both.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.base.errors import ConfigError

Codes = npt.NDArray[np.uint8]  # (codes, 32)
Words = npt.NDArray[np.uint64]  # (codes, 4)
Ints = npt.NDArray[np.int64]

_WORDS, _TILE, _CHUNKS, _BUCKETS = 4, 1024, 16, 65_536  # as in hamming.c
_LARGEST_PROBED_RADIUS = 31
_QUERIES_PER_CALL = 65_536
_FIRST_CAPACITY = 1 << 16  # pairs


@cache
def _library() -> Any:
    path = Path(__file__).with_name("_hamming.so")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be loaded ({error}); install this package again") from error
    pointer, number, small = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    output: list[Any] = [pointer, number]
    library.bit_scan.argtypes = [pointer, number, pointer, number, small, small, *output]
    library.bit_probe.argtypes = [pointer, number, pointer, pointer, pointer, number, small, small, *output]
    library.bit_scan.restype = library.bit_probe.restype = number
    return library


def plain_words(codes: Codes) -> Words:
    """Return codes, shape (codes, 32), as words, shape (codes, 4)."""
    return np.ascontiguousarray(codes).view(np.uint64)


@cache
def _even_then_odd() -> npt.NDArray[np.uint8]:
    """Return a table: each byte's bits at even positions (0 is the highest) in the upper half, the others below."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    return np.packbits(np.concatenate([bits[:, 0::2], bits[:, 1::2]], axis=1), axis=1)[:, 0]


def parity_words(codes: Codes) -> Words:
    """Sort the bits of a sign hash by the parities of their frequencies.

    Args:
        codes: As fingerprint returns them, shape (codes, 32).

    Returns:
        Shape (codes, 4): vertical and horizontal frequency both even, horizontal odd, vertical odd, both odd. Mirroring
        the picture complements the second and the fourth word, turning it upside-down the third and the fourth.
    """
    # halves has shape (codes, vertical frequency, byte of 8 horizontal frequencies)
    halves = _even_then_odd()[codes].reshape(len(codes), 16, 2)
    left, right = halves[..., 0], halves[..., 1]
    even, odd = (left & 0xF0) | (right >> 4), (left << 4) | (right & 0x0F)
    words = np.stack([even[:, 0::2], odd[:, 0::2], even[:, 1::2], odd[:, 1::2]], axis=1)
    return np.ascontiguousarray(words).view(np.uint64)[..., 0]


@dataclass(frozen=True)
class HammingIndex:
    """Codes that can be searched; built by `build_index`.

    Attributes:
        num_codes: Number of codes.
        radius: Largest distance of a pair, inclusive, in bits.
        folded: Whether the distance is the least over the four flips; the words are then those of parity_words.
        body: Words of the codes: in the order of the codes for probing, in tiles of planes for comparing all of them.
        starts: For probing, shape (16, 65537): where the codes of each key begin in `ids`; else empty.
        ids: For probing, shape (16, codes): codes by key; else empty.
    """

    num_codes: int
    radius: int
    folded: bool
    body: Words
    starts: npt.NDArray[np.int32]
    ids: npt.NDArray[np.int32]


def build_index(words: Words, radius: int, *, folded: bool) -> HammingIndex:
    """Build an index of codes.

    Args:
        words: Of plain_words, or of parity_words if `folded`.
        radius: See HammingIndex.
        folded: See HammingIndex.
    """
    empty = np.zeros(0, np.int32)
    num_codes = len(words)
    if radius > _LARGEST_PROBED_RADIUS:
        padded = np.zeros((-(-num_codes // _TILE) * _TILE, _WORDS), np.uint64)
        padded[:num_codes] = words
        planes = np.ascontiguousarray(padded.reshape(-1, _TILE, _WORDS).swapaxes(1, 2))
        return HammingIndex(num_codes, radius, folded, planes, empty, empty)
    body = np.ascontiguousarray(words)
    keys = body.view(np.uint16).reshape(num_codes, _CHUNKS).copy()
    if folded:
        keys[:, 4:] = np.minimum(keys[:, 4:], ~keys[:, 4:])
    starts = np.zeros((_CHUNKS, _BUCKETS + 1), np.int32)
    ids = np.empty((_CHUNKS, num_codes), np.int32)
    for chunk in range(_CHUNKS):
        ids[chunk] = np.argsort(keys[:, chunk], kind="stable")
        starts[chunk, 1:] = np.cumsum(np.bincount(keys[:, chunk], minlength=_BUCKETS))
    return HammingIndex(num_codes, radius, folded, body, starts, ids)


def search(index: HammingIndex, queries: Words) -> tuple[Ints, Ints]:
    """Return every pair within the index's radius.

    Args:
        index: See build_index.
        queries: Words of the same kind as the index's, shape (queries, 4).

    Returns:
        (query, code of the index), each of shape (pairs,); each pair once, sorted by query and then by code.
    """
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(queries), _QUERIES_PER_CALL):
        pairs = _search_block(index, np.ascontiguousarray(queries[start : start + _QUERIES_PER_CALL]))
        found.append(np.unique((pairs[:, 0] + start) * index.num_codes + pairs[:, 1]))
    query, code = np.divmod(np.concatenate(found), index.num_codes)
    return query, code


def _search_block(index: HammingIndex, queries: Words) -> Ints:
    capacity = _FIRST_CAPACITY
    while True:
        pairs = np.empty((capacity, 2), np.int64)
        output = (pairs.ctypes.data, capacity)
        query = (queries.ctypes.data, len(queries), index.radius, int(index.folded))
        if len(index.ids):
            tables = (index.body.ctypes.data, index.num_codes, index.starts.ctypes.data, index.ids.ctypes.data)
            count = _library().bit_probe(*tables, *query, *output)
        else:
            count = _library().bit_scan(index.body.ctypes.data, index.num_codes, *query, *output)
        if count <= capacity:
            return pairs[:count]
        capacity = count


def distances(one: Codes, other: Codes) -> Ints:
    """Return the number of differing bits over the last axis, which has 32 bytes."""
    counts: Ints = np.bitwise_count(one ^ other).sum(axis=-1, dtype=np.int64)
    return counts
