"""Fine-tuning in one process: results, resume, MixUp. No Ray."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.base.errors import ConfigError, Fenced, Interrupted, NonFinite, ResumeMismatch
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.tables import from_parquet
from pipeline.store.lease import Lease
from pipeline.store.url import open_store
from tests.conftest import pack, run_cli
from tests.trainer.checkpoint.test_fallback import flip_a_byte
from tests.trainer.jobs.test_evaluate import exclusions
from tests.trainer.runs import Stopped, assert_equal, batch_of, damage_a_picture, final_state
from trainer.checkpoint.record import committed, latest, require_latest
from trainer.checkpoint.weights import load_model
from trainer.jobs.checks import check_finetune
from trainer.jobs.config import FinetuneConfig, Shortened
from trainer.jobs.finetune import finetune, initial_model, mixup, read_results
from trainer.run.controls import Controls
from trainer.run.metrics import read_metrics
from trainer.step.ranks import alone


def transfer_config(dataset: Dataset, init: str, out: Path, **fields: object) -> FinetuneConfig:
    short = Shortened(steps=6, batch_size=24, resize_px=40, crop_px=32)
    return FinetuneConfig(
        init=init, model="R14x0.5", train=dataset.store.url, train_version=1, test=dataset.store.url, test_version=1,
        out=str(out), num_subsets=2, shortened=short, num_lanes=12, **{"shots": (2, 0), **fields},
    )  # fmt: skip


def test_mixup_pairs_inside_lanes_and_keeps_the_weight_of_labels() -> None:
    batch = batch_of(8)
    mixed = mixup(batch, 0.3, samples_per_lane=4)
    assert torch.allclose(mixed.images_BCHW[0], 0.3 * batch.images_BCHW[0] + 0.7 * batch.images_BCHW[3])
    assert torch.allclose(mixed.images_BCHW[5], 0.3 * batch.images_BCHW[5] + 0.7 * batch.images_BCHW[6])
    assert torch.allclose(mixed.targets_BK.sum(1), torch.ones(8, dtype=torch.float64))


def test_pictures_with_several_labels_are_learned_label_by_label(small_folder: Path, tmp_path: Path) -> None:
    paths = sorted(small_folder.rglob("*.jpg"))
    rows = [{"image": str(path), "label": [path.parent.name, "picture"]} for path in paths]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pack(tmp_path / "labels.jsonl", str(tmp_path / "set"))
    (tmp_path / "task.json").write_text(json.dumps({"flip": False, "crop": True}))
    command = (
        "trainer", "finetune", "scratch", str(tmp_path / "set"), str(tmp_path / "set"), str(tmp_path / "out"),
        "--model", "R14x0.5", "--workers", "0", "--set", "allow_test_on_train=true", "--set", "num_lanes=12",
        "--set", 'shortened={"steps": 6, "batch_size": 24, "resize_px": 40, "crop_px": 32}',
    )  # fmt: skip
    done = run_cli(*command)
    assert done.returncode == 0, done.stderr
    assert "several labels" not in done.stderr  # no warning: the loss is chosen by the labels
    stored = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (stored["loss"], stored["flip"], stored["crop"]) == ("sigmoid", False, True)
    (result,) = read_results(open_store(str(tmp_path / "out")))
    assert 0 < result["macro_average_precision"] <= 1
    table = from_parquet((tmp_path / "out" / "predictions" / "0000-shots-0.parquet").read_bytes(), "table")
    scores = np.array(table["scores"].to_pylist())
    assert scores[:, 3].min() > scores[:, :3].mean()  # `picture` is learned for all, beside the other label
    model, images = str(tmp_path / "out/models/0000-shots-0"), str(small_folder / "class0")
    run_cli("trainer", "predict", model, images, str(tmp_path / "predicted"), "--workers", "0")
    stored = json.loads((tmp_path / "predicted" / "request.json").read_text())
    assert stored["probabilities"] == "sigmoid"  # as it was trained
    again = run_cli(*command, "--batch-size", "8")
    assert again.returncode != 0
    assert "shortened says batch and steps already" in again.stderr


def test_finetuning_writes_results_predictions_subsets_and_weights(
    small_dataset: Dataset, pretrained: Path, tmp_path: Path
) -> None:
    settings = transfer_config(small_dataset, str(pretrained), tmp_path)
    rows: list[dict[str, object]] = []
    finetune(settings, alone(), rows.append)
    assert [row["run"] for row in rows if row.get("step") == 6] == ["0002-shots-0", "0002-shots-1", "0000-shots-0"]
    results = read_results(open_store(str(tmp_path)))
    assert [(r["name"], r["num_train"], r["num_test"]) for r in results] == [
        ("0000-shots-0", 90, 90), ("0002-shots-0", 6, 90), ("0002-shots-1", 6, 90),
    ]  # fmt: skip
    for result in results:
        table = from_parquet((tmp_path / "predictions" / f"{result['name']}.parquet").read_bytes(), "table")
        assert table.num_rows == 90
        assert sum(table["correct"].to_pylist()) == result["num_correct"]
        assert latest(open_store(str(tmp_path / "models" / result["name"]))).about["num_classes"] == 3
    subset = from_parquet((tmp_path / "subsets" / "0002-shots-1.parquet").read_bytes(), "table")
    assert subset.num_rows == 6


@pytest.mark.parametrize("field", ["exclude_test", "exclude_train"])
def test_a_list_that_has_changed_since_the_first_result_is_refused(
    small_dataset: Dataset, pretrained: Path, tmp_path: Path, field: str
) -> None:
    url = exclusions(tmp_path / "list.parquet", [0, 1])
    settings = transfer_config(small_dataset, str(pretrained), tmp_path / "out", shots=(2,), **{field: url})
    finetune(settings, alone(), lambda row: None)
    finetune(settings, alone(), lambda row: None)  # the same list is none that has changed
    exclusions(tmp_path / "list.parquet", [0, 1, 2])
    with pytest.raises(
        ResumeMismatch, match=r"since 0002-shots-0 was done, the lists .* have changed \(.*list\.parquet\)"
    ):
        finetune(settings, alone(), lambda row: None)


def stop_at(run: str, step: int) -> Callable[[dict[str, object]], None]:
    """Return a report at which the process stands for one that ends."""

    def report(row: dict[str, object]) -> None:
        if row.get("run") == run and row["step"] == step:
            raise Stopped

    return report


def weights_of(out: Path, run: str) -> dict[str, Tensor]:
    store = open_store(str(out / "models" / run))
    return load_model(store, alone(), require_latest(store)).state_dict()


def test_a_sweep_that_stops_inside_a_run_goes_on_from_its_checkpoint_to_the_same_weights(
    small_dataset: Dataset, pretrained: Path, tmp_path: Path
) -> None:
    def settings(out: str) -> FinetuneConfig:
        fields = {"checkpoint_every_steps": 2, "log_every_steps": 1, "decay_to_start": 0.1, "dropout": 0.3}
        return transfer_config(small_dataset, str(pretrained), tmp_path / out, **fields)

    finetune(settings("whole"), alone(), lambda row: None)
    for step in (3, 6):
        with pytest.raises(Stopped):
            finetune(settings("broken"), alone(), stop_at("0002-shots-1", step))
    rows: list[dict[str, object]] = []
    finetune(settings("broken"), alone(), rows.append)
    steps = [row["step"] for row in rows if row.get("run") == "0002-shots-1"]
    assert steps == [5, 6]  # the checkpoint at step 4 was the newest
    for run in ("0002-shots-0", "0002-shots-1", "0000-shots-0"):
        assert_equal(weights_of(tmp_path / "whole", run), weights_of(tmp_path / "broken", run))
        assert len(committed(open_store(str(tmp_path / "broken" / "models" / run)))) == 1
    assert read_results(open_store(str(tmp_path / "broken"))) == read_results(open_store(str(tmp_path / "whole")))


def test_a_trained_model_whose_result_was_not_written_is_tested_and_not_trained_again(
    small_dataset: Dataset, pretrained: Path, tmp_path: Path
) -> None:
    settings = transfer_config(small_dataset, str(pretrained), tmp_path)
    finetune(settings, alone(), lambda row: None)
    before = read_results(open_store(str(tmp_path)))
    (tmp_path / "results" / "0002-shots-1.json").unlink()
    rows: list[dict[str, object]] = []
    finetune(settings, alone(), rows.append)
    assert [row["name"] for row in rows if "name" in row] == ["0002-shots-0", "0002-shots-1", "0000-shots-0"]
    assert read_results(open_store(str(tmp_path))) == before


def test_a_sweep_of_a_release_that_kept_no_step_goes_on(
    small_dataset: Dataset, pretrained: Path, tmp_path: Path
) -> None:
    settings = transfer_config(small_dataset, str(pretrained), tmp_path, shots=(0,), allow_test_on_train=True)
    finetune(settings, alone(), lambda row: None)
    stored = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(stored | {"init_step": None}))
    data, short = small_dataset.store.url, json.dumps(stored["shortened"])
    done = run_cli(
        "trainer", "finetune", str(pretrained), data, data, str(tmp_path), "--subsets", "2", "--workers", "0",
        "--set", f"shortened={short}", "--set", "num_lanes=12", "--set", "allow_test_on_train=true",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"from {pretrained}, its newest checkpoint" in done.stderr
    assert "0000-shots-0: accuracy" in done.stdout


def test_the_training_set_as_test_set_is_refused_unless_that_is_meant(
    small_dataset: Dataset, pretrained: Path, tmp_path: Path
) -> None:
    settings = transfer_config(small_dataset, str(pretrained), tmp_path, shots=(0,))
    with pytest.raises(ConfigError, match="is training set and test set: its accuracy says nothing of other"):
        check_finetune(settings, 0)
    check_finetune(settings.model_copy(update={"allow_test_on_train": True}), 0)


def test_a_stop_during_the_test_ends_before_the_next_run(
    small_dataset: Dataset, pretrained: Path, tmp_path: Path
) -> None:
    rows: list[dict[str, object]] = []
    controls = Controls(wants_stop=lambda: any("name" in row for row in rows))
    with pytest.raises(Interrupted, match="stopped before 0002-shots-1; run the same command again"):
        finetune(transfer_config(small_dataset, str(pretrained), tmp_path), alone(), rows.append, controls)
    assert [row["name"] for row in rows if "name" in row] == ["0002-shots-0"]
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["0002-shots-0"]


def test_an_older_start_keeps_no_weights(small_dataset: Dataset, pretrained: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))

    def report(row: dict[str, object]) -> None:
        if row.get("step") == 6:
            Lease.take(store)

    with pytest.raises(Fenced, match=r"a newer run .* has taken over"):
        finetune(transfer_config(small_dataset, str(pretrained), tmp_path), alone(), report)
    assert committed(open_store(str(tmp_path / "models" / "0002-shots-0"))) == []


def test_a_fine_tuning_that_diverges_names_the_run_the_step_and_its_samples(
    small_dataset: Dataset, pretrained: Path, tmp_path: Path
) -> None:
    settings = transfer_config(small_dataset, str(pretrained), tmp_path, decay_to_start=1e38)
    with pytest.raises(NonFinite, match=r"0002-shots-0: step \d, rank 0, lanes 0 to 11, samples 0000.*nothing was"):
        finetune(settings, alone(), lambda row: None)


def test_samples_replaced_in_fine_tuning_are_listed_in_the_folder_of_the_run(
    small_folder: Path, pretrained: Path, tmp_path: Path
) -> None:
    dataset = pack(small_folder, str(tmp_path / "set"), shard_bytes=150_000, block_bytes=40_000)
    damage_a_picture(dataset)
    test = pack(small_folder, str(tmp_path / "test"))
    settings = transfer_config(dataset, str(pretrained), tmp_path / "out", shots=(0,))
    finetune(settings.model_copy(update={"test": test.store.url}), alone(), lambda row: None)
    lines = [
        json.loads(line)
        for path in (tmp_path / "out" / "models" / "0000-shots-0" / "quarantine").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert {(line["shard"], line["reason"]) for line in lines} == {(0, "checksum")}


def test_rows_of_a_fine_tuning_run_are_kept_in_its_folder(
    small_dataset: Dataset, pretrained: Path, tmp_path: Path
) -> None:
    rows: list[dict[str, object]] = []
    finetune(transfer_config(small_dataset, str(pretrained), tmp_path, log_every_steps=3), alone(), rows.append)
    kept = read_metrics(open_store(str(tmp_path / "models" / "0000-shots-0")))
    assert [row["step"] for row in kept] == [3, 6]
    assert [{"run": "0000-shots-0", **row} for row in kept] == [row for row in rows if row.get("run") == "0000-shots-0"]


def test_finetuning_keeps_the_pretrained_body_and_drops_the_head(pretrained: Path, small_dataset: Dataset) -> None:
    model, step = initial_model(transfer_config(small_dataset, str(pretrained), Path("unused")), alone(), 5)
    assert step == 8
    trained = final_state(pretrained)
    assert torch.equal(model.stem.conv.weight, trained["model/stem.conv.weight"])
    assert model.head.fc.weight.shape[0] == 5
    assert (model.head.fc.weight == 0).all()


def test_a_trained_model_that_is_damaged_before_its_result_is_written_is_trained_again(
    small_dataset: Dataset, pretrained: Path, tmp_path: Path
) -> None:
    settings = transfer_config(small_dataset, str(pretrained), tmp_path, shots=(0,))
    finetune(settings, alone(), lambda row: None)
    before = read_results(open_store(str(tmp_path)))
    (tmp_path / "results" / "0000-shots-0.json").unlink()
    flip_a_byte(tmp_path / "models" / "0000-shots-0")
    finetune(settings, alone(), lambda row: None)
    assert read_results(open_store(str(tmp_path))) == before
