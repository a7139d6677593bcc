"""Pictures in arrays: dSprites (npz), SmallNORB (its own matrices), SVHN (MATLAB), PatchCamelyon (HDF5)."""

import gzip
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.base.errors import ConfigError, CorruptShard
from trainer.tasks.derive import binned
from trainer.tasks.originals.base import Example, Original, PublishedSplit, drawn, found, png, require_known
from trainer.tasks.task import Task

# Column of dSprites' `latents_classes`, and values of that factor.
_SPRITE_FACTORS = {"orientation": (3, 40), "location": (4, 32)}
_SPRITE_BINS = 16
# SmallNORB's matrices: magic number, type of the elements.
_NORB_TYPES: dict[int, np.dtype[Any]] = {0x1E3D4C55: np.dtype("u1"), 0x1E3D4C54: np.dtype("<i4")}
_SVHN_ZERO = 10  # the class of the digit 0
_NORB_COLUMNS = {"elevation": 1, "azimuth": 2}  # of `info`: instance, elevation, azimuth, lighting
_NORB_NAMES = {"train": "training", "test": "testing"}


def read_dsprites(root: Path, task: Task) -> Original:
    """Return dSprites: one npz file with `imgs` of 0 and 1, and `latents_classes`. All of it is the split `train`."""
    path = found(root, "dsprites*.npz")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, factors = arrays["imgs"], arrays["latents_classes"]
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise CorruptShard(f"{path} is not dSprites' file ({error}); get it again") from error
    column, num_values = _SPRITE_FACTORS[task.label]
    labels = [task.classes[binned(value, num_values, _SPRITE_BINS)] for value in factors[:, column].tolist()]
    return Original(task.classes, {"train": drawn(images, labels, lambda image: image * np.uint8(255))})


def read_smallnorb(root: Path, task: Task) -> Original:
    """Return SmallNORB (left camera): `*-{training,testing}-dat.mat` and `-info.mat`, also with `.gz`."""
    splits: dict[str, PublishedSplit] = {}
    for split, name in _NORB_NAMES.items():
        images = _norb_matrix(found(root, f"*{name}-dat.mat", f"*{name}-dat.mat.gz"))
        info = _norb_matrix(found(root, f"*{name}-info.mat", f"*{name}-info.mat.gz"))
        values = info[:, _NORB_COLUMNS[task.label]]
        if task.label == "azimuth":
            values = values // 2  # 0, 2, ... 34 for 20 degrees each
        labels = [require_known(value, task.classes, f"{root}, {name}") for value in values.tolist()]
        splits[split] = drawn(images, labels, lambda pair: pair[0])
    return Original(task.classes, splits)


def _norb_matrix(path: Path) -> npt.NDArray[Any]:
    """Read a matrix: magic number, number of dimensions, at least three sizes, then the elements."""
    body = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    magic, num_dimensions = np.frombuffer(body, "<i4", 2).tolist()
    kind = _NORB_TYPES.get(magic)
    if kind is None:
        raise CorruptShard(f"{path} begins with {magic:#x}, which is no matrix of SmallNORB's; get it again")
    sizes = np.frombuffer(body, "<i4", max(3, num_dimensions), 8)[:num_dimensions].tolist()
    start = 8 + 4 * max(3, num_dimensions)
    if len(body) != start + kind.itemsize * int(np.prod(sizes)):
        raise CorruptShard(f"{path} has {len(body):,} bytes, and its header says {sizes} elements; get it again")
    matrix: npt.NDArray[Any] = np.frombuffer(body, kind, offset=start).reshape(sizes)
    return matrix


def read_svhn(root: Path, task: Task) -> Original:
    """Return SVHN's cropped digits: `{train,test}_32x32.mat`, where class 10 is the digit 0."""
    splits: dict[str, PublishedSplit] = {}
    for split in ("train", "test"):
        path = found(root, f"{split}_32x32.mat")
        arrays = matlab(path)
        digits = [0 if label == _SVHN_ZERO else label for label in arrays["y"].reshape(-1).tolist()]
        labels = [require_known(digit, task.classes, str(path)) for digit in digits]
        splits[split] = drawn(np.moveaxis(arrays["X"], -1, 0), labels, lambda image: image)
    return Original(task.classes, splits)


def matlab(path: Path) -> dict[str, Any]:
    """Return the arrays of a MATLAB file.

    Raises:
        ConfigError: scipy is not installed.
        CorruptShard: It is no such file.
    """
    try:
        import scipy.io  # type: ignore[import-untyped]  # noqa: PLC0415 - 35 MB, for two data sets
    except ImportError as error:
        raise ConfigError(f"{path} is read with scipy; install it: pip install 'bit-pretrain[tasks]'") from error
    try:
        arrays: dict[str, Any] = scipy.io.loadmat(path)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise CorruptShard(f"{path} is no MATLAB file that scipy reads ({error}); get it again") from error
    return arrays


_CAMELYON_NAMES = {"train": "train", "validation": "valid", "test": "test"}


def read_camelyon(root: Path, task: Task) -> Original:
    """Return PatchCamelyon: `camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5`, unpacked."""
    try:
        import h5py  # type: ignore[import-untyped]  # noqa: PLC0415 - for one data set
    except ImportError as error:
        raise ConfigError("PatchCamelyon is read with h5py; install it: pip install 'bit-pretrain[tasks]'") from error
    splits: dict[str, PublishedSplit] = {}
    for split, name in _CAMELYON_NAMES.items():
        pictures = found(root, f"*split_{name}_x.h5")
        path = found(root, f"*split_{name}_y.h5")
        with h5py.File(path) as file:
            labels = [require_known(label, task.classes, str(path)) for label in np.asarray(file["y"]).ravel().tolist()]
        splits[split] = PublishedSplit(len(labels), _Patches(pictures, labels))
    return Original(task.classes, splits)


class _Patches:
    """Takes rows of an HDF5 file, which is larger than memory may be."""

    def __init__(self, path: Path, labels: Sequence[str]) -> None:
        self._path = path
        self._labels = labels

    def __call__(self, rows: Sequence[int]) -> Iterator[Example]:
        import h5py  # noqa: PLC0415

        with h5py.File(self._path) as file:
            for row in rows:
                yield Example(f"{row:06d}.png", png(np.asarray(file["x"][row])), self._labels[row])
