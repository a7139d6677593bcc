"""Weights go out to other code bases and come back bit for bit, described by what they are."""

import json
from pathlib import Path

import pytest
import torch

from pipeline.base.errors import Conflict
from pipeline.dataset.dataset import Dataset
from pipeline.store.url import open_store
from tests.conftest import run_cli
from tests.trainer.jobs.exchanged import CLASSES, content, save_run, weights_of
from trainer.formats.layouts import LAYOUTS, place_of
from trainer.formats.write import Format
from trainer.jobs.config import FinetuneConfig
from trainer.jobs.exchange import export_weights, import_weights
from trainer.model.architecture import parse_architecture
from trainer.model.network import ResNetV2
from trainer.run.classes import write_classes

FILES = {
    "official": "w.npz",
    "timm": "w.safetensors",
    "big_transfer": "w.pth.tar",
    "big_vision": "w.npz",
    "transformers": "w",
}


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


def test_an_export_is_written_once_more_without_a_complaint(run: str, tmp_path: Path) -> None:
    for file_format, name in FILES.items():
        first = export_weights(run, str(tmp_path / file_format / name), file_format)
        assert export_weights(run, str(tmp_path / file_format / name), file_format).urls == first.urls


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


def test_an_export_replaces_nothing_else(run: str, tmp_path: Path) -> None:
    (tmp_path / "w.npz.md").write_bytes(b"somebody's")
    with pytest.raises(Conflict, match=r"has another w\.npz\.md; give another OUT"):
        export_weights(run, str(tmp_path / "w.npz"), "official")
    assert (tmp_path / "w.npz.md").read_bytes() == b"somebody's"
    assert [path.name for path in tmp_path.iterdir()] == ["w.npz.md"]


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
