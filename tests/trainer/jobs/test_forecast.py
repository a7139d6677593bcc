"""What a run will take is arithmetic on stated figures: ranges hold what was measured, and grow the way they must."""

import math

import pytest
from hypothesis import given, strategies as st

from pipeline.base.errors import ConfigError
from pipeline.dataset.dataset import Dataset
from tests.conftest import run_cli
from trainer.jobs.forecast import checkpoint_bytes, forecast, machines, milestones
from trainer.model.architecture import parse_architecture
from trainer.model.cost import layers
from trainer.recipes.pretrain import bit_m, bit_s

R50 = layers(parse_architecture("R50x1"), 1000, 224)
R50_MACS, R50_PARAMETERS = sum(layer.num_macs for layer in R50), sum(layer.num_parameters for layer in R50)


def test_one_gpu_does_what_was_measured_on_one() -> None:
    told = forecast(R50_MACS, R50_PARAMETERS, 28_151, 4096, machines("1x1xH100"), recomputes=False)
    assert told.images_per_second == pytest.approx((2755, 4318), rel=0.01)  # docs/benchmarks/model.md


def test_a_large_run_has_failures_and_pays_for_them() -> None:
    found = layers(parse_architecture("R152x4"), 21_843, 224)
    macs, parameters = sum(layer.num_macs for layer in found), sum(layer.num_parameters for layer in found)
    assert checkpoint_bytes(parameters) == 1_107_299_923 * 8
    assert checkpoint_bytes(parameters, bit_m().model_copy(update={"optimizer": "adam"}).num_moments) == 12 * parameters
    told = forecast(macs, parameters, 312_012, 4096, machines("64x8xH100"), recomputes=True)
    views, flops = 312_012 * 4096, 8 * macs
    assert told.hours.low == pytest.approx(views * flops / (512 * 0.107 * 989.5e12) / 3600, rel=0.02)
    assert told.gpu_hours.low == pytest.approx(told.hours.low * 512)
    assert told.num_failures.low == pytest.approx(told.gpu_hours.low / 50_000)
    assert told.num_failures.high == pytest.approx(told.gpu_hours.high / 8_000)
    assert 0 < told.lost_share.low < told.lost_share.high < 0.1


@given(st.integers(1, 4096), st.integers(1, 8))
def test_more_gpus_take_less_time_and_more_of_it_is_lost(num_nodes: int, gpus_per_node: int) -> None:
    few = forecast(
        R50_MACS, R50_PARAMETERS, 1000, 4096, machines(f"{num_nodes}x{gpus_per_node}xA100"), recomputes=False
    )
    many = forecast(
        R50_MACS, R50_PARAMETERS, 1000, 4096, machines(f"{2 * num_nodes}x{gpus_per_node}xA100"), recomputes=False
    )
    for span in (*few, *many):
        assert 0 < span.low <= span.high
    assert many.step_seconds.low == pytest.approx(few.step_seconds.low / 2)
    assert many.lost_share.high > few.lost_share.high or many.hours.high == math.inf


def test_milestones_are_those_of_the_schedule_before_its_end() -> None:
    points = list(milestones(bit_m(), 14_200_000))
    assert [point.step for point in points] == [5000, 104_004, 208_008, 277_344]
    assert [point.learning_rate for point in points] == pytest.approx([0.48, 0.048, 0.0048, 0.00048])
    short = bit_s().model_copy(update={"epochs": 40})
    assert [point.step for point in milestones(short, 1_281_167)] == [5000, 9_384]


@pytest.mark.parametrize("text", ["64x8", "64x8xTPU", "0x8xH100", "H100", "64x-8xH100"])
def test_a_cluster_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write NODESxGPUSxKIND such as 64x8xH100; kinds are A100"):
        machines(text)


def test_a_dry_run_says_it_all_and_writes_nothing(small_dataset: Dataset, tmp_path) -> None:
    done = run_cli(
        "trainer", "pretrain", small_dataset.store.url, str(tmp_path / "run"), "--recipe", "bit-s", "--dry-run",
        "--cluster", "64x8xH100", "--price", "2.5", "--set", "recipe.epochs=1000000", "--set", "recipe.batch_size=512",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for part in (
        "schedule: 175,781 steps of 512, 89,999,872 pictures in all", "from step 58,594 (epoch 3.33e+05)",
        "memory of each of 512 ranks:", "checkpoints: 188.1 MB each, of which each rank writes 367.3 kB", "data rate: ",
        "images/s", "failures: ", "time: ", "cost: ", "at 2.5 each", "arXiv:2407.21783",
    ):  # fmt: skip
        assert part in done.stdout, done.stdout
    assert not (tmp_path / "run").exists()
    alone = run_cli("trainer", "pretrain", small_dataset.store.url, str(tmp_path / "run"), "--price", "2.5")
    assert alone.returncode == 2
    assert "--cluster and --price are for --dry-run" in alone.stderr
