"""The card beside exported weights says what they are, and has no figure but of images held out."""

from pathlib import Path

import pytest

from pipeline.base.records import json_bytes
from pipeline.store.url import open_store
from tests.trainer.jobs.exchanged import CLASSES, save_run
from trainer.jobs.config import FinetuneConfig
from trainer.jobs.exchange import export_weights
from trainer.run.classes import write_classes
from trainer.run.history import Change


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
