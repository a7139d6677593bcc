"""Weights of others start a run, and what is not whole or does not fit is refused with what is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.base.errors import ConfigError
from pipeline.dataset.dataset import Dataset
from pipeline.store.url import open_store
from tests.conftest import run_cli
from tests.trainer.jobs.exchanged import CLASSES, content, weights_of
from trainer.jobs.config import EvaluateConfig, FinetuneConfig
from trainer.jobs.evaluate import evaluate
from trainer.jobs.exchange import import_weights
from trainer.jobs.finetune import initial_model
from trainer.run.classes import stored_classes
from trainer.step.ranks import alone


def changed(change: Callable[[dict[str, np.ndarray]], object], source: Path, target: Path) -> str:
    values = content(source)
    change(values)
    np.savez(target, **values)
    return str(target)


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
