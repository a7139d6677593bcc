"""The benchmark of GPUs is one command that keeps its time, writes down what it found, and says what it left out."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))
from gpu_report import CPU, GPU, Sizes, catalogue, fitting, report, shown

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def rows_of(folder: Path, *options: str) -> list[dict[str, object]]:
    command = [sys.executable, BENCHMARKS / "gpu.py", folder, "--cpu", *options]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return [json.loads(line) for line in (folder / "gpu.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("sizes", [GPU, CPU])
def test_every_figure_is_wanted_once_and_stands_in_the_tables_though_nothing_was_measured(sizes: Sizes) -> None:
    wanted = catalogue(sizes)
    assert len({(figure.part, figure.name) for figure in wanted}) == len(wanted)
    text = report(wanted, [], {})
    assert [line for line in text.splitlines() if "not measured" in line] == [
        f"| {figure.name} | not measured | {figure.goal} |" for figure in wanted
    ]


def test_figures_stand_with_their_spread_and_missing_ones_with_the_reason() -> None:
    wanted = [figure for figure in catalogue(GPU) if figure.part == "run"]
    rows = [
        {"part": "run", "name": wanted[0].name, "value": 4321.5, "low": 4000.0, "high": 4400.0},
        {"part": "run", "name": wanted[2].name, "value": 0.015, "note": "of 5 rows"},
        {"part": "run", "reason": "the time was over"},
        {"part": "run", "title": "kernels of a run", "table": [["conv", 0.5, 1200]]},
    ]
    text = report(wanted, rows, {"card": "a card"})
    assert "card: a card" in text
    assert "| trainer pretrain | 4,322 images/s (4,000 to 4,400) |" in text
    assert "| trainer pretrain: waits for data | 1.5 %; of 5 rows | 2 or less |" in text
    assert f"| {wanted[1].name} | not measured: the time was over | 0.95 or more |" in text
    assert "| `conv` | 50.0% | 1,200 |" in text


@pytest.mark.parametrize(
    ("value", "unit", "expected"), [(0.5, "", "0.50"), (12.0, "GB", "12 GB"), (0.031, "", "0.031")]
)
def test_figures_are_rounded_to_what_they_are_worth(value: float, unit: str, expected: str) -> None:
    assert shown(value, unit) == expected


def test_a_part_begins_only_if_its_time_is_left() -> None:
    assert fitting({"steps": 100.0}, "steps", 100.0)
    assert not fitting({"steps": 100.0}, "steps", 99.9)


def test_a_part_without_time_ends_at_once_and_says_so(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "--seconds", "0", "--only", "steps")
    assert [(row["part"], "no time left" in str(row["reason"])) for row in rows] == [("steps", True)]
    assert "not measured: no time left" in (tmp_path / "gpu.md").read_text()


def test_the_largest_batch_is_looked_for_and_held_against_the_forecast_and_a_second_call_adds_to_the_first(
    tmp_path: Path,
) -> None:
    (tmp_path / "gpu.jsonl").write_text('{"part": "run", "reason": "the time was over"}\n')
    rows = rows_of(tmp_path, "--seconds", "250", "--only", "large")
    assert rows[0]["part"] == "run"
    names = {row["name"] for row in rows if "name" in row}
    assert names <= {figure.name for figure in catalogue(CPU)}
    assert {row.get("reason") for row in rows[1:]} == {None}
    ratios = [row["value"] for row in rows if "against `trainer describe`" in str(row.get("name"))]
    assert ratios == [1.0, 1.0]  # a CPU has memory for more than is foretold
    assert ("against timm" in str(names)) == (importlib.util.find_spec("timm") is not None)
