"""Weights go out to other code bases and come back bit for bit, and what is not whole is refused with a list."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from torch import Tensor

from pipeline.base.errors import ConfigError, Conflict
from pipeline.dataset.dataset import Dataset
from pipeline.store.url import open_store
from tests.conftest import run_cli
from tests.trainer.model.test_golden import golden_model
from trainer.checkpoint.record import require_latest
from trainer.checkpoint.sharded import save
from trainer.checkpoint.weights import load_model
from trainer.formats.layouts import LAYOUTS, place_of
from trainer.jobs.config import EvaluateConfig, FinetuneConfig
from trainer.jobs.evaluate import evaluate
from trainer.jobs.exchange import export_weights, import_weights
from trainer.jobs.finetune import initial_model
from trainer.model.architecture import parse_architecture
from trainer.model.network import ResNetV2
from trainer.step.optimizer import model_state
from trainer.step.ranks import alone

FILES = {
    "official": "w.npz",
    "timm": "w.safetensors",
    "big_transfer": "w.pth.tar",
    "big_vision": "w.npz",
    "transformers": "w",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of R14x0.5 with 10 classes and weights that are all different."""
    url = str(tmp_path_factory.mktemp("run") / "r")
    model = golden_model("R14x0.5").float()
    about = {
        "model": "R14x0.5", "num_classes": 10, "classes_sha256": None, "data": "s3://b/d", "data_version": 3,
        "resolution_px": 64,
    }  # fmt: skip
    save(open_store(url), alone(), model_state(model), step=7, attempt="a", stream={}, about=about)
    return url


def weights_of(url: str) -> dict[str, Tensor]:
    store = open_store(url)
    return load_model(store, alone(), require_latest(store)).state_dict()


def content(path: Path) -> dict[str, np.ndarray]:
    if path.is_dir():
        path /= "model.safetensors"
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {key: file[key] for key in file.files}
    if path.suffix == ".safetensors":
        return {key: value.numpy() for key, value in safetensors.torch.load_file(path).items()}
    return {key: value.numpy() for key, value in torch.load(path, weights_only=True)["model"].items()}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and one[key].shape == other[key].shape and (one[key] == other[key]).all()
        for key in one
    )


@pytest.mark.parametrize("file_format", FILES)
def test_every_format_round_trips_bit_for_bit(run: str, file_format: str, tmp_path: Path) -> None:
    path = tmp_path / "out" / FILES[file_format]
    export_weights(run, str(path), file_format)
    taken = path / "model.safetensors" if path.suffix == "" else path
    done = import_weights(str(taken), str(tmp_path / "back"))
    assert (done.model, done.layout, done.num_classes, done.head_is_kept) == ("R14x0.5", file_format, 10, True)
    before, after = weights_of(run), weights_of(str(tmp_path / "back"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = tmp_path / "again" / FILES[file_format]
    export_weights(str(tmp_path / "back"), str(again), file_format)
    assert same(content(path), content(again))
    card = (path / "README.md" if path.is_dir() else path.with_name(f"{path.name}.md")).read_text()
    assert "R14x0.5 with 10 classes" in card
    assert "`s3://b/d`, version 3" in card


def test_official_files_have_the_published_keys_and_axes(run: str, tmp_path: Path) -> None:
    export_weights(run, str(tmp_path / "w.npz"), "official")
    found = {key: value.shape for key, value in content(tmp_path / "w.npz").items()}
    assert found["resnet/root_block/standardized_conv2d/kernel"] == (7, 7, 3, 32)
    assert found["resnet/block2/unit01/a/proj/standardized_conv2d/kernel"] == (1, 1, 128, 256)
    assert found["resnet/block4/unit01/b/standardized_conv2d/kernel"] == (3, 3, 256, 256)
    assert found["resnet/block1/unit01/a/group_norm/gamma"] == (32,)
    assert found["resnet/head/conv2d/kernel"] == (1, 1, 1024, 10)
    assert len(found) == 5 + 9 * 4 + 4
    kernel = content(tmp_path / "w.npz")["resnet/block1/unit01/c/standardized_conv2d/kernel"]
    ours = weights_of(run)["stages.0.blocks.0.conv3.weight"].numpy()
    assert (kernel[0, 0] == ours[:, :, 0, 0].T).all()


@pytest.mark.parametrize("paper_model", ["R50x1", "R101x1", "R152x4"])
def test_every_parameter_has_one_key_in_every_layout(paper_model: str) -> None:
    with torch.device("meta"):
        names = list(ResNetV2(parse_architecture(paper_model), 10).state_dict())
    for layout in LAYOUTS.values():
        assert len({layout.key(place_of(name)) for name in names}) == len(names) == len(set(names))


def changed(change: Callable[[dict[str, np.ndarray]], object], source: Path, target: Path) -> str:
    values = content(source)
    change(values)
    np.savez(target, **values)
    return str(target)


@pytest.fixture
def official(run: str, tmp_path: Path) -> Path:
    export_weights(run, str(tmp_path / "official.npz"), "official")
    return tmp_path / "official.npz"


def test_numbered_layers_and_extra_keys_are_taken(official: Path, tmp_path: Path) -> None:
    def renumber(values: dict[str, np.ndarray]) -> None:
        for number, key in enumerate([key for key in values if "/standardized_conv2d/" in key]):
            values[key.replace("standardized_conv2d", f"standardized_conv2d_{number}")] = values.pop(key)
        values["global_step"] = np.array(90)

    import_weights(changed(renumber, official, tmp_path / "numbered.npz"), str(tmp_path / "run"))
    import_weights(str(official), str(tmp_path / "plain"))
    one, other = weights_of(str(tmp_path / "run")), weights_of(str(tmp_path / "plain"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda v: v.pop("resnet/block2/unit01/b/group_norm/beta"), "block2/unit01/b/group_norm/beta is missing"),
        (
            lambda v: v.update({"resnet/block3/unit01/c/group_norm/gamma": np.ones(7, np.float32)}),
            r"block3/unit01/c/group_norm/gamma has shape \(7,\)",
        ),
        (
            lambda v: v.update({"resnet/block1/unit01/b/standardized_conv2d/kernel": np.ones((2, 3), np.float32)}),
            r"block1/unit01/b/standardized_conv2d/kernel has shape \(2, 3\)",
        ),
        (lambda v: [v.pop(key) for key in list(v) if "block4" in key], r"has \(1, 1, 1, 0\) units"),
        (lambda v: [v.pop(key) for key in list(v) if "head" in key], "has no classifier; import it with --head drop"),
        (lambda v: [v.pop(key) for key in list(v) if "root" in key], "none of the known layouts"),
    ],
)
def test_files_that_are_not_whole_are_refused_with_what_is_wrong(
    change: Callable[[dict[str, np.ndarray]], object], told: str, official: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        import_weights(changed(change, official, tmp_path / "bad.npz"), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


class Evil:
    """Pickles as a call of a function."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    victim = tmp_path / "executed"
    torch.save({"stem.conv.weight": Evil(victim)}, tmp_path / "evil.pth")
    objects = np.empty(1, object)
    objects[0] = Evil(victim)
    np.savez(tmp_path / "evil.npz", **{"resnet/root_block/standardized_conv2d/kernel": objects})
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil(victim)))
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    for name in ("evil.pth", "evil.npz", "plain.pth", "cut.npz"):
        with pytest.raises(ConfigError, match="is no file of plain weights"):
            import_weights(str(tmp_path / name), str(tmp_path / "run"))
    assert not victim.exists()


def test_a_head_for_other_classes_starts_at_zero_and_training_goes_on_from_the_body(
    official: Path, small_dataset: Dataset, tmp_path: Path
) -> None:
    done = import_weights(str(official), str(tmp_path / "run"), num_classes=3)
    assert not done.head_is_kept
    weights = weights_of(str(tmp_path / "run"))
    assert weights["head.fc.weight"].shape == (3, 1024, 1, 1)
    assert (weights["head.fc.weight"] == 0).all()
    url = small_dataset.store.url
    config = FinetuneConfig(
        init=str(tmp_path / "run"), model="R14x0.5", train=url, train_version=1, test=url, test_version=1,
        out=str(tmp_path / "ft"),
    )  # fmt: skip
    started = initial_model(config, alone(), 3)[0].state_dict()
    assert all(torch.equal(started[name], weights[name]) for name in started)


def test_imported_models_with_class_names_are_evaluated_and_others_say_what_they_lack(
    official: Path, small_dataset: Dataset, tmp_path: Path
) -> None:
    def config(run: str) -> EvaluateConfig:
        return EvaluateConfig(run=run, data=small_dataset.store.url, data_version=1, out=f"{run}-result")

    named, nameless = str(tmp_path / "named"), str(tmp_path / "nameless")
    import_weights(str(official), named, classes=small_dataset.classes, resolution_px=32)
    rows: list[dict[str, object]] = []
    evaluate(config(named), alone(), rows.append)
    assert rows[-1]["num_test"] == 90
    import_weights(str(official), nameless, num_classes=3)
    with pytest.raises(ConfigError, match="import it again with --classes"):
        evaluate(config(nameless), alone(), rows.append)


def test_onnxruntime_gives_the_logits_of_the_model_for_any_batch(run: str, tmp_path: Path) -> None:
    export_weights(run, str(tmp_path / "w.onnx"), "onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "w.onnx"), providers=["CPUExecutionProvider"])
    model = golden_model("R14x0.5").float().eval()
    for count in (1, 3):
        images = torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            expected = model(images).numpy()
        (found,) = session.run(["logits"], {"images": images.numpy()})
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_folder_for_transformers_describes_its_network(run: str, tmp_path: Path) -> None:
    export_weights(run, str(tmp_path / "hf"), "transformers")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["depths"] == [1, 1, 1, 1]
    assert config["embedding_size"] == 32
    assert config["hidden_sizes"] == [128, 256, 512, 1024]


def test_an_export_replaces_nothing_else(run: str, tmp_path: Path) -> None:
    (tmp_path / "w.npz").write_bytes(b"somebody's")
    with pytest.raises(Conflict):
        export_weights(run, str(tmp_path / "w.npz"), "official")
    assert (tmp_path / "w.npz").read_bytes() == b"somebody's"


def test_the_command_line_says_what_it_took_and_refuses_wrong_names(official: Path, tmp_path: Path) -> None:
    done = run_cli("trainer", "import", str(official), "run", cwd=tmp_path)
    assert done.stdout == "R14x0.5 from a file in the layout of official, with its head for 10 classes\n"
    wrong = run_cli("trainer", "export", "run", "w.zip", "--format", "timm", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "a file in the format timm ends with .safetensors or .pth" in wrong.stderr
    other = run_cli("trainer", "import", str(official), "other", "--model", "R50x1", cwd=tmp_path)
    assert "holds R14x0.5, not R50x1" in other.stderr
