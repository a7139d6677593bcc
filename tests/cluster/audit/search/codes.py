"""Random codes for tests of the search."""

import numpy as np
import pyarrow as pa

from pipeline.image.fingerprint import CODE_BYTES


def random_codes(count: int, seed: int) -> np.ndarray:
    """Return codes, shape (count, 32); random ones are about 128 bits apart."""
    codes = np.random.default_rng(seed).integers(0, 256, (count, CODE_BYTES), dtype=np.uint8)
    codes[:, 0] &= 0x7F  # the constant frequency's bit is never set
    return codes


def flipped(code: np.ndarray, num_bits: int, seed: int) -> np.ndarray:
    """Return the code with so many of its other 255 bits flipped."""
    bits = np.unpackbits(code)
    bits[1 + np.random.default_rng(seed).choice(255, num_bits, replace=False)] ^= 1
    return np.packbits(bits)


def code_table(codes: np.ndarray, shard: int = 0) -> pa.Table:
    """Return the codes as samples of one shard."""
    columns = [
        pa.array(np.full(len(codes), shard, np.int32)),
        pa.array(np.arange(len(codes), dtype=np.int32)),
        pa.array([code.tobytes() for code in codes], pa.binary(CODE_BYTES)),
    ]
    return pa.table(columns, names=["shard", "row", "code"])
