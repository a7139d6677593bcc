"""Decodes photos with our Huffman decoder (pipeline/image/jpeg_region/huffman.h), beside libjpeg's.

    python benchmarks/huffman.py FOLDER [--rounds N]

FOLDER holds JPEG files; they are read into memory first. The other contender is
pipeline/image/jpeg_region/region.c, built again without huffman.h. Compared first: every pixel that is timed.

Physical limit: each bit of a picture decides how many the next code has, so a picture's codes are read one by one.
- `whole photos`: all pixels, as colour.
- `views`: the crop of pre-training at 224 px, with drawing, resizing and flipping.
"""

import argparse
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
from side_by_side import Contender, compare

from pipeline.image.decode import read_jpeg_header
from pipeline.image.jpeg_region import region
from pipeline.image.render import render
from pipeline.image.transforms import PretrainView

SIDE_PX = 224
Decode = Callable[[list[bytes]], Iterator[np.ndarray]]


def whole(photos: list[bytes]) -> Iterator[np.ndarray]:
    """Decode every photo whole."""
    memory = np.empty(64 << 20, np.uint8)
    for data in photos:
        header = read_jpeg_header(data)
        yield region.decode_region(data, (0, 0, header.width, header.height), 1, memory).pixels


def views(photos: list[bytes]) -> Iterator[np.ndarray]:
    """Draw a view of every photo, the same ones each time."""
    transform, random, out = PretrainView(SIDE_PX), Random(0), np.empty((SIDE_PX, SIDE_PX, 3), np.uint8)
    for data in photos:
        render(data, transform, random, out)
        yield out


def built_alone(folder: Path) -> Path:
    """Build region.c without our Huffman decoder."""
    library = folder / "alone.so"
    source = region.LIBRARY.with_name("region.c")
    options = ["-O2", "-shared", "-fPIC", "-DLIBJPEG_ALONE"]
    subprocess.run(["cc", *options, "-o", library, source, "-ljpeg"], check=True)
    return library


def with_library(library: Path, decode: Decode, photos: list[bytes]) -> Iterator[np.ndarray]:
    """Decode with a build of region.c."""
    region.LIBRARY = library
    region._library.cache_clear()
    return decode(photos)


def timed(library: Path, decode: Decode, photos: list[bytes]) -> Contender:
    """Return a contender."""
    return lambda: sum(1 for _ in with_library(library, decode, photos))


def main() -> None:
    """Compare, then times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    files = [path.read_bytes() for path in sorted(options.folder.rglob("*.jp*g"), key=str)]
    photos = [data for data in files if read_jpeg_header(data).orientation == 1]
    ours = region.LIBRARY
    with tempfile.TemporaryDirectory() as scratch:
        alone = built_alone(Path(scratch))
        for title, decode in (("whole photos", whole), ("views", views)):
            expected = [pixels.tobytes() for pixels in with_library(alone, decode, photos)]
            assert [pixels.tobytes() for pixels in with_library(ours, decode, photos)] == expected
            num_bytes = sum(map(len, photos))
            contenders = {name: timed(one, decode, photos) for name, one in (("libjpeg", alone), ("ours", ours))}
            compare(f"{title}: {len(photos)} JPEG, {num_bytes / 1e6:.0f} MB", contenders, "photos", options.rounds)


if __name__ == "__main__":
    main()
