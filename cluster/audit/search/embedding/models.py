"""The networks that embed pictures: the default, EfficientNet-Lite0, or the user's own ONNX or TorchScript file.

Pictures go through a network one by one on one thread: a vector depends on its picture alone, to the last bit.
"""

import hashlib
import multiprocessing
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveFloat, ValidationError

from cluster.audit.search.embedding import lite0
from cluster.audit.search.embedding.views import VIEWS, cut, pooled
from pipeline.base.errors import ConfigError
from pipeline.base.records import Record
from pipeline.base.toml import read_toml
from pipeline.image.decode import Pixels
from pipeline.work.pools import end_with_parent

DIMENSIONS = 256
DEFAULT_MODEL = "efficientnet-lite0"
PROJECTION_PATH = Path(__file__).with_name("lite0_projection.npz")
SIDE_PX = 160  # of the square to which Lite0's pictures are resized: half the time of its 224
_MEAN, _SCALE = 127.0, 128.0  # with which Lite0 was trained

Vectors = npt.NDArray[np.float32]  # (..., 256)


class Nearness(Record):
    """Which pairs are near by a model.

    Attributes:
        cosine_from: Smallest cosine of a candidate; also the least that the background can be.
        margin: By which the cosine of a candidate is above the mean of the nearest others.
        sure_from: Cosine from which a pair is a candidate whatever the others are: a picture may have many copies.
    """

    cosine_from: float = Field(0.2, gt=0, lt=1)
    margin: float = Field(0.05, ge=0, lt=1)
    sure_from: float = Field(0.8, gt=0, le=1)


class Embedder(Protocol):
    """A model with its preprocessing.

    Attributes:
        version: Names model, preprocessing and projection; vectors of different versions cannot be compared.
        nearness: Which pairs are candidates.
    """

    version: str
    nearness: Nearness

    def embed(self, pixels: Pixels) -> Vectors:
        """Return unit vectors of a picture and its parts, float32 of shape (views, 256), the whole picture first."""
        ...


class ModelConfig(Record):
    """A model of the user, as a TOML file describes it.

    Attributes:
        model: Path of an ONNX (.onnx) or TorchScript file, relative to the TOML file, that takes float32 RGB of shape
            (1, 3, side_px, side_px) and returns at least 256 numbers.
        side_px: Of the square to which a picture is resized.
        mean: Of red, green and blue, 0..1, subtracted.
        deviation: Of red, green and blue, by which they are divided then.
        whitening: Path of an .npz file with `centre`, shape (numbers,), and `projection`, shape (numbers, 256); without
            it more than 256 numbers are projected by a fixed random matrix.
        crops: Whether the centre, quadrants and halves get vectors, too: collages and crops are found, at ten times
            the cost.
        nearness: Which pairs are candidates.
    """

    model: str
    side_px: int = Field(224, ge=8, le=2048)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of torchvision, with which SSCD and ISC21 were trained
    deviation: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    whitening: str | None = None
    crops: bool = False
    nearness: Nearness = Nearness()


class Session:
    """An ONNX model on one thread."""

    def __init__(self, model: bytes) -> None:
        try:
            import onnxruntime  # noqa: PLC0415 - takes a second, and is an optional dependency
        except ImportError as error:
            raise ConfigError(
                "embeddings need onnxruntime; run `pip install -e '.[embedding]'` in a clone of the repository"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def features(self, picture_BCHW: Vectors) -> Vectors:
        """Return the first output for one preprocessed picture, without its first axis."""
        found: Vectors = self._session.run(None, {self._input: picture_BCHW})[0][0]
        return found


def resized(pixels: Pixels, side_px: int) -> Vectors:
    """Return a picture resized to a square, float32 of shape (side_px, side_px, 3), 0..255."""
    from PIL import Image  # noqa: PLC0415 - 40 ms that the command line's help need not pay

    resampling = Image.Resampling.BOX if min(pixels.shape[:2]) >= 2 * side_px else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(pixels).resize((side_px, side_px), resampling), np.float32)


def model_input(pixels: Pixels, side_px: int = SIDE_PX) -> Vectors:
    """Return a picture as input of Lite0, float32 of shape (1, 3, side_px, side_px)."""
    return np.ascontiguousarray(((resized(pixels, side_px) - _MEAN) / _SCALE).transpose(2, 0, 1)[None])


class _Lite0:
    nearness = Nearness()  # of which docs/audit-quality.md has the recall

    def __init__(self) -> None:
        path = lite0.weights_path()
        # Torch and onnx take 180 MB, which each worker would keep for weights that it reads once.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=end_with_parent) as executor:
            self._session = Session(executor.submit(lite0.onnx_model_of, path).result())
        self._centre, self._projection = _whitening(PROJECTION_PATH)
        self.version = f"{DEFAULT_MODEL}-{SIDE_PX}/{_digest(path)}-{_digest(PROJECTION_PATH)}"

    def embed(self, pixels: Pixels) -> Vectors:
        features = pooled(self._session.features(model_input(pixels)))
        return _unit([(each - self._centre) @ self._projection for each in features])


class _ModelFile:
    """The user's own model."""

    def __init__(self, config: ModelConfig, folder: Path) -> None:
        path = _existing(folder / config.model)
        self._run = Session(path.read_bytes()).features if path.suffix == ".onnx" else _torchscript(path)
        self._config = config
        self._views = VIEWS if config.crops else VIEWS[:1]
        self._whitening = _whitening(_existing(folder / config.whitening)) if config.whitening else None
        self.nearness = config.nearness
        settings = config.model_dump(exclude={"model", "whitening", "nearness"})
        whitening = _digest(folder / config.whitening) if config.whitening else ""
        self.version = f"{path.name}/{_digest(path)}-{whitening}-{settings}"

    def embed(self, pixels: Pixels) -> Vectors:
        return _unit([self._vector(cut(pixels, view)) for view in self._views])

    def _vector(self, pixels: Pixels) -> Vectors:
        mean, deviation = (np.array(each, np.float32) for each in (self._config.mean, self._config.deviation))
        normal = (resized(pixels, self._config.side_px) / np.float32(255) - mean) / deviation
        found = self._run(np.ascontiguousarray(normal.transpose(2, 0, 1)[None])).reshape(-1)
        if self._whitening is not None:
            centre, projection = self._whitening
            if len(found) != len(centre):
                raise ConfigError(f"{self.version} returns {len(found)} numbers, its whitening takes {len(centre)}")
            return np.asarray((found - centre) @ projection, np.float32)
        if len(found) < DIMENSIONS:
            raise ConfigError(f"{self.version} returns {len(found)} numbers; at least {DIMENSIONS} are needed")
        return found if len(found) == DIMENSIONS else found @ rotation(len(found))[:, :DIMENSIONS]


def _torchscript(path: Path) -> Callable[[Vectors], Vectors]:
    import torch  # noqa: PLC0415 - takes two seconds

    torch.set_num_threads(1)
    model = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]

    def features(picture_BCHW: Vectors) -> Vectors:
        with torch.inference_mode():
            found: Vectors = model(torch.from_numpy(picture_BCHW)).numpy()
        return found

    return features


def load(model: str | Path = DEFAULT_MODEL) -> Embedder:
    """Load an embedding.

    Args:
        model: `efficientnet-lite0`; the path of a TOML file with the values of ModelConfig; or that of an ONNX (.onnx)
            or TorchScript (.pt, .ts, .torchscript) file, to which the default values apply.

    Raises:
        ConfigError: A file does not exist or does not fit, or the package that runs it is not installed.
    """
    if str(model) == DEFAULT_MODEL:
        return _Lite0()
    path = _existing(Path(model))
    if path.suffix != ".toml":
        return _tried(path, ModelConfig(model=path.name))
    try:
        config = ModelConfig.model_validate(read_toml(path))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {name}: {first['msg']}; docs/audit.md lists the values") from error
    return _tried(path, config)


def _tried(path: Path, config: ModelConfig) -> Embedder:
    """Load a model of the user, and have it embed a picture: what does not fit is said before an audit begins."""
    try:
        model = _ModelFile(config, path.parent)
        found = model.embed(np.arange(48 * 48 * 3, dtype=np.uint8).reshape(48, 48, 3))
    except ConfigError:
        raise
    except Exception as error:  # whatever the library that runs the model raises
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{path}: the model cannot embed a picture of {config.side_px} px ({said}); docs/audit.md says what it "
            f"takes and returns"
        ) from error
    if not np.isfinite(found).all():
        raise ConfigError(f"{path}: the vector of a picture is not finite; check mean, deviation and whitening")
    return model


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ConfigError(
            f"no embedding model at {path}; give {DEFAULT_MODEL}, an ONNX or TorchScript file, or a TOML file that "
            f"describes one"
        )
    return path


def _whitening(path: Path) -> tuple[Vectors, Vectors]:
    try:
        with np.load(path) as fitted:
            centre, projection = (fitted[name].astype(np.float32) for name in ("centre", "projection"))
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} is no .npz file with `centre` and `projection` ({error})") from error
    if projection.shape != (len(centre), DIMENSIONS):
        raise ConfigError(f"{path}: projection has shape {projection.shape}, not ({len(centre)}, {DIMENSIONS})")
    return centre, projection


def _unit(rows: Sequence[Vectors]) -> Vectors:
    vectors = np.array(rows, np.float32).reshape(-1, DIMENSIONS)
    lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
    return np.asarray(vectors / lengths, np.float32)


@cache
def rotation(size: int) -> Vectors:
    """Return a random orthogonal matrix, shape (size, size), always the same."""
    normal = np.random.Generator(np.random.Philox(key=[size, 0])).standard_normal((size, size))
    return np.linalg.qr(normal)[0].astype(np.float32)


@cache
def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=4).hexdigest()
