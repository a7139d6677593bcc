"""The fuzz: both Huffman decoders on the same damaged JPEGs, built so that an access out of place ends the program.

python -m tests.pipeline.image.jpeg_region.fuzz [--rounds N] [--seed N] [PHOTO...]
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import simplejpeg

from tests.conftest import jpeg

KINDS = ["444", "422", "420", "440", "411", "Gray", "own tables"]
_SANITIZERS = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


class Counts(NamedTuple):
    """Images: sound ones, those of them that ours read, damaged ones, those that ours read; of all, different ones."""

    sound: int
    read: int
    damaged: int
    read_damaged: int
    different: int


class NoPrivateHeader(Exception):  # noqa: N818 - a fact about this machine
    """Its libjpeg comes without jpegint.h, so that our decoder is not built in."""


def build(folder: Path) -> Path:
    """Compile huffman_check.c with sanitizers, and return the program."""
    source, program = Path(__file__).with_name("huffman_check.c"), folder / "check"
    command = ["cc", *_SANITIZERS, "-o", program, source, "-ljpeg"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "no jpegint.h" in done.stderr:
        raise NoPrivateHeader
    assert done.returncode == 0, done.stderr
    return program


def fuzz(program: Path, rounds: int, files: list[Path], seed: int = 1) -> Counts:
    """Compare the decoders on the files, in turn, and on `rounds` damaged copies of each."""
    command = [program, str(seed), str(rounds), *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Counts(*map(int, done.stdout.split()))


def written(folder: Path, images: list[bytes]) -> list[Path]:
    files = [folder / f"{number}.jpg" for number in range(len(images))]
    for file, data in zip(files, images, strict=True):
        file.write_bytes(data)
    return files


def noise(seed: int = 0) -> np.ndarray:
    """Return an image with so much in it that tables are worth building for it alone."""
    return np.random.default_rng(seed).integers(0, 256, (260, 300, 3), np.uint8)


def noisy(kind: str, quality: int) -> bytes:
    """Return a JPEG of some subsampling, or with Huffman tables computed for it."""
    if kind == "own tables":
        return jpeg(noise(quality), quality, optimize=True)
    pixels, colorspace = (noise(quality)[..., :1], "GRAY") if kind == "Gray" else (noise(quality), "RGB")
    return bytes(simplejpeg.encode_jpeg(pixels.copy(), quality, colorspace=colorspace, colorsubsampling=kind))


def noisy_images() -> list[bytes]:
    """Return JPEGs of all kinds; tables of their own stand between others, so those that a thread keeps change."""
    return [noisy(kind, quality) for quality in (20, 90, 100) for one in KINDS[:-1] for kind in (one, KINDS[-1])]


@click.command(help=__doc__)
@click.argument("photos", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--rounds", default=1000, help="Damaged copies of each image.")
@click.option("--seed", default=1)
def main(photos: tuple[Path, ...], rounds: int, seed: int) -> None:
    """Fuzz on photos, or on images of noise where none are given."""
    with tempfile.TemporaryDirectory() as folder:
        files = list(photos) or written(Path(folder), noisy_images())
        found = fuzz(build(Path(folder)), rounds, files, seed)
    click.echo(", ".join(f"{name} {count:,}" for name, count in found._asdict().items()))
    sys.exit(found.different > 0)


if __name__ == "__main__":
    main()
