"""Photos: real ones where they lie beside the checkout, else images with a photo's gradients, shapes and grain."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tests.conftest import jpeg

# Tars of real photos as SPLIT/CLASS/NAME.jpg, which are not part of the repository.
SHARED_DATA = Path(os.environ.get("SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data")
# Photos come from many encoders: quality and options of JPEG, in turn.
_ENCODINGS = (
    (75, {}),
    (90, {"optimize": True}),
    (85, {"progressive": True}),
    (95, {"subsampling": 0}),
    (60, {"restart_marker_blocks": 4}),
)


def photo_tar(name: str, folder: Path, num_classes: int = 20, images_per_class: int = 50) -> Path:
    """Return a tar of SPLIT/CLASS/NAME.jpg: the real one of that name, or a stand-in that is written to the folder."""
    real = SHARED_DATA / name
    if real.exists():
        return real
    with tarfile.open(folder / name, "w") as archive:
        for number in range(num_classes * images_per_class):
            quality, options = _ENCODINGS[number % len(_ENCODINGS)]
            body = jpeg(photo_like(number), quality, **options)
            about = tarfile.TarInfo(f"train/class{number % num_classes:02d}/{number:05d}.jpg")
            about.size = len(body)
            archive.addfile(about, io.BytesIO(body))
    return folder / name


def photo_like(seed: int, height: int = 64, width: int = 64) -> np.ndarray:
    """Return an image with a photo's spectrum: a gradient, shapes out of focus, texture of every size, grain."""
    generator = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3), np.float32)
    for side in (2, 4, 8, 16, 32):
        coarse = Image.fromarray(generator.integers(0, 256, (side, side, 3), np.uint8))
        layer = coarse.resize((width, height), Image.Resampling.BICUBIC)
        pixels += np.asarray(layer, np.float32) / side  # amplitudes fall as 1/f, as those of photos do
    image = Image.fromarray(np.clip(pixels * 255 / pixels.max(), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        corner, size = generator.integers(0, (width, height)), generator.integers(4, (width, height))
        draw.ellipse((*corner, *(corner + size)), fill=tuple(generator.integers(0, 256, 3).tolist()))
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(1)), np.float32)
    return np.clip(soft + generator.normal(0, 4, soft.shape), 0, 255).astype(np.uint8)
