"""Embeddings find copies that a hash of the whole picture misses: crops, borders, overlays.

A model is an ONNX or TorchScript file (SSCD, ISC21, ...), or the default, EfficientNet-Lite0. Vectors have 256 numbers
and length 1; their signs after a fixed rotation go through the same Hamming search as the hashes, and the cosine
decides. Pictures go through the model one by one on one thread: a vector depends on its picture alone, to the last bit.
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.audit.base.tables import ADDRESS_COLUMNS
from cluster.audit.search.embedding import lite0
from cluster.audit.search.hamming import build_index, plain_words, search
from cluster.audit.search.join import codes_of, is_first_of_run
from pipeline.base.errors import ConfigError
from pipeline.image.decode import Pixels

EMBEDDING_VERSION = 1  # raised with every change of what sign_codes and embedding_candidates return
DIMENSIONS = 256
DEFAULT_MODEL = "efficientnet-lite0"
COSINE_FROM = 0.45  # of the default embedding; docs/audit-quality.md
PROJECTION_PATH = Path(__file__).with_name("lite0_projection.npz")
_SIDE_PX = 224  # the whole picture is resized to this square
_MEAN, _SCALE = 127.0, 128.0  # with which Lite0 was trained
_IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of torchvision, with which SSCD and ISC21 were trained
_IMAGENET_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
# Bits of 256 that the signs of two vectors of a given cosine differ in are binomial with mean 256 acos(cosine) / pi.
# The radius of the search lies this many standard deviations above it.
_DEVIATIONS = 2.0

Vectors = npt.NDArray[np.float32]  # (pictures, 256)
COSINE_SCHEMA = pa.schema([*((name, pa.int32()) for name in ADDRESS_COLUMNS), ("cosine", pa.float32())])


class Embedder(Protocol):
    """A model with its preprocessing.

    Attributes:
        version: Names model and projection; vectors of different versions cannot be compared.
    """

    version: str

    def embed(self, pictures: Sequence[Pixels]) -> Vectors:
        """Return unit vectors, float32 of shape (pictures, 256)."""
        ...


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
        """Return the first output for one preprocessed picture, shape (features,)."""
        found: Vectors = self._session.run(None, {self._input: picture_BCHW})[0].reshape(-1)
        return found


def _resized(pixels: Pixels) -> Vectors:
    from PIL import Image  # noqa: PLC0415 - 40 ms that the command line's help need not pay

    resampling = Image.Resampling.BOX if min(pixels.shape[:2]) >= 2 * _SIDE_PX else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(pixels).resize((_SIDE_PX, _SIDE_PX), resampling), np.float32)


def model_input(pixels: Pixels) -> Vectors:
    """Return a picture as input of Lite0, float32 of shape (1, 3, 224, 224)."""
    return np.ascontiguousarray(((_resized(pixels) - _MEAN) / _SCALE).transpose(2, 0, 1)[None])


class _Lite0:
    def __init__(self) -> None:
        path = lite0.weights_path()
        self._session = Session(lite0.onnx_model(lite0.read_weights(path)))
        with np.load(PROJECTION_PATH) as fitted:
            self._centre = fitted["centre"].astype(np.float32)
            self._projection = fitted["projection"].astype(np.float32)
        self.version = f"{DEFAULT_MODEL}/{_digest(path)}-{_digest(PROJECTION_PATH)}"

    def embed(self, pictures: Sequence[Pixels]) -> Vectors:
        rows = [(self._session.features(model_input(pixels)) - self._centre) @ self._projection for pixels in pictures]
        return _unit(rows)


class _ModelFile:
    """The user's own model: torchvision's normalisation, 224x224, an output of 256 numbers or more."""

    def __init__(self, path: Path) -> None:
        self._run = Session(path.read_bytes()).features if path.suffix == ".onnx" else _torchscript(path)
        self.version = f"{path.name}/{_digest(path)}"

    def embed(self, pictures: Sequence[Pixels]) -> Vectors:
        rows = []
        for pixels in pictures:
            normal = (_resized(pixels) / 255.0 - _IMAGENET_MEAN) / _IMAGENET_DEVIATION
            found = self._run(np.ascontiguousarray(normal.transpose(2, 0, 1)[None]))
            if len(found) < DIMENSIONS:
                raise ConfigError(
                    f"{self.version} returns {len(found)} numbers per picture; at least {DIMENSIONS} are needed"
                )
            rows.append(found if len(found) == DIMENSIONS else found @ _rotation(len(found))[:, :DIMENSIONS])
        return _unit(rows)


def _torchscript(path: Path) -> Any:
    import torch  # noqa: PLC0415 - takes two seconds

    model = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]

    def features(picture_BCHW: Vectors) -> Vectors:
        with torch.inference_mode():
            found: Vectors = model(torch.from_numpy(picture_BCHW)).numpy().reshape(-1)
        return found

    return features


def load(model: str | Path = DEFAULT_MODEL) -> Embedder:
    """Load an embedding.

    Args:
        model: `efficientnet-lite0`, or the path of an ONNX (.onnx) or TorchScript (.pt, .ts, .torchscript) file that
            takes float32 RGB of shape (1, 3, 224, 224) in torchvision's normalisation and returns at least 256 numbers;
            if it returns more, they are projected to 256 by a fixed random matrix.

    Raises:
        ConfigError: The file does not exist, or the package that runs it is not installed.
    """
    if str(model) == DEFAULT_MODEL:
        return _Lite0()
    path = Path(model)
    if not path.is_file():
        raise ConfigError(f"no embedding model at {path}; give {DEFAULT_MODEL}, or an ONNX or TorchScript file")
    return _ModelFile(path)


def sign_codes(vectors: Vectors) -> npt.NDArray[np.uint8]:
    """Return the signs of the vectors after a fixed random rotation, as bits, shape (pictures, 32)."""
    rotation = _rotation(DIMENSIONS)
    # One by one: how a matrix product rounds a row may depend on the number of rows.
    return np.packbits(np.array([vector @ rotation > 0 for vector in vectors]).reshape(-1, DIMENSIONS), axis=1)


def embedding_candidates(upstream: pa.Table, downstream: pa.Table, cosine_from: float) -> pa.Table:
    """Return the pairs of pictures with nearly equal vectors.

    Args:
        upstream: Has shard, row, sign_code (32 bytes), vector (list of 256 float16 or float32).
        downstream: Likewise; this side is held in memory, and a picture may have several rows.
        cosine_from: Smallest cosine of a pair. Signs differ by chance: of the pairs just at it one in 44 is lost, of
            those 0.1 above one in 4,000.

    Returns:
        Table of COSINE_SCHEMA, each pair of addresses once, at its largest cosine, sorted by addresses.
    """
    share = np.arccos(cosine_from) / np.pi
    radius = int(np.ceil(DIMENSIONS * share + _DEVIATIONS * np.sqrt(DIMENSIONS * share * (1 - share))))
    index = build_index(plain_words(codes_of(downstream, "sign_code")), radius, folded=False)
    up, down = search(index, plain_words(codes_of(upstream, "sign_code")))
    cosines = np.einsum("ij,ij->i", _vectors(upstream, up), _vectors(downstream, down))
    close = cosines >= cosine_from
    up, down, cosines = up[close], down[close], cosines[close]
    addresses = [upstream["shard"], upstream["row"], downstream["shard"], downstream["row"]]
    rows = [up, up, down, down]
    columns = [column.to_numpy()[taken] for column, taken in zip(addresses, rows, strict=True)]
    order = np.lexsort((-cosines, *columns[::-1]))
    ordered = [column[order] for column in columns]
    first = is_first_of_run(*ordered)
    return pa.table(
        [*(pa.array(column[first]) for column in ordered), pa.array(cosines[order][first])], schema=COSINE_SCHEMA
    )


def _vectors(table: pa.Table, rows: npt.NDArray[np.int64]) -> Vectors:
    taken = table["vector"].take(pa.array(rows)).combine_chunks()
    flat = (
        taken.flatten()
        if not isinstance(taken, pa.ChunkedArray)
        else pa.concat_arrays([part.flatten() for part in taken.chunks])
    )
    return np.asarray(flat.to_numpy(zero_copy_only=False), np.float32).reshape(-1, DIMENSIONS)


def _unit(rows: Sequence[Vectors]) -> Vectors:
    vectors = np.array(rows, np.float32).reshape(-1, DIMENSIONS)
    lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
    return np.asarray(vectors / lengths, np.float32)


@cache
def _rotation(size: int) -> Vectors:
    """Return a random orthogonal matrix, shape (size, size), always the same."""
    normal = np.random.Generator(np.random.Philox(key=[size, 0])).standard_normal((size, size))
    return np.linalg.qr(normal)[0].astype(np.float32)


@cache
def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=4).hexdigest()
