"""CIFAR-10 and CIFAR-100: the Python version (pickled batches, as torchvision keeps them) and the binary one."""

import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.base.errors import ConfigError, CorruptShard
from trainer.tasks.originals.base import Original, PublishedSplit, drawn, found, require_known
from trainer.tasks.task import Task

_PIXELS = 3 * 32 * 32
_FOLDERS = {
    "cifar10": ("cifar-10-batches-py", "cifar-10-batches-bin"),
    "cifar100": ("cifar-100-python", "cifar-100-binary"),
}
_FILES = {
    "cifar10": {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]},
    "cifar100": {"train": ["train"], "test": ["test"]},
}
_NAMES = {"cifar10": ("batches.meta", "batches.meta.txt"), "cifar100": ("meta", "fine_label_names.txt")}


def read_cifar(root: Path, task: Task) -> Original:
    """Return CIFAR of a folder with either version."""
    pickled, binary = _FOLDERS[task.original]
    folder = found(root, _NAMES[task.original][0], f"{pickled}/", _NAMES[task.original][1], f"{binary}/")
    folder = folder if folder.is_dir() else folder.parent
    meta, text = _NAMES[task.original]
    is_pickled = (folder / meta).exists()
    if is_pickled:
        names = _unpickled(folder / meta)
        classes = tuple(names["label_names" if task.original == "cifar10" else "fine_label_names"])
    else:
        classes = tuple(found(folder, text).read_text().split())
    read = _read_pickled if is_pickled else _read_binary
    splits: dict[str, PublishedSplit] = {}
    for split, files in _FILES[task.original].items():
        parts = [read(folder, name, task.original) for name in files]
        labels = [require_known(label, classes, f"{folder}, {split}") for _, part in parts for label in part]
        splits[split] = drawn(np.concatenate([images for images, _ in parts]), labels, _planes)
    return Original(classes, splits)


def _planes(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return image.reshape(3, 32, 32).transpose(1, 2, 0)


def _read_pickled(folder: Path, name: str, original: str) -> tuple[npt.NDArray[np.uint8], list[int]]:
    batch = _unpickled(found(folder, name))
    return batch["data"], batch["labels" if original == "cifar10" else "fine_labels"]


def _read_binary(folder: Path, name: str, original: str) -> tuple[npt.NDArray[np.uint8], list[int]]:
    path = found(folder, f"{name}.bin")
    num_labels = 1 if original == "cifar10" else 2  # coarse, then fine
    body = np.fromfile(path, np.uint8)
    if len(body) % (num_labels + _PIXELS):
        raise CorruptShard(f"{path} has {len(body):,} bytes, which are no whole records; get it again")
    rows = body.reshape(-1, num_labels + _PIXELS)
    return rows[:, num_labels:], rows[:, num_labels - 1].tolist()


class _Unpickler(pickle.Unpickler):
    """Builds arrays, and refuses everything else: a pickle can run any function that it names."""

    _ALLOWED: ClassVar[set[tuple[str, str]]] = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        """See pickle.Unpickler."""
        if (module, name) not in self._ALLOWED:
            raise ConfigError(f"the pickle asks for {module}.{name}, which no CIFAR batch does; it is not CIFAR's")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _unpickled(path: Path) -> dict[str, Any]:
    raw = _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()

    def text(value: Any) -> Any:
        if isinstance(value, list):
            return [text(item) for item in value]
        return value.decode() if isinstance(value, bytes) else value

    return {text(key): text(value) for key, value in raw.items()}
