"""One process: steps, accumulation, checkpoints, bitwise resume, refusals. No Ray."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from pipeline.base.errors import ConfigError, CorruptShard, NonFinite, NotFound, ResumeMismatch
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.schema import from_parquet, table_of, to_parquet
from pipeline.store.url import open_store
from tests.conftest import class_folders, pack, run_cli
from trainer.checkpoint.record import committed, latest, require_latest
from trainer.checkpoint.sharded import load
from trainer.jobs.evaluate import EvaluateConfig, evaluate
from trainer.jobs.finetune import FinetuneConfig, Shortened, finetune, initial_model, mixup, read_results
from trainer.jobs.pretrain import PretrainConfig, check_pretrain, pretrain
from trainer.model.architecture import parse_architecture
from trainer.model.build import new_model
from trainer.model.network import ResNetV2
from trainer.recipes.data import MixedData, training_sources
from trainer.recipes.pretrain import PretrainRecipe
from trainer.run.folder import read_metrics
from trainer.step.losses import softmax_loss
from trainer.step.optimizer import MasterSGD
from trainer.step.ranks import alone
from trainer.step.step import train_step
from trainer.step.tensors import TensorBatch

RECIPE = PretrainRecipe(
    loss="softmax", epochs=2.0, decay_epochs=(1.5,), batch_size=24, warmup_steps=2, resolution_px=32
)


def config(dataset: Dataset, out: Path | str, **fields: object) -> PretrainConfig:
    return PretrainConfig(
        data=dataset.store.url,
        data_version=1,
        out=str(out),
        model="R14x0.5",
        recipe=RECIPE,
        num_lanes=12,
        checkpoint_every_steps=3,
        log_every_steps=2,
        **fields,
    )


def final_state(out: Path | str) -> dict[str, Tensor]:
    """Return weights and momentum of a run's newest checkpoint."""
    store = open_store(str(out))
    record = latest(store)
    model = new_model(record.about["model"], record.about["num_classes"], seed=9)
    state = MasterSGD(model, 0.9, 0.0).state()
    load(store, alone(), record, state)
    return {name: value.clone() for name, value in state.items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


class Stopped(Exception):  # noqa: N818
    """Stands for a process that ends between two steps."""


def test_resume_from_every_checkpoint_is_bitwise_equal(small_dataset: Dataset, tmp_path: Path) -> None:
    pretrain(config(small_dataset, tmp_path / "whole"), alone(), lambda row: None)
    expected = final_state(tmp_path / "whole")

    def stop_after(step: int) -> object:
        def report(row: dict[str, object]) -> None:
            if row["step"] >= step:
                raise Stopped

        return report

    for step in (2, 4, 6):
        with pytest.raises(Stopped):
            pretrain(config(small_dataset, tmp_path / "broken"), alone(), stop_after(step))
    pretrain(config(small_dataset, tmp_path / "broken"), alone(), lambda row: None)
    assert_equal(expected, final_state(tmp_path / "broken"))
    steps = [row["step"] for row in read_metrics(open_store(str(tmp_path / "broken")))]
    assert steps == [2, 4, 6, 8]


def test_a_finished_run_started_again_changes_nothing(small_dataset: Dataset, tmp_path: Path) -> None:
    pretrain(config(small_dataset, tmp_path), alone(), lambda row: None)
    before = [record.model_dump() for record in committed(open_store(str(tmp_path)))]
    pretrain(config(small_dataset, tmp_path), alone(), lambda row: None)
    assert before == [record.model_dump() for record in committed(open_store(str(tmp_path)))]


def test_only_the_newest_checkpoints_stay_and_leave_no_files(small_dataset: Dataset, tmp_path: Path) -> None:
    pretrain(config(small_dataset, tmp_path, keep_checkpoints=1), alone(), lambda row: None)
    record = latest(open_store(str(tmp_path)))
    assert record.step == 8
    names = {str(p.relative_to(tmp_path)) for p in (tmp_path / "checkpoints").rglob("*") if p.is_file()}
    assert names == {"checkpoints/000000008.json", *(f"{record.folder}/{file.name}" for file in record.files)}


def test_files_without_a_commit_record_are_no_checkpoint(small_dataset: Dataset, tmp_path: Path) -> None:
    pretrain(config(small_dataset, tmp_path), alone(), lambda row: None)
    (tmp_path / "checkpoints" / "000000008.json").unlink()
    assert latest(open_store(str(tmp_path))).step == 6


def test_a_damaged_checkpoint_is_refused(small_dataset: Dataset, tmp_path: Path) -> None:
    pretrain(config(small_dataset, tmp_path), alone(), lambda row: None)
    record = latest(open_store(str(tmp_path)))
    path = tmp_path / record.folder / record.files[-1].name
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)
    with pytest.raises(CorruptShard, match="differs from its commit record"):
        final_state(tmp_path)


def test_other_settings_on_the_same_folder_are_refused_by_name(small_dataset: Dataset, tmp_path: Path) -> None:
    pretrain(config(small_dataset, tmp_path), alone(), lambda row: None)
    with pytest.raises(ResumeMismatch, match="seed was 0, is 1"):
        pretrain(config(small_dataset, tmp_path, seed=1), alone(), lambda row: None)


def test_training_learns(small_dataset: Dataset, tmp_path: Path) -> None:
    longer = RECIPE.model_copy(update={"epochs": 12.0, "decay_epochs": (10.0,), "lr_per_256": 0.1})
    rows: list[dict[str, object]] = []
    settings = config(small_dataset, tmp_path).model_copy(update={"recipe": longer})
    pretrain(settings, alone(), rows.append)
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]


def batch_of(num_samples: int, num_classes: int = 3) -> TensorBatch:
    generator = torch.Generator().manual_seed(0)
    targets = torch.nn.functional.one_hot(torch.arange(num_samples) % num_classes, num_classes).double()
    return TensorBatch(torch.randn(num_samples, 3, 32, 32, generator=generator, dtype=torch.float64), targets)


@pytest.mark.parametrize("microbatch_size", [1, 3, 5])
def test_accumulation_gives_the_gradient_of_the_whole_batch(microbatch_size: int) -> None:
    norms, states = [], []
    for size in (8, microbatch_size):
        model = new_model("R14x0.5", 3, seed=1).double()
        torch.nn.init.normal_(model.head.fc.weight, generator=torch.Generator().manual_seed(2))
        result = train_step(model, MasterSGD(model, 0.9, 1e-4), batch_of(8), softmax_loss, 0.1, size).result()
        norms.append(result.gradient_norm)
        states.append(model.state_dict())
    assert norms[0] == pytest.approx(norms[1], rel=1e-9)
    for name in states[0]:
        assert torch.allclose(states[0][name], states[1][name], rtol=1e-7, atol=1e-10), name


def test_ranks_with_uneven_parts_average_to_the_gradient_of_the_whole_batch() -> None:
    def gradient(samples: slice, share: float) -> dict[str, Tensor]:
        model = new_model("R14x0.5", 3, seed=1).double()
        torch.nn.init.normal_(model.head.fc.weight, generator=torch.Generator().manual_seed(2))
        whole = batch_of(8)
        part = TensorBatch(whole.images_BCHW[samples], whole.targets_BK[samples])
        optimizer = MasterSGD(model, 0.9, 0.0)
        train_step(model, optimizer, part, softmax_loss, 0.1, 8, share=share)
        return optimizer.gradients()

    parts = [slice(0, 2), slice(2, 5), slice(5, 8)]
    of_ranks = [gradient(part, (part.stop - part.start) * len(parts) / 8) for part in parts]
    for name, expected in gradient(slice(0, 8), 1.0).items():
        averaged = sum(each[name] for each in of_ranks) / len(parts)
        assert torch.allclose(averaged, expected, rtol=1e-7, atol=1e-10), name


def test_a_run_mixes_datasets_and_leaves_out_what_a_list_names(
    small_dataset: Dataset, small_folder: Path, tmp_path: Path
) -> None:
    other = pack(small_folder, str(tmp_path / "other"))
    rows = [{"shard": 0, "row": row} for row in range(5)]
    (tmp_path / "leave-out.parquet").write_bytes(
        to_parquet(table_of(rows, pa.schema([("shard", pa.int32()), ("row", pa.int32())])))
    )
    mixed = MixedData(data=other.store.url, data_version=1, weight=0.5)
    settings = config(small_dataset, tmp_path / "run", mix=(mixed,), exclude=str(tmp_path / "leave-out.parquet"))
    sources = training_sources(settings)
    assert [(source.selection.num_samples, source.weight) for source in sources] == [(85, 1.0), (90, 0.5)]
    pretrain(settings, alone(), lambda row: None)
    assert read_metrics(open_store(str(tmp_path / "run")))[-1]["num_steps"] == round(2 * 175 / 24)


def test_datasets_with_other_classes_are_not_mixed(small_dataset: Dataset, tmp_path: Path) -> None:
    other = pack(class_folders(tmp_path / "four", classes=4, each=4), str(tmp_path / "other"))
    mixed = MixedData(data=other.store.url, data_version=1, weight=0.5)
    with pytest.raises(ConfigError, match="has other classes than"):
        training_sources(config(small_dataset, tmp_path / "run", mix=(mixed,)))


def test_a_loss_that_is_not_finite_stops_before_the_update() -> None:
    model = new_model("R14x0.5", 3, seed=1).double()
    optimizer = MasterSGD(model, 0.9, 0.0)
    before = {name: value.clone() for name, value in optimizer.state().items()}
    batch = batch_of(4)
    batch.images_BCHW[2, 0, 0, 0] = float("nan")
    with pytest.raises(NonFinite, match="nothing was updated"):
        train_step(model, optimizer, batch, softmax_loss, 0.1, 4).result()
    assert_equal(before, optimizer.state())


def test_a_run_that_diverges_names_the_step_and_its_samples(small_dataset: Dataset, tmp_path: Path) -> None:
    wild = RECIPE.model_copy(update={"lr_per_256": 1e30, "warmup_steps": 0})
    settings = config(small_dataset, tmp_path).model_copy(update={"recipe": wild})
    with pytest.raises(NonFinite, match=r"step 1, rank 0, samples 0000.*nothing was updated"):
        pretrain(settings, alone(), lambda row: None)
    assert latest(open_store(str(tmp_path))) is None


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, other = new_model("R14x0.5", 3, seed=5), new_model("R14x0.5", 3, seed=5)
    assert_equal(one.state_dict(), other.state_dict())
    assert torch.equal(torch.rand(1), expected)


def test_mixup_pairs_inside_lanes_and_keeps_the_weight_of_labels() -> None:
    batch = batch_of(8)
    mixed = mixup(batch, 0.3, samples_per_lane=4)
    assert torch.allclose(mixed.images_BCHW[0], 0.3 * batch.images_BCHW[0] + 0.7 * batch.images_BCHW[3])
    assert torch.allclose(mixed.images_BCHW[5], 0.3 * batch.images_BCHW[5] + 0.7 * batch.images_BCHW[6])
    assert torch.allclose(mixed.targets_BK.sum(1), torch.ones(8, dtype=torch.float64))


@pytest.fixture(scope="module")
def pretrained(small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretrained")
    pretrain(config(small_dataset, out), alone(), lambda row: None)
    return out


def transfer_config(dataset: Dataset, init: str, out: Path, **fields: object) -> FinetuneConfig:
    short = Shortened(steps=6, batch_size=24, resize_px=40, crop_px=32)
    return FinetuneConfig(
        init=init, model="R14x0.5", train=dataset.store.url, train_version=1, test=dataset.store.url, test_version=1,
        out=str(out), shots=(2, 0), num_subsets=2, shortened=short, num_lanes=12, **fields,
    )  # fmt: skip


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
        table = from_parquet((tmp_path / "predictions" / f"{result['name']}.parquet").read_bytes())
        assert table.num_rows == 90
        assert sum(table["correct"].to_pylist()) == result["num_correct"]
        assert latest(open_store(str(tmp_path / "models" / result["name"]))).about["num_classes"] == 3
    subset = from_parquet((tmp_path / "subsets" / "0002-shots-1.parquet").read_bytes())
    assert subset.num_rows == 6


def test_finetuning_goes_on_with_what_is_missing(small_dataset: Dataset, pretrained: Path, tmp_path: Path) -> None:
    settings = transfer_config(small_dataset, str(pretrained), tmp_path)
    finetune(settings, alone(), lambda row: None)
    before = read_results(open_store(str(tmp_path)))
    (tmp_path / "results" / "0002-shots-1.json").unlink()
    rows: list[dict[str, object]] = []
    finetune(settings, alone(), rows.append)
    assert {row["run"] for row in rows if "run" in row} == {"0002-shots-1"}
    assert [row["name"] for row in rows if "name" in row] == ["0002-shots-0", "0002-shots-1", "0000-shots-0"]
    assert read_results(open_store(str(tmp_path))) == before


def test_finetuning_keeps_the_pretrained_body_and_drops_the_head(pretrained: Path, small_dataset: Dataset) -> None:
    model = initial_model(transfer_config(small_dataset, str(pretrained), Path("unused")), alone(), 5)
    trained = final_state(pretrained)
    assert torch.equal(model.stem.conv.weight, trained["model/stem.conv.weight"])
    assert model.head.fc.weight.shape[0] == 5
    assert (model.head.fc.weight == 0).all()


def test_evaluation_of_a_run_counts_every_picture(small_dataset: Dataset, pretrained: Path, tmp_path: Path) -> None:
    settings = EvaluateConfig(run=str(pretrained), data=small_dataset.store.url, data_version=1, out=str(tmp_path))
    evaluate(settings, alone(), lambda row: None)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["num_test"] == 90
    assert 0 <= result["low"] <= result["accuracy"] <= result["high"] <= 1


def test_a_test_set_with_more_classes_than_the_model_is_refused(pretrained: Path, tmp_path: Path) -> None:
    other = pack(class_folders(tmp_path / "in", classes=5, each=2), str(tmp_path / "set"))
    settings = EvaluateConfig(run=str(pretrained), data=other.store.url, data_version=1, out=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"has other classes \(5\)"):
        evaluate(settings, alone(), lambda row: None)


@pytest.mark.parametrize(
    ("fields", "workers", "said"),
    [
        ({"model": "R51x1"}, 1, "R51x1"),
        ({"num_lanes": 5}, 1, "not a multiple of 5 lanes"),
        ({"num_lanes": 2}, 5, "5 workers cannot share 2 lanes"),
    ],
)
def test_what_could_not_run_is_refused_before_it_starts(small_dataset, fields, workers, said) -> None:
    with pytest.raises(ConfigError, match=said):
        check_pretrain(config(small_dataset, "x").model_copy(update=fields), workers)


def test_a_model_of_any_width_runs_forward() -> None:
    for name in ("R14x0.5", "R26x1"):
        assert ResNetV2(parse_architecture(name), 2)(torch.zeros(1, 3, 33, 47)).shape == (1, 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pretrain", "{data}", "out", "--model", "R99x1", "--workers", "0"], "model 'R99x1' is unknown"),
        (["pretrain", "{data}", "out", "--recipe", "bit-xl"], "recipe 'bit-xl' is unknown"),
        (["pretrain", "{data}", "out", "--set", "recipe.epochs=many"], "recipe.epochs"),
        (["pretrain", "{data}", "out", "--set", "epochs=3"], "Extra inputs are not permitted"),
        (["pretrain", "{data}", "out", "--set", "epochs"], "write NAME=VALUE"),
        (["pretrain", "{data}", "out", "--mix", "{data}=0"], "write URL=WEIGHT"),
        (["pretrain", "{data}", "out", "--exclude", "nowhere.parquet"], "nowhere.parquet"),
        (["pretrain", "nowhere", "out"], "holds no published dataset"),
        (["finetune", "scratch", "{data}", "{data}", "out"], "needs --model"),
        (["finetune", "nowhere", "{data}", "{data}", "out"], "holds no checkpoint"),
        (["finetune", "scratch", "{data}", "{data}", "out", "--model", "R14x0.5", "--shots", "five"], "--shots 'five'"),
        (["evaluate", "nowhere", "{data}", "out", "--workers", "0"], "holds no checkpoint"),
    ],
)
def test_wrong_arguments_get_one_sentence(small_dataset: Dataset, tmp_path: Path, arguments, said) -> None:
    done = run_cli("trainer", *(a.replace("{data}", small_dataset.store.url) for a in arguments), cwd=tmp_path)
    assert done.returncode in (1, 2)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert said in errors[0]
    assert "Traceback" not in done.stderr


def test_missing_checkpoint_is_not_found(tmp_path: Path) -> None:
    assert latest(open_store(str(tmp_path))) is None
    with pytest.raises(NotFound, match="holds no checkpoint"):
        require_latest(open_store(str(tmp_path)))
