"""Fit the projection of the default embedding: cluster/audit/search/embedding/lite0_projection.npz.

    python benchmarks/whitening.py ../shared/data --scratch /dev/shm

Pictures come from the training parts of the tars only, and none from photos-200. Features are those of each picture and
of three altered copies: random crop, turn, mirroring, resampling, blur, noise, tone, border and JPEG quality, all
continuous and drawn together. Directions in which copies differ are shrunk (within-class covariance normalisation), and
of the rest the 256 of the largest variance between pictures are kept, each scaled to unit variance.
"""

import argparse
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from cluster.audit.search.embedding import lite0
from cluster.audit.search.embedding.models import PROJECTION_PATH, Session, model_input
from pipeline.image.decode import decode

PICTURES = {
    "tiny-imagenet-100": 600,
    "clothing": 250,
    "grocery": 250,
    "flowers12": 125,
    "cifar10-mini": 150,
    "sign-digits": 50,
}
VIEWS = 3
DIMENSIONS = 256
SHRINKAGE = 0.1  # share of the mean variance added to every direction


def altered(image: Image.Image, generator: np.random.Generator) -> Image.Image:  # noqa: C901 - a list of chances
    """Return a randomly altered copy."""
    draw, chance = generator.uniform, lambda p: generator.random() < p
    if chance(0.5):
        kept = draw(0.6, 1.0, 2)
        width, height = (max(8, int(side * k)) for side, k in zip(image.size, kept, strict=True))
        left, top = (int(draw(0, side - own + 1)) for side, own in zip(image.size, (width, height), strict=True))
        image = image.crop((left, top, left + width, top + height))
    if chance(0.3):
        image = image.transpose(int(generator.integers(2, 5)))
    if chance(0.4):
        image = ImageOps.mirror(image)
    if chance(0.2):
        image = image.rotate(draw(-12, 12), Image.Resampling.BILINEAR, expand=chance(0.5))
    if chance(0.4):
        factor = draw(0.15, 0.8) if max(image.size) > 64 else draw(0.5, 1.0)
        image = image.resize(tuple(max(16, int(side * factor)) for side in image.size), Image.Resampling.BILINEAR)
    if chance(0.2):
        image = image.filter(ImageFilter.GaussianBlur(draw(0.003, 0.02) * max(image.size)))
    if chance(0.4):
        image = ImageEnhance.Brightness(image).enhance(draw(0.6, 1.4))
        image = ImageEnhance.Contrast(image).enhance(draw(0.6, 1.4))
        image = ImageEnhance.Color(image).enhance(draw(0.0, 1.6))
    if chance(0.15):
        image = image.convert("L").convert("RGB")
    if chance(0.2):
        fill = tuple(generator.integers(0, 256, 3).tolist()) if chance(0.3) else (255 * int(chance(0.5)),) * 3
        image = ImageOps.expand(image, tuple(int(draw(0.0, 0.15) * side) for side in image.size), fill)
    if chance(0.2):
        noisy = np.asarray(image, np.float32) + generator.normal(0, draw(3, 25), (image.size[1], image.size[0], 3))
        image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=int(draw(12, 95)))
    return Image.open(sink).convert("RGB")


def features(folder: Path) -> np.ndarray:
    """Return features, shape (pictures, 1 + VIEWS, 1280)."""
    session = Session(lite0.onnx_model(lite0.read_weights(lite0.weights_path())))
    found = []
    for name, most in PICTURES.items():
        with tarfile.open(folder / f"{name}.tar") as tar:
            members = [member for member in tar if member.isfile() and member.name.startswith("train/")]
            generator = np.random.default_rng(len(name))
            for index in np.sort(generator.choice(len(members), most, replace=False)).tolist():
                pixels = decode(tar.extractfile(members[index]).read())
                image = Image.fromarray(pixels)
                views = [pixels, *(np.asarray(altered(image, generator)) for _ in range(VIEWS))]
                found.append([session.features(model_input(view)).mean(axis=(1, 2)) for view in views])
    return np.array(found, np.float32)


def fit(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean, shape (1280,), and projection, shape (1280, 256)."""
    centre = found.mean(axis=(0, 1))
    inside = (found - found.mean(axis=1, keepdims=True)).reshape(-1, lite0.NUM_FEATURES).astype(np.float64)
    within = inside.T @ inside / (len(found) * VIEWS)
    within += SHRINKAGE * np.trace(within) / len(within) * np.eye(len(within))
    values, vectors = np.linalg.eigh(within)
    normal = vectors / np.sqrt(values)
    means = (found.mean(axis=1) - centre) @ normal
    variances, axes = np.linalg.eigh(means.T @ means / len(means))
    kept = axes[:, ::-1][:, :DIMENSIONS] / np.sqrt(variances[::-1][:DIMENSIONS])
    return centre, (normal @ kept).astype(np.float32)


def main() -> None:
    """Fit and write the projection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of tars")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for the features")
    given = parser.parse_args()
    kept = given.scratch / "features.npy"
    if not kept.exists():
        np.save(kept, features(given.data))
    centre, projection = fit(np.load(kept))
    np.savez_compressed(PROJECTION_PATH, centre=centre.astype(np.float16), projection=projection.astype(np.float16))


if __name__ == "__main__":
    main()
