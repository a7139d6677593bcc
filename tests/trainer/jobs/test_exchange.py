"""Weights go out to other code bases and come back bit for bit, and what is not whole is refused with a list."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from torch import Tensor

import trainer
from pipeline.base.errors import ConfigError, Conflict
from pipeline.base.records import json_bytes
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.schema import sha256_hex
from pipeline.store.url import open_store
from tests.conftest import run_cli
from tests.trainer.model.test_golden import golden_model
from trainer.checkpoint.record import require_latest
from trainer.checkpoint.sharded import save
from trainer.checkpoint.weights import load_model
from trainer.formats.layouts import LAYOUTS, place_of
from trainer.formats.write import Format
from trainer.jobs.config import EvaluateConfig, FinetuneConfig
from trainer.jobs.evaluate import evaluate
from trainer.jobs.exchange import export_weights, import_weights
from trainer.jobs.finetune import initial_model
from trainer.model.architecture import parse_architecture
from trainer.model.build import new_model
from trainer.model.network import ResNetV2
from trainer.run.classes import stored_classes, write_classes
from trainer.run.history import Change
from trainer.step.optimizer import model_state
from trainer.step.ranks import alone

FILES = {
    "official": "w.npz",
    "timm": "w.safetensors",
    "big_transfer": "w.pth.tar",
    "big_vision": "w.npz",
    "transformers": "w",
}


ABOUT = {"model": "R14x0.5", "num_classes": 10, "data": "s3://b/d", "data_version": 3, "resolution_px": 64}
CLASSES = ("tench", "dög", *map(str, range(8)))


def save_run(url: str, classes: tuple[str, ...], **about: object) -> None:
    """Save a checkpoint of weights that are all different."""
    digest = sha256_hex("\n".join(classes).encode()) if classes else None
    state = model_state(golden_model("R14x0.5").float())
    if about.get("num_classes"):
        state = model_state(new_model("R14x0.5", len(classes), seed=0))
    whole = ABOUT | {"classes_sha256": digest} | about
    save(open_store(url), alone(), state, step=7, attempt="a", stream={}, about=whole)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of R14x0.5 with 10 classes by name."""
    url = str(tmp_path_factory.mktemp("run") / "r")
    save_run(url, CLASSES)
    write_classes(open_store(url), CLASSES)
    return url


@pytest.fixture(scope="module")
def nameless(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same without names."""
    url = str(tmp_path_factory.mktemp("run") / "nameless")
    save_run(url, ())
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


@pytest.mark.parametrize(("file_format", "name"), [*FILES.items(), ("timm", "w.pth"), ("timm", "w")], ids=str)
def test_every_format_comes_back_bit_for_bit_with_class_names_and_resolution(
    run: str, file_format: Format, name: str, tmp_path: Path
) -> None:
    path = tmp_path / "out" / name
    exported = export_weights(run, str(path), file_format)
    assert exported.warnings == []
    done = import_weights(str(path), str(tmp_path / "back"))
    assert (done.model, done.layout, done.num_classes, done.head_is_kept) == ("R14x0.5", file_format, 10, True)
    assert (done.classes, done.resolution_px) == (CLASSES, 64)
    before, after = weights_of(run), weights_of(str(tmp_path / "back"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = export_weights(str(tmp_path / "back"), str(tmp_path / "again" / name), file_format)
    for one, other in zip(exported.urls, again.urls, strict=True):
        assert one.endswith(".md") or Path(one).read_bytes() == Path(other).read_bytes()
    card = Path(exported.urls[-1]).read_text()
    assert "R14x0.5 with 10 classes" in card
    assert "`s3://b/d`, version 3" in card
    assert "Classes: tench, dög, 0" in card
    assert "at 64 px" in card
    assert "Measured" not in card


def test_a_model_file_inside_a_folder_is_described_by_the_folder(run: str, tmp_path: Path) -> None:
    export_weights(run, str(tmp_path / "w"), "transformers")
    done = import_weights(str(tmp_path / "w" / "model.safetensors"), str(tmp_path / "back"))
    assert (done.classes, done.resolution_px, done.described_by) == (CLASSES, 64, str(tmp_path / "w"))


def test_an_export_is_written_once_more_without_a_complaint(run: str, onnx_file: Path, tmp_path: Path) -> None:
    for file_format, name in FILES.items():
        first = export_weights(run, str(tmp_path / file_format / name), file_format)
        assert export_weights(run, str(tmp_path / file_format / name), file_format).urls == first.urls
    export_weights(run, str(onnx_file), "onnx", resolution_px=96)


def test_names_of_a_run_of_an_earlier_release_are_those_of_its_dataset(small_dataset: Dataset, tmp_path: Path) -> None:
    fields = {"data": small_dataset.store.url, "data_version": 1, "num_classes": 3}
    save_run(str(tmp_path / "run"), small_dataset.classes, **fields)
    config = FinetuneConfig(
        init="scratch", model="R14x0.5", train=small_dataset.store.url, train_version=1, test="gone", test_version=1,
        out=str(tmp_path / "sweep"),
    )  # fmt: skip
    open_store(str(tmp_path / "sweep")).create("run.json", config.to_json())
    save_run(str(tmp_path / "sweep/models/0000-shots-0"), small_dataset.classes, data=None, num_classes=3)
    for source in ("run", "sweep/models/0000-shots-0"):
        exported = export_weights(str(tmp_path / source), str(tmp_path / "out" / source / "hf"), "transformers")
        assert exported.warnings == []
        written = json.loads((tmp_path / "out" / source / "hf/config.json").read_text())
        assert written["id2label"] == {"0": "class0", "1": "class1", "2": "class2"}
        assert written["label2id"] == {"class0": 0, "class1": 1, "class2": 2}


@pytest.mark.parametrize("source", ["imported", "gone", "others", "damaged"])
def test_names_that_are_not_known_are_numbers_with_a_warning(
    source: str, nameless: str, small_dataset: Dataset, tmp_path: Path
) -> None:
    url = str(tmp_path / source)
    if source == "imported":
        url = nameless
    else:
        data = small_dataset.store.url if source == "others" else "nowhere"
        save_run(url, ("a", "b", "c"), data=data, data_version=1, num_classes=3)
    if source == "damaged":
        write_classes(open_store(url), ("a", "b", "x"))
    exported = export_weights(url, str(tmp_path / "hf"), "transformers")
    (warning,) = exported.warnings
    assert warning.startswith("classes are numbered, since their names are not known: ")
    assert json.loads((tmp_path / "hf/config.json").read_text())["id2label"]["2"] == "LABEL_2"
    assert "their names are not known" in (tmp_path / "hf/README.md").read_text()
    assert import_weights(str(tmp_path / "hf"), str(tmp_path / "back")).classes is None


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
    ("change", "message"),
    [
        (lambda v: v.pop("resnet/block2/unit01/b/group_norm/beta"), "block2/unit01/b/group_norm/beta is missing"),
        (
            lambda v: v.update({"resnet/block2/unit01/b/group_norm/beta": np.array(["text"])}),
            "block2/unit01/b/group_norm/beta is missing, or holds no numbers",
        ),
        (
            lambda v: v.update({"resnet/head/conv2d/bias": np.ones(7, np.float32)}),
            r"layout of official: resnet/head/conv2d/bias has shape \(7,\) instead of \(10,\)$",
        ),
        (lambda v: v.pop("resnet/head/conv2d/bias"), "official: resnet/head/conv2d/bias is missing"),
        (lambda v: v.pop("resnet/head/conv2d/kernel"), "resnet/head/conv2d/kernel is missing"),
        (
            lambda v: v.update({"resnet/root_block/standardized_conv2d/kernel": np.ones((7, 7, 1, 32), np.float32)}),
            r"root_block/standardized_conv2d/kernel has shape \(7, 7, 1, 32\) instead of \(7, 7, 3, 32\)",
        ),
        (
            lambda v: v.update({"resnet/root_block/standardized_conv2d/kernel": np.float32(1)}),
            "has a stem of 0 channels",
        ),
        (
            lambda v: v.update({"resnet/group_norm/beta": np.ones(1024, np.int8)}),
            "resnet/group_norm/beta holds int8",
        ),
        (
            lambda v: v.update({"resnet/block3/unit01/c/group_norm/gamma": np.ones(7, np.float32)}),
            r"block3/unit01/c/group_norm/gamma has shape \(7,\) instead of \(128,\)",
        ),
        (
            lambda v: v.update({"resnet/block1/unit01/b/standardized_conv2d/kernel": np.ones((2, 3), np.float32)}),
            r"block1/unit01/b/standardized_conv2d/kernel has shape \(2, 3\)",
        ),
        (lambda v: [v.pop(key) for key in list(v) if "block4" in key], r"has \(1, 1, 1, 0\) units"),
        (lambda v: [v.pop(key) for key in list(v) if "root" in key], "none of the known layouts"),
    ],
)
def test_files_that_are_not_whole_are_refused_with_what_is_wrong(
    change: Callable[[dict[str, np.ndarray]], object], message: str, official: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        import_weights(changed(change, official, tmp_path / "bad.npz"), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_finite_are_refused_by_name_and_count(official: Path, tmp_path: Path) -> None:
    def spoil(values: dict[str, np.ndarray]) -> None:
        values["resnet/group_norm/gamma"][:3] = np.nan
        values["resnet/block1/unit01/b/standardized_conv2d/kernel"][0, 0, 0, 0] = -np.inf
        values["resnet/head/conv2d/bias"] = np.full(10, 1e300)  # infinite in float32

    with pytest.raises(ConfigError) as refused:
        import_weights(changed(spoil, official, tmp_path / "nan.npz"), str(tmp_path / "run"))
    message = str(refused.value)
    assert f"{tmp_path}/nan.npz has 14 weights that are NaN or infinite" in message
    assert "resnet/group_norm/gamma (3 of 1,024)" in message
    assert "resnet/block1/unit01/b/standardized_conv2d/kernel (1 of 9,216)" in message
    assert "resnet/head/conv2d/bias (10 of 10)" in message
    assert not (tmp_path / "run").exists()
    spoiled = import_weights(str(tmp_path / "nan.npz").replace("nan", "official"), str(tmp_path / "run"))
    assert spoiled.head_is_kept


def headless(values: dict[str, np.ndarray]) -> None:
    for key in [key for key in values if "head" in key]:
        del values[key]


def test_a_file_without_a_classifier_asks_for_one_flag(official: Path, tmp_path: Path) -> None:
    file = changed(headless, official, tmp_path / "body.npz")
    with pytest.raises(ConfigError, match=r"body\.npz has no classifier, .* --num-classes 1"):
        import_weights(file, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    done = import_weights(file, str(tmp_path / "run"), num_classes=4)
    assert (done.num_classes, done.head_is_kept) == (4, False)
    done = import_weights(file, str(tmp_path / "named"), classes=("a", "b"))
    assert (done.num_classes, done.head_is_kept, done.classes) == (2, False, ("a", "b"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 3, "classes": ("a", "b")}, "--classes names 2 classes, and --num-classes is 3"),
        ({"head": "keep", "num_classes": 3}, "has 10 classes, not 3, so it cannot be kept"),
        ({"head": "keep", "classes": ("a", "b")}, "has 10 classes, not 2, so it cannot be kept"),
        ({"head": "drop"}, "--head drop leaves the classifier out"),
        ({"model": "R50x1"}, "holds R14x0.5, not R50x1"),
    ],
)
def test_wishes_that_do_not_agree_are_named(
    options: dict[str, Any], message: str, official: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        import_weights(str(official), str(tmp_path / "run"), **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "num_classes", "is_kept", "classes"),
    [
        ({}, 10, True, CLASSES),
        ({"head": "keep"}, 10, True, CLASSES),
        ({"head": "keep", "classes": tuple("abcdefghij")}, 10, True, tuple("abcdefghij")),
        ({"num_classes": 10}, 10, True, CLASSES),
        ({"num_classes": 3}, 3, False, None),
        ({"classes": ("a", "b")}, 2, False, ("a", "b")),
        ({"head": "drop", "num_classes": 10}, 10, False, None),
    ],
)
def test_the_head_is_kept_where_it_fits(
    options: dict[str, Any],
    num_classes: int,
    is_kept: bool,
    classes: tuple[str, ...] | None,
    official: Path,
    tmp_path: Path,
) -> None:
    done = import_weights(str(official), str(tmp_path / "run"), **options)
    assert (done.num_classes, done.head_is_kept, done.classes) == (num_classes, is_kept, classes)
    assert stored_classes(open_store(str(tmp_path / "run"))) == classes
    head = weights_of(str(tmp_path / "run"))["head.fc.weight"]
    assert head.shape[0] == num_classes
    assert bool(head.any()) == is_kept


def test_names_beside_a_file_that_are_not_of_its_head_are_refused(official: Path, tmp_path: Path) -> None:
    beside = official.with_name("official.npz.json")
    config = json.loads(beside.read_text())
    beside.write_text(json.dumps(config | {"label_names": ["a", "b"]}))
    with pytest.raises(ConfigError, match=r"official\.npz\.json names 2 classes, and the head .* has 10; give"):
        import_weights(str(official), str(tmp_path / "run"))
    assert import_weights(str(official), str(tmp_path / "run"), classes=CLASSES).classes == CLASSES


def test_an_import_that_was_cut_short_is_finished_and_a_run_is_not_replaced(official: Path, tmp_path: Path) -> None:
    import_weights(str(official), str(tmp_path / "run"))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    import_weights(str(official), str(tmp_path / "run"))
    for options in ({}, {"num_classes": 3}):
        with pytest.raises(ConfigError, match="holds a run already"):
            import_weights(str(official), str(tmp_path / "run"), **options)


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

    named, unnamed = str(tmp_path / "named"), str(tmp_path / "unnamed")
    import_weights(str(official), named, classes=small_dataset.classes, resolution_px=32)
    rows: list[dict[str, object]] = []
    evaluate(config(named), alone(), rows.append)
    assert rows[-1]["num_test"] == 90
    import_weights(str(official), unnamed, num_classes=3)
    with pytest.raises(ConfigError, match="import it again with --classes"):
        evaluate(config(unnamed), alone(), rows.append)


def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def assert_same_logits(session: onnxruntime.InferenceSession, *shape: int) -> None:
    images = torch.randn(*shape, generator=torch.Generator().manual_seed(shape[0]))
    with torch.no_grad():
        expected = golden_model("R14x0.5").float().eval()(images).numpy()
    (found,) = session.run(["logits"], {"images": images.numpy()})
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.fixture(scope="module")
def onnx_file(run: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "w.onnx"
    export_weights(run, str(path), "onnx", resolution_px=96)
    return path


def test_onnxruntime_gives_the_logits_of_the_model_for_any_batch_at_one_resolution(onnx_file: Path) -> None:
    session = session_of(onnx_file)
    for count in (1, 3):
        assert_same_logits(session, count, 3, 96, 96)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="Expected: 96"):
        session.run(["logits"], {"images": np.zeros((1, 3, 64, 64), np.float32)})
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list(CLASSES)
    assert json.loads(metadata["resolution_px"]) == 96
    assert metadata["model"] == "R14x0.5"


def test_onnx_files_take_any_height_and_width_where_that_is_asked_for(run: str, tmp_path: Path) -> None:
    done = run_cli("trainer", "export", f"{run}@7", "w.onnx", "--format", "onnx", "--resolution", "any", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")  # torch has nothing to say
    assert done.stdout.splitlines() == [f"{tmp_path}/w.onnx", f"{tmp_path}/w.onnx.md"]
    session = session_of(tmp_path / "w.onnx")
    for height, width in ((64, 64), (33, 47), (224, 160)):
        assert_same_logits(session, 2, 3, height, width)
    with pytest.raises(ConfigError, match="--resolution any is for --format onnx"):
        export_weights(run, str(tmp_path / "w.npz"), "official", any_size=True)


def test_onnx_files_name_no_source_and_no_path_of_this_machine(onnx_file: Path) -> None:
    body = onnx_file.read_bytes()
    assert str(Path(trainer.__file__).parent).encode() not in body
    assert b"network.py" not in body


def test_the_folder_for_transformers_describes_its_network_and_the_images(run: str, tmp_path: Path) -> None:
    export_weights(run, str(tmp_path / "hf"), "transformers", resolution_px=48)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["depths"] == [1, 1, 1, 1]
    assert config["embedding_size"] == 32
    assert config["hidden_sizes"] == [128, 256, 512, 1024]
    assert config["id2label"] == {str(label): name for label, name in enumerate(CLASSES)}
    processor = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert (processor["do_resize"], processor["size"]) == (True, {"height": 48, "width": 48})
    assert (processor["resample"], processor["do_center_crop"]) == (2, False)
    assert (processor["image_mean"], processor["image_std"]) == ([0.5] * 3, [0.5] * 3)


def test_the_folder_for_timm_names_classes_and_images(run: str, tmp_path: Path) -> None:
    export_weights(run, str(tmp_path / "w"), "timm")
    config = json.loads((tmp_path / "w" / "config.json").read_text())
    assert config["label_names"] == list(CLASSES)
    assert config["pretrained_cfg"]["input_size"] == [3, 64, 64]
    assert config["pretrained_cfg"]["crop_mode"] == "squash"
    assert "timm has no model of the name R14x0.5" in (tmp_path / "w" / "README.md").read_text()


def sweep_model(tmp_path: Path, **config: object) -> str:
    """A fine-tuned model with its result, in a sweep."""
    sweep = FinetuneConfig(
        **{"init": "runs/m", "model": "R14x0.5", "out": str(tmp_path / "sweep")}
        | {"train": "pets/train", "train_version": 2, "test": "pets/test", "test_version": 5, **config}
    )
    open_store(str(tmp_path / "sweep")).create("run.json", sweep.to_json())
    result = {
        "name": "0005-shots-1", "init": "runs/m", "shots": 5, "subset": 1, "num_train": 50, "accuracy": 0.8125,
        "low": 0.7654, "high": 0.8519, "num_correct": 260, "num_test": 320, "recipe": {"steps": 500, "batch_size": 512},
    }  # fmt: skip
    url = str(tmp_path / "sweep/models/0005-shots-1")
    save_run(url, CLASSES, data=None, data_version=None, result=result)
    write_classes(open_store(url), CLASSES)
    return url


def test_the_card_of_a_fine_tuned_model_has_its_accuracy_with_interval_and_nothing_else(tmp_path: Path) -> None:
    export_weights(sweep_model(tmp_path), str(tmp_path / "w.npz"), "official")
    card = (tmp_path / "w.npz.md").read_text()
    measured = card.partition("## Measured")[2].strip().splitlines()
    assert measured == [
        "| figure | value |",
        "| --- | --- |",
        "| accuracy | 81.2 % (95 % interval 76.5 to 85.2) |",
        "| test set | `pets/test`, version 5, 320 images, 260 of them right |",
        "| training set | 50 images, 5 for each class |",
    ]
    assert "| data | `pets/train`, version 2; starting from `runs/m` |" in card
    assert "| batch_size | 512 |" in card


@pytest.mark.parametrize("kind", ["tested on its training set", "pretrained"])
def test_a_card_has_no_figure_where_none_is_of_images_held_out(kind: str, tmp_path: Path) -> None:
    url = str(tmp_path / "run")
    if kind == "pretrained":
        save_run(url, CLASSES)
        open_store(url).create("metrics/000000007.jsonl", b'{"step": 7, "loss": 0.1, "accuracy": 0.9, "retries": 2}')
    else:
        url = sweep_model(tmp_path, test="pets/train", test_version=2)
    export_weights(url, str(tmp_path / "w.npz"), "official")
    card = (tmp_path / "w.npz.md").read_text()
    assert "Measured" not in card
    assert "accuracy" not in card
    assert "retries" not in card


def test_the_card_says_what_was_changed_on_the_way(tmp_path: Path) -> None:
    save_run(str(tmp_path / "run"), CLASSES)
    store = open_store(str(tmp_path / "run"))
    store.create("run.json", json_bytes({"data": "s3://b/d", "recipe": {"epochs": 2}, "mix": [
        {"data": "s3://b/more", "data_version": 4, "weight": 0.25}
    ]}))  # fmt: skip
    for number, step in enumerate((5, 9)):
        change = Change(
            step=step, epochs_done=1, time=0, before={"recipe.epochs": 2}, after={"recipe.epochs": 3 + number}
        )
        store.create(f"changes/{number:04d}.json", change.to_json())
    export_weights(str(tmp_path / "run"), str(tmp_path / "w.npz"), "official")
    card = (tmp_path / "w.npz.md").read_text()
    assert "- changed after step 5: recipe.epochs from 2 to 3" in card
    assert "from 2 to 4" not in card  # after the checkpoint
    assert "| data | `s3://b/d`, version 3; `s3://b/more`, version 4, weight 0.25 |" in card


def test_an_export_replaces_nothing_else(run: str, tmp_path: Path) -> None:
    (tmp_path / "w.npz.md").write_bytes(b"somebody's")
    with pytest.raises(Conflict, match=r"has another w\.npz\.md; give another OUT"):
        export_weights(run, str(tmp_path / "w.npz"), "official")
    assert (tmp_path / "w.npz.md").read_bytes() == b"somebody's"
    assert [path.name for path in tmp_path.iterdir()] == ["w.npz.md"]


def test_the_command_line_says_what_it_took_and_refuses_wrong_names(official: Path, tmp_path: Path) -> None:
    done = run_cli("trainer", "import", str(official), "run", cwd=tmp_path)
    assert done.stdout.splitlines() == [
        "R14x0.5 from a file in the layout of official, with its head for 10 classes",
        f"classes: tench, dög, 0, 1, 2, ..., from {official}.json",
        f"resolution: 64 px, from {official}.json",
    ]
    wrong = run_cli("trainer", "export", "run", "w.zip", "--format", "timm", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "a file in the format timm ends with .safetensors or .pth or no suffix: it is a folder" in wrong.stderr
    (tmp_path / "names.txt").write_text("a\n\nb\n")
    blank = run_cli("trainer", "import", str(official), "other", "--classes", "names.txt", cwd=tmp_path)
    assert (blank.returncode, blank.stderr.partition(";")[0]) == (2, "error: names.txt, line 2 is blank")


def test_an_export_names_the_steps_that_there_are_and_warns_of_numbered_classes(nameless: str, tmp_path: Path) -> None:
    missing = run_cli("trainer", "export", f"{nameless}@8", "n.npz", "--format", "official", cwd=tmp_path)
    assert missing.returncode == 1
    assert "has no checkpoint of step 8; it has those of steps 7" in missing.stderr
    small = run_cli("trainer", "export", nameless, "n.npz", "--format", "official", "--resolution", "8", cwd=tmp_path)
    assert "--resolution 8: write a number of pixels from 32, or any" in small.stderr
    done = run_cli("trainer", "export", nameless, "n.npz", "--format", "official", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr.startswith("warning: classes are numbered, since their names are not known: ")
    assert done.stderr.count("\n") == 1


def test_the_advice_where_onnx_is_missing_works_from_a_clone(run: str, tmp_path: Path) -> None:
    (tmp_path / "onnxscript.py").write_text("raise ImportError")
    done = run_cli("trainer", "export", run, "w.onnx", "--format", "onnx", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "pip install -e '.[onnx]'" in done.stderr
