"""Photos for a machine that has none: class folders of JPEG files of 500 x 375 pixels and about 100 kB."""

import os
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

_WIDTH, _HEIGHT, _CLASSES = 500, 375, 24


def pixels(generator: np.random.Generator) -> np.ndarray:
    """Return noise of every coarseness, the coarser the stronger, as photos have it, with the grain of a sensor."""
    picture = generator.normal(0.0, 14.0, (_HEIGHT, _WIDTH, 3)).astype(np.float32) + 128.0
    for side in (2, 4, 8, 16, 32, 64, 128):
        coarse = generator.normal(0.0, 1.0, (side, side)).astype(np.float32)
        layer = Image.fromarray(coarse).resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC)
        picture += np.asarray(layer)[..., None] * (160.0 / side**0.7)
    return np.clip(picture, 0, 255).astype(np.uint8)


def write_photos(folder: Path, count: int, num_different: int) -> None:
    """Write so many files, hard links of so many different photos."""
    generator = np.random.default_rng(0)
    for number in range(_CLASSES):
        (folder / f"class{number:02d}").mkdir(parents=True)
    first: list[Path] = []
    for number in range(count):
        path = folder / f"class{number % _CLASSES:02d}" / f"{number:06d}.jpg"
        if number < num_different:
            path.write_bytes(simplejpeg.encode_jpeg(pixels(generator), quality=88))
            first.append(path)
        else:
            os.link(first[number % num_different], path)
