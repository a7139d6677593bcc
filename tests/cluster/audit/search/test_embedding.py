"""Vectors depend on their picture alone; candidates are those of comparing all cosines, less what the signs miss."""

import tarfile
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from cluster.audit.search.embedding import lite0
from cluster.audit.search.embedding.embedding import (
    COSINE_FROM,
    DIMENSIONS,
    Embedder,
    Session,
    embedding_candidates,
    load,
    model_input,
    sign_codes,
)
from pipeline.base.errors import ConfigError
from pipeline.image.decode import decode
from tests.cluster.audit.audits import scene
from tests.conftest import picture
from tests.photos import SHARED_DATA, photo_like


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return load()


def test_vectors_do_not_depend_on_the_batch_or_the_run(embedder: Embedder) -> None:
    pictures = [picture(seed, 40 + 30 * seed, 90) for seed in range(5)]
    together = embedder.embed(pictures)
    assert together.shape == (5, DIMENSIONS)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert np.array_equal(together, load().embed(pictures[::-1])[::-1])
    assert np.array_equal(together[3:4], embedder.embed(pictures[3:4]))
    assert np.array_equal(sign_codes(together)[3:4], sign_codes(together[3:4]))


def test_a_crop_is_nearer_than_another_picture(embedder: Embedder) -> None:
    whole, other = scene(1), scene(2)
    one, crop, stranger = embedder.embed([whole, np.ascontiguousarray(whole[15:170, 20:225]), other])
    assert one @ crop > COSINE_FROM
    assert one @ crop > one @ stranger


def logits(pictures: list[np.ndarray]) -> np.ndarray:
    """Return the ImageNet logits of the default network, which the embedding itself leaves out."""
    weights = lite0.read_weights(lite0.weights_path())
    session = Session(lite0.onnx_model(weights))
    features = np.array([session.features(model_input(pixels)) for pixels in pictures])
    return features @ weights["_fc.weight"].T + weights["_fc.bias"]


PHOTOS = SHARED_DATA / "photos-200.tar"


@pytest.mark.skipif(not PHOTOS.exists(), reason="needs photos of known ImageNet classes; no drawing stands in for them")
def test_the_default_network_knows_imagenet() -> None:
    """Photo of 200 different ImageNet classes, in the order of the classes: so are the right answers."""
    with tarfile.open(PHOTOS) as tar:
        members = sorted((member for member in tar if member.isfile()), key=lambda member: member.name)[::3]
        photos = [decode(tar.extractfile(member).read()) for member in members]
    assert (np.diff(logits(photos).argmax(axis=1)) > 0).mean() > 0.7  # 0.5 by chance


def test_the_default_network_answers_as_the_one_that_knew_imagenet() -> None:
    """Recorded beside the test above. Coloured shapes look to it like a pinwheel (723) and a rubber eraser (767)."""
    found = logits([photo_like(seed, 240, 320) for seed in range(5)])
    assert found.argmax(axis=1).tolist() == [723, 767, 723, 723, 723]
    assert found.max(axis=1) == pytest.approx([7.101, 8.822, 6.579, 8.820, 7.711], abs=0.05)


def vectors_table(vectors: np.ndarray, shard: int, rows: np.ndarray | None = None) -> pa.Table:
    rows = np.arange(len(vectors)) if rows is None else rows
    return pa.table(
        {
            "shard": pa.array(np.full(len(vectors), shard, np.int32)),
            "row": pa.array(rows.astype(np.int32)),
            "sign_code": pa.array([code.tobytes() for code in sign_codes(vectors)], pa.binary(32)),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIMENSIONS),
        }
    )


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_candidates_are_the_pairs_above_the_cosine() -> None:
    generator = np.random.default_rng(0)
    down = unit(generator.standard_normal((300, DIMENSIONS)))
    up = unit(
        down[generator.integers(0, 300, 400)]
        + generator.uniform(0.2, 1.6, (400, 1)) * unit(generator.standard_normal((400, DIMENSIONS)))
    )
    up_table, down_table = vectors_table(up, 3), vectors_table(down, 5)
    found = embedding_candidates(up_table, down_table, 0.6)
    pairs = {(r["up_row"], r["down_row"]): r["cosine"] for r in found.to_pylist()}
    cosines = up @ down.T
    assert set(pairs) <= set(zip(*(part.tolist() for part in np.nonzero(cosines >= 0.6)), strict=True))
    assert set(pairs) >= set(zip(*(part.tolist() for part in np.nonzero(cosines >= 0.75)), strict=True))
    assert len(pairs) > 0.97 * (cosines >= 0.6).sum()
    assert all(abs(cosine - cosines[pair]) < 1e-5 for pair, cosine in pairs.items())
    back = embedding_candidates(down_table, up_table, 0.6).to_pylist()
    assert {(r["down_row"], r["up_row"]) for r in back} == set(pairs)


def test_a_picture_given_in_several_views_is_listed_once_at_its_best() -> None:
    base = unit(np.random.default_rng(1).standard_normal((2, DIMENSIONS)))
    views = unit(np.stack([base[0], base[0] + 0.4 * base[1]]))
    found = embedding_candidates(
        vectors_table(views[1:], 0), vectors_table(views, 0, np.array([7, 7])), 0.5
    ).to_pylist()
    assert [(r["down_row"], round(r["cosine"], 3)) for r in found] == [(7, 1.0)]


def test_a_model_of_the_user_runs_as_onnx_and_as_torchscript(tmp_path: Path) -> None:
    weight = np.random.default_rng(3).standard_normal((300, 3)).astype(np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["y"], transB=1),
    ]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 3, 224, 224]), ("y", [1, 300]))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "own.onnx"
    )
    linear = torch.nn.Linear(3, 300, bias=False)
    linear.weight.data = torch.from_numpy(weight)
    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), linear)
    torch.jit.trace(module, torch.zeros(1, 3, 224, 224)).save(str(tmp_path / "own.pt"))
    pictures = [picture(4), picture(5)]
    one, other = (load(tmp_path / name) for name in ("own.onnx", "own.pt"))
    np.testing.assert_allclose(one.embed(pictures), other.embed(pictures), atol=1e-4)
    assert one.version != other.version


def test_a_missing_model_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no embedding model at nowhere\.onnx"):
        load("nowhere.onnx")
