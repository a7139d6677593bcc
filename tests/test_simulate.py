"""The simulation of large clusters runs, and shows what it is for: lanes decide what the loss of a node costs."""

import argparse
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).parents[1] / "benchmarks" / "simulate.py"


@pytest.fixture(scope="module")
def simulate() -> ModuleType:
    found = importlib.util.spec_from_file_location("simulate", PATH)
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_of_many_lanes_the_loss_of_a_node_costs_little_and_no_rank_writes_more_than_its_share(
    simulate: ModuleType,
) -> None:
    args = argparse.Namespace(nodes=8, gpus=4, gpu="H100", model="R152x4", px=224, classes=1000, images=1e6, batch=256,
                              epochs=1.0, price=2.5)  # fmt: skip
    lines = list(simulate.tables(args))
    rows = [line.split(" | ") for line in lines if line.startswith(("| 32 |", "| 256 |"))]
    few, many = ([float(cell.strip("| ").replace(",", "")) for cell in row[-3:]] for row in rows)
    assert few[1] / few[0] < 0.8 < many[1] / many[0]
    [checkpoint] = [line for line in lines if line.startswith("checkpoint")]
    mean, most = map(float, re.findall(r"([\d.]+)(?: MB,|:)", checkpoint)[:2])
    assert most <= 2 * mean


@pytest.mark.parametrize("failure_seconds", [600.0, 86_400.0])
def test_goodput_falls_with_failures_and_with_slow_restarts(simulate: ModuleType, failure_seconds: float) -> None:
    quick, count = simulate.goodput(10.0, 1.0, 0.1, failure_seconds, 10.0)
    slow, _ = simulate.goodput(10.0, 1.0, 0.1, failure_seconds, 300.0)
    assert 0.0 < slow < quick <= 1.0
    assert count == pytest.approx(10 * 86_400 / failure_seconds, rel=0.5)
