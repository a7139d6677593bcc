"""Decodes photos with our Huffman decoder (pipeline/image/jpeg_region/huffman.h), beside libjpeg's and PyTurboJPEG.

    pip install --no-deps --target PEER PyTurboJPEG
    PYTHONPATH=PEER python benchmarks/huffman.py FOLDER [--rounds N] [--turbojpeg LIBRARY]

FOLDER holds JPEG files; they are read into memory first. LIBRARY is a libturbojpeg of release 3, which PyTurboJPEG
needs; without it PyTurboJPEG takes no part. Compared first: every pixel that is timed.

Physical limit: each bit of an image decides how many the next code has, so an image's codes are read one by one.
- `whole photos`: all pixels, as colour.
- `views`: the crop of pre-training at 224 px, with drawing, resizing and flipping. PyTurboJPEG's `crop` reads and
  writes the codes of the crop without loss, and its `decode` reads them again; TurboJPEG's cropping region, which
  PyTurboJPEG does not pass on, is called through ctypes. All get the margin that makes the crop's edges exact.
Rates are of CPU time, of one thread, so that other work on the machine counts less.
"""

import argparse
import ctypes
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from side_by_side import Contender, compare

from pipeline.image import render
from pipeline.image.decode import read_jpeg_header
from pipeline.image.jpeg_region.region import Box, Region, decode_region
from pipeline.image.transforms import PretrainView

SIDE_PX = 224
_MARGIN_PX = 16  # the largest unit of these photos, whose sides are 8 or 16
_MEMORY = np.empty(64 << 20, np.uint8)
_RGBX, _DECOMPRESS = 2, 1  # TJPF_RGBX, TJINIT_DECOMPRESS
DecodeBox = Callable[[bytes, Box, int], Region]
Run = Callable[[DecodeBox, list[bytes]], Iterator[np.ndarray]]


def ours(data: bytes, box: Box, shrink: int) -> Region:
    """Decode with our Huffman decoder."""
    return decode_region(data, box, shrink, _MEMORY, is_trusted=True)


def libjpeg(data: bytes, box: Box, shrink: int) -> Region:
    """Decode with libjpeg's."""
    return decode_region(data, box, shrink, _MEMORY)


def _widened(data: bytes, box: Box, shrink: int) -> Box:
    """Return a box of whole units around a box of the shrunk image, in pixels of the image as it is stored."""
    header = read_jpeg_header(data)
    left, top = (max(0, shrink * side // _MARGIN_PX - 1) * _MARGIN_PX for side in box[:2])
    right, bottom = (-(-shrink * side // _MARGIN_PX) * _MARGIN_PX + _MARGIN_PX for side in box[2:])
    return left, top, min(right, header.width), min(bottom, header.height)


def _memory(around: Box, shrink: int) -> np.ndarray:
    """Return room for the pixels of a box, with a row to spare as Region wants it."""
    left, top, right, bottom = around
    width, height = -(-(right - left) // shrink), -(-(bottom - top) // shrink)
    return _MEMORY[: (height + 1) * width * 4].reshape(height + 1, width, 4)


def _region(pixels: np.ndarray, around: Box, box: Box, shrink: int) -> Region:
    first_row = box[1] - around[1] // shrink
    rows = pixels[first_row : first_row + box[3] - box[1] + 1]
    return Region(rows, box[0] - around[0] // shrink, box[2] - box[0], "libjpeg")


def decoded_whole(turbo: Any, data: bytes, box: Box, shrink: int) -> Region:
    """Decode all of the image with PyTurboJPEG."""
    header = read_jpeg_header(data)
    around = (0, 0, header.width, header.height)
    pixels = _memory(around, shrink)
    turbo.decode(data, _RGBX, (1, shrink), dst=pixels[:-1])
    return _region(pixels, around, box, shrink)


def cropped(turbo: Any, data: bytes, box: Box, shrink: int) -> Region:
    """Crop with PyTurboJPEG, and decode the crop."""
    left, top, right, bottom = around = _widened(data, box, shrink)
    pixels = _memory(around, shrink)
    part = turbo.crop(data, left, top, right - left, bottom - top, copynone=True)
    turbo.decode(part, _RGBX, (1, shrink), dst=pixels[:-1])
    return _region(pixels, around, box, shrink)


class _Scale(ctypes.Structure):
    _fields_ = [("num", ctypes.c_int), ("denom", ctypes.c_int)]


class _Box(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in "xywh"]


def by_cropping_region(library: Path) -> DecodeBox:
    """Return the decoder that TurboJPEG itself has for boxes."""
    turbo = ctypes.CDLL(str(library))
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    turbo.tj3Init.restype = pointer
    turbo.tj3DecompressHeader.argtypes = [pointer, ctypes.c_char_p, size]
    turbo.tj3SetScalingFactor.argtypes = [pointer, _Scale]
    turbo.tj3SetCroppingRegion.argtypes = [pointer, _Box]
    turbo.tj3Decompress8.argtypes = [pointer, ctypes.c_char_p, size, pointer, number, number]
    handle = turbo.tj3Init(_DECOMPRESS)

    def decode(data: bytes, box: Box, shrink: int) -> Region:
        left, top, _, _ = around = _widened(data, box, shrink)
        pixels = _memory(around, shrink)
        height, width = len(pixels) - 1, pixels.shape[1]
        failed = turbo.tj3DecompressHeader(handle, data, len(data))
        failed |= turbo.tj3SetScalingFactor(handle, _Scale(1, shrink))
        failed |= turbo.tj3SetCroppingRegion(handle, _Box(left // shrink, top // shrink, width, height))
        failed |= turbo.tj3Decompress8(handle, data, len(data), pixels.ctypes.data, 4 * width, _RGBX)
        assert not failed
        return _region(pixels, around, box, shrink)

    return decode


def whole_photos(decode: DecodeBox, photos: list[bytes]) -> Iterator[np.ndarray]:
    """Decode every photo whole."""
    for data in photos:
        header = read_jpeg_header(data)
        yield decode(data, (0, 0, header.width, header.height), 1).pixels


def views(decode: DecodeBox, photos: list[bytes]) -> Iterator[np.ndarray]:
    """Draw a view of every photo as `render` does, the same ones each time."""
    transform, random, out = PretrainView(SIDE_PX), Random(0), np.empty((SIDE_PX, SIDE_PX, 3), np.uint8)
    for data in photos:
        header = read_jpeg_header(data)
        placement = transform(header.height, header.width, random)
        shrink, box, part = render._shrunk(placement, header.height, header.width)
        render._finish(render._mapped(decode(data, box, shrink)), part, placement, out)
        yield out


def timed(run: Run, decode: DecodeBox, photos: list[bytes]) -> Contender:
    """Return a contender that reports its CPU time."""

    def contender() -> tuple[int, float]:
        started = time.process_time()
        count = sum(1 for _ in run(decode, photos))
        return count, time.process_time() - started

    return contender


def main() -> None:
    """Compare, then time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--turbojpeg", type=Path)
    options = parser.parse_args()
    files = [path.read_bytes() for path in sorted(options.folder.rglob("*.jp*g"), key=str)]
    photos = [data for data in files if read_jpeg_header(data).orientation == 1]
    decoders: dict[str, DecodeBox] = {"libjpeg": libjpeg, "ours": ours}
    if options.turbojpeg:
        from turbojpeg import TurboJPEG  # noqa: PLC0415 - only where it is compared

        turbo = TurboJPEG(str(options.turbojpeg))
        decoders["PyTurboJPEG, decode"] = partial(decoded_whole, turbo)
        decoders["PyTurboJPEG, crop and decode"] = partial(cropped, turbo)
        decoders["TurboJPEG, cropping region"] = by_cropping_region(options.turbojpeg)
    num_bytes = sum(map(len, photos))
    for title, run in (("whole photos", whole_photos), ("views", views)):
        expected = [pixels.tobytes() for pixels in run(libjpeg, photos)]
        for name, decode in decoders.items():
            found = [pixels.tobytes() for pixels in run(decode, photos)]
            num_equal = sum(one == other for one, other in zip(found, expected, strict=True))
            assert num_equal == len(photos), f"{title}, {name}: {num_equal} of {len(photos)} are equal"
        contenders = {name: timed(run, decode, photos) for name, decode in decoders.items()}
        compare(f"{title}: {len(photos)} JPEG, {num_bytes / 1e6:.0f} MB", contenders, "photos", options.rounds)


if __name__ == "__main__":
    main()
