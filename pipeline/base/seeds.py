"""Random numbers as pure functions of named keys.

Every random decision is keyed by (seed, purpose, coordinates...), hashed, never by arithmetic on seeds:
`seed + epoch` makes seed 7 epoch 1 equal to seed 8 epoch 0.
"""

import hashlib
import struct
from functools import lru_cache

import numpy as np
from xxhash import xxh3_64_intdigest


def key128(seed: int, *parts: str | int) -> int:
    """Return the 128-bit key of (seed, parts): equal keys only for equal arguments, types included."""
    text = "\x1f".join([f"i{seed}", *(f"{'i' if isinstance(part, int) else 's'}{part}" for part in parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def rng(seed: int, *parts: str | int) -> np.random.Generator:
    """Return an independent Philox generator for (seed, parts)."""
    return np.random.Generator(np.random.Philox(key=key128(seed, *parts)))


class Uniform:
    """Numbers in [0, 1) as a function of a key and of how many were drawn before.

    For a few draws a sample: seeding Python's or numpy's generator takes longer than drawing these.
    """

    __slots__ = ("_drawn", "_key")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._drawn = 0

    def random(self) -> float:
        """Return the next number, of 53 random bits."""
        self._drawn += 1
        return (xxh3_64_intdigest(self._key, self._drawn) >> 11) * 2.0**-53


def sample_uniform(seed: int, purpose: str, source: int, epoch: int, shard: int, row: int) -> Uniform:
    """Return the randomness of one sample in one epoch of its source."""
    return Uniform(_epoch_key(seed, purpose, source, epoch) + struct.pack("<qq", shard, row))


@lru_cache(maxsize=1024)
def _epoch_key(seed: int, purpose: str, source: int, epoch: int) -> bytes:
    return key128(seed, purpose, source, epoch).to_bytes(16, "little")
