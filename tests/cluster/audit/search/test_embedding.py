"""Vectors depend on their picture alone; candidates are those of comparing all cosines, less what the signs miss."""

import tarfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from cluster.audit.search.embedding import embedding, lite0
from cluster.audit.search.embedding.embedding import ViewVectors, _least_of_most, view_candidates
from cluster.audit.search.embedding.models import DIMENSIONS, Embedder, Nearness, Session, load, model_input
from cluster.audit.search.embedding.views import VIEWS, cut, pooled
from pipeline.base.errors import ConfigError
from pipeline.image.decode import decode
from tests.cluster.audit.audits import scene
from tests.conftest import picture
from tests.photos import SHARED_DATA, photo_like


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return load()


def test_vectors_depend_on_their_picture_alone(embedder: Embedder) -> None:
    pictures = [picture(seed, 40 + 30 * seed, 90) for seed in range(3)]
    found = [embedder.embed(pixels) for pixels in pictures]
    assert {vectors.shape for vectors in found} == {(len(VIEWS), DIMENSIONS)}
    assert {vectors.dtype for vectors in found} == {np.dtype(np.float32)}
    np.testing.assert_allclose(np.linalg.norm(found[0], axis=1), 1, atol=1e-5)
    other = load()
    again = [other.embed(pixels) for pixels in pictures[::-1]][::-1]
    assert all(np.array_equal(one, two) for one, two in zip(found, again, strict=True))


def test_a_crop_is_nearer_than_another_picture(embedder: Embedder) -> None:
    whole, other = scene(1), scene(2)
    pictures = (whole, np.ascontiguousarray(whole[15:170, 20:225]), other)
    one, crop, stranger = (embedder.embed(pixels)[0] for pixels in pictures)
    assert one @ crop > max(0.45, one @ stranger + Nearness().margin)


def test_views_are_averages_of_their_part_of_the_map_and_cuts_of_the_picture() -> None:
    rows, columns = np.meshgrid(np.arange(5.0), np.arange(5.0), indexing="ij")
    means = pooled(np.stack([rows, columns]).astype(np.float32))
    for view, (row, column) in zip(VIEWS, means, strict=True):
        assert row == pytest.approx((view.top + view.height / 2) * 5 - 0.5, abs=0.51)
        assert column == pytest.approx((view.left + view.width / 2) * 5 - 0.5, abs=0.51)
    assert means[0].tolist() == pytest.approx([2, 2])
    pixels = np.arange(7 * 5 * 3, dtype=np.uint8).reshape(7, 5, 3)
    assert np.array_equal(cut(pixels, VIEWS[0]), pixels)
    assert {cut(pixels[:1, :1], view).shape for view in VIEWS} == {(1, 1, 3)}


def logits(pictures: list[np.ndarray]) -> np.ndarray:
    """Return the ImageNet logits of the default network, which the embedding itself leaves out."""
    weights = lite0.read_weights(lite0.weights_path())
    session = Session(lite0.onnx_model(weights))
    features = np.array([session.features(model_input(pixels, 224)).mean(axis=(1, 2)) for pixels in pictures])
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


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def side(vectors: np.ndarray, rows: np.ndarray, views: np.ndarray | None = None, shard: int = 0) -> ViewVectors:
    views = np.zeros(len(rows)) if views is None else views
    return ViewVectors(np.full(len(rows), shard, np.int32), rows.astype(np.int32), views.astype(np.int8), vectors)


def found_pairs(up: ViewVectors, down: ViewVectors, **nearness: float) -> dict[tuple[int, int], float]:
    rows = view_candidates(up, down, Nearness(**nearness)).to_pylist()
    return {(row["up_row"], row["down_row"]): row["cosine"] for row in rows}


def test_all_sure_pairs_are_candidates_at_their_cosine() -> None:
    generator = np.random.default_rng(0)
    down = unit(generator.standard_normal((300, DIMENSIONS)))
    noise = generator.uniform(0.2, 1.6, (1400, 1)) * unit(generator.standard_normal((1400, DIMENSIONS)))
    up = unit(down[generator.integers(0, 300, 1400)] + noise)
    pairs = found_pairs(side(up, np.arange(1400)), side(down, np.arange(300)), sure_from=0.6, margin=0.99)
    cosines = up @ down.T
    assert set(pairs) == set(zip(*(part.tolist() for part in np.nonzero(cosines >= 0.6)), strict=True))
    assert all(abs(cosine - cosines[pair]) < 1e-5 for pair, cosine in pairs.items())


def test_a_copy_stands_out_from_the_nearest_others_of_its_upstream_picture() -> None:
    generator = np.random.default_rng(2)
    base = unit(generator.standard_normal((1, DIMENSIONS)))
    noise = unit(generator.standard_normal((30, DIMENSIONS)))
    down = unit(base + np.where(np.arange(30) == 0, 1.5, 2.5)[:, None] * noise)  # cosines 0.55 and about 0.37
    up = side(base, np.arange(1))
    assert set(found_pairs(up, side(down, np.arange(30)), margin=0.1)) == {(0, 0)}
    assert found_pairs(up, side(down, np.arange(30)), margin=0.3) == {}
    assert len(found_pairs(up, side(down, np.arange(30)), margin=0.0)) <= 5


def test_all_of_several_equal_copies_are_candidates_wherever_they_are() -> None:
    generator = np.random.default_rng(2)
    base = unit(generator.standard_normal((1, DIMENSIONS)))
    noise = unit(generator.standard_normal((30, DIMENSIONS)))
    down = unit(base + np.where(np.arange(30) < 8, 1.5, 2.5)[:, None] * noise[np.arange(30).clip(7)])
    for order in (np.arange(30), np.arange(30)[::-1], generator.permutation(30)):
        found = found_pairs(side(base, np.arange(1)), side(down[order], np.arange(30)), margin=0.01)
        assert {int(order[row]) for _, row in found} == set(range(8))


def test_a_part_of_the_upstream_picture_meets_the_whole_other_one_and_parts_do_not_meet_parts() -> None:
    base = unit(np.random.default_rng(1).standard_normal((4, DIMENSIONS)))
    rows, views = np.array([7, 7]), np.array([0, 3])
    assert found_pairs(side(base[[0, 1]], rows, views), side(base[[1, 2]], rows, views)) == {(7, 7): pytest.approx(1)}
    assert found_pairs(side(base[[0, 1]], rows, views), side(base[[2, 1]], rows, views)) == {}
    assert found_pairs(side(base[[1, 0]], rows, views), side(base[[2, 1]], rows, views)) == {(7, 7): pytest.approx(1)}


def test_within_a_set_a_picture_is_no_candidate_of_itself() -> None:
    own = side(unit(np.random.default_rng(1).standard_normal((3, DIMENSIONS))), np.arange(3))
    assert view_candidates(own, own, Nearness(), is_within=True).num_rows == 0


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
    for pixels in pictures:
        assert one.embed(pixels).shape == (1, DIMENSIONS)
        np.testing.assert_allclose(one.embed(pixels), other.embed(pixels), atol=1e-4)
    assert one.version != other.version
    described(tmp_path, 'model = "own.onnx"\ncrops = true\nmean = [0, 0, 0]\n[nearness]\nmargin = 0.1')
    toml = load(tmp_path / "own.toml")
    assert (toml.embed(pictures[0]).shape, toml.nearness.margin) == ((len(VIEWS), DIMENSIONS), 0.1)
    assert toml.version != one.version
    assert not np.allclose(toml.embed(pictures[0])[0], one.embed(pictures[0])[0], atol=0.01)
    centre = np.random.default_rng(4).standard_normal(300)
    np.savez(tmp_path / "white.npz", centre=centre, projection=np.eye(300)[:, :DIMENSIONS])
    described(tmp_path, 'model = "own.pt"\nwhitening = "white.npz"')
    white = load(tmp_path / "own.toml").embed(pictures[0])[0]
    raw = channel_means(pictures[0]) @ weight.T - centre
    np.testing.assert_allclose(white, raw[:DIMENSIONS] / np.linalg.norm(raw[:DIMENSIONS]), atol=1e-4)


def described(folder: Path, text: str) -> None:
    (folder / "own.toml").write_text(text)


def channel_means(pixels: np.ndarray) -> np.ndarray:
    """Return what the stand-in network sees of a picture: the means of its normalised channels."""
    resized = np.asarray(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BILINEAR), np.float64)
    return (resized.mean(axis=(0, 1)) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crops = true", "own.toml: model: Field required"),
        ('model = "own.onnx"\nsides = 3', "own.toml: sides: Extra inputs are not permitted"),
        ('model = "gone.onnx"', "no embedding model at .*gone.onnx"),
        ('model = "broken.onnx"', "own.toml: the model cannot embed a picture of 224 px"),
        ('model = "broken.pt"', "own.toml: the model cannot embed a picture of 224 px"),
        ('model = "nan.pt"', "own.toml: the vector of a picture is not finite"),
        ('model = "nan.pt"\ndeviation = [0, 1, 1]', "own.toml: deviation.0: Input should be greater than 0"),
        ('model = "nan.pt"\nwhitening = "broken.pt"', r"broken.pt is no .npz file with `centre` and `projection`"),
    ],
)
def test_a_description_that_does_not_fit_is_refused_with_its_reason(tmp_path: Path, text: str, message: str) -> None:
    for name in ("broken.onnx", "broken.pt"):
        (tmp_path / name).write_bytes(b"no model")
    linear = torch.nn.Linear(3, 300, bias=False)
    linear.weight.data[:] = float("nan")
    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), linear)
    torch.jit.trace(module, torch.zeros(1, 3, 224, 224), check_trace=False).save(str(tmp_path / "nan.pt"))
    described(tmp_path, text)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "own.toml")


def test_a_missing_model_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no embedding model at nowhere\.onnx"):
        load("nowhere.onnx")


def several_views(generator: np.random.Generator, num_pictures: int, shard: int) -> ViewVectors:
    """Return pictures near to a few common ones, so that backgrounds, ranks and ties matter."""
    rows, views = np.repeat(np.arange(num_pictures), 3), np.tile(np.arange(3), num_pictures)
    centres = unit(np.random.default_rng(9).standard_normal((4, DIMENSIONS)))
    vectors = centres[generator.integers(0, 4, len(rows))] + 0.06 * generator.standard_normal((len(rows), DIMENSIONS))
    return side(unit(vectors), rows, views, shard)


def test_many_near_pairs_are_measured_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    up, down = several_views(generator, 40, 0), several_views(generator, 90, 5)
    whole = view_candidates(up, down, Nearness(margin=0))
    monkeypatch.setattr("cluster.audit.search.embedding.embedding._PAIRS_PER_STEP", 7)
    assert view_candidates(up, down, Nearness(margin=0)).equals(whole)


@pytest.mark.parametrize("size", [1, 7, 40])
def test_candidates_of_an_upstream_picture_do_not_depend_on_its_shard(size: int) -> None:
    generator = np.random.default_rng(3)
    up, down = several_views(generator, 40, 0), several_views(generator, 90, 5)
    whole = view_candidates(up, down, Nearness(margin=0)).to_pylist()
    parts = [
        row
        for start in range(-(-40 // size))
        for row in view_candidates(up.taken(up.row // size == start), down, Nearness(margin=0)).to_pylist()
    ]
    assert parts == whole
    assert len(whole) > 100
    order = generator.permutation(len(down.row))
    shuffled = ViewVectors(down.shard[order], down.row[order], down.view[order], down.vectors[order])
    assert view_candidates(up, shuffled, Nearness(margin=0)).to_pylist() == whole


@pytest.mark.parametrize("is_within", [False, True])
@pytest.mark.parametrize("sure_from", [0.5, 0.8, 1.0])
def test_near_pictures_beyond_the_nearest_ones_are_left_out_early_and_change_nothing(
    monkeypatch: pytest.MonkeyPatch, sure_from: float, *, is_within: bool
) -> None:
    generator = np.random.default_rng(4)
    up, down = several_views(generator, 60, 5), several_views(generator, 200, 5)
    nearness = Nearness(margin=0.01, sure_from=sure_from)
    few = view_candidates(up, down, nearness, is_within=is_within)
    measured: list[int] = []

    def all_of_them(rows: np.ndarray, values: np.ndarray, most: int) -> np.ndarray:
        measured.append(len(rows) - int((values >= _least_of_most(rows, values, most)).sum()))
        return np.full(len(rows), -1, np.float32)

    monkeypatch.setattr(embedding, "_least_of_most", all_of_them)
    assert view_candidates(up, down, nearness, is_within=is_within).equals(few)
    assert few.num_rows > 100
    assert min(measured) > 1000  # there is something to leave out
