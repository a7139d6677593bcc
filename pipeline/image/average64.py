"""The 64x64 averages of a grey picture: average64.c, through ctypes.

Pillow's box filter rounds to whole grey values after each of its two passes and takes five times as long (160 us for a
photo of 500x375, `benchmarks/fingerprint.py`).
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.base.errors import ConfigError

SIDE = 64  # pixels of the result
UNITS = 256  # of the result, in one step of grey
MOST_PX = 65_535  # a side


@cache
def _library() -> Any:
    path = Path(__file__).with_name("_average64.so")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be loaded ({error}); install this package again") from error
    pointer, number = ctypes.c_void_p, ctypes.c_long
    library.bit_average_64.argtypes = [pointer, number, number, pointer, pointer, pointer]
    library.bit_average_64.restype = None
    return library


def average64(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    """Return the averages of 64x64 equal parts, which may cut through pixels. Releases the GIL.

    Args:
        grey: Shape (height, width), sides of 64 to MOST_PX pixels.

    Returns:
        Shape (64, 64), in 256ths of a grey value, 0..65280; rounded half up from the exact average.
    """
    height, width = grey.shape
    if not SIDE <= min(height, width) <= max(height, width) <= MOST_PX:
        raise ValueError(f"sides of {SIDE} to {MOST_PX} pixels are averaged, not {width}x{height}")
    grey = np.ascontiguousarray(grey)
    sums, before = np.empty(width, np.uint32), np.empty(width + 1, np.uint64)
    out = np.empty((SIDE, SIDE), np.uint16)
    _library().bit_average_64(grey.ctypes.data, height, width, sums.ctypes.data, before.ctypes.data, out.ctypes.data)
    return out
