"""Many fine-tunings of one plan: each runs once, side by side, resumed and retried, and they are summed up."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import ConfigError, Conflict
from pipeline.dataset.dataset import Dataset
from pipeline.store.url import open_store
from pipeline.work.pools import InProcess, Processes
from tests.conftest import run_cli
from trainer.jobs.config import FinetuneConfig
from trainer.jobs.sweep import SweepPlan, read_plan, run_sweep, settled_runs
from trainer.jobs.table import JOBS
from trainer.scores.summaries import summarise
from trainer.step.ranks import World

PLAN = """
model = "R14x0.5"
shots = [0, 2]
subsets = 2

[inits]
pretrained = "{run}"
scratch = "scratch"

[tasks]
same = {{train = "{data}", test = "{data}"}}

[settings]
num_lanes = 12
allow_test_on_train = true
shortened = {{steps = 4, batch_size = 12, resize_px = 40, crop_px = 32}}
"""


@pytest.fixture
def plan(small_dataset: Dataset, pretrained: Path, tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN.format(run=pretrained, data=small_dataset.store.url))
    return path


def test_every_run_of_a_plan_is_trained_once_and_summed_up(plan: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "out"))
    runs = settled_runs(store, read_plan(plan))
    assert len(runs) == 2 * (1 + 2)  # starts; the whole set once, two subsets
    pool = Processes(2)
    try:
        results, failures = run_sweep(store, runs, pool)
    finally:
        pool.close()
    assert not failures
    assert [(row["init"], row["shots"], row["subset"]) for row in results] == [
        ("pretrained", 2, 0), ("scratch", 2, 0), ("pretrained", 2, 1), ("scratch", 2, 1), ("pretrained", 0, 0),
        ("scratch", 0, 0),
    ]  # fmt: skip
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())["summary"]
    assert [(row["init"], row["shots"], row["num_runs"]) for row in summary] == [
        ("pretrained", 2, 2), ("scratch", 2, 2), ("pretrained", 0, 1), ("scratch", 0, 1),
    ]  # fmt: skip
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.index("pretrained") < page.index("scratch")
    assert " ± " in page
    assert "http" not in page
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").rglob("results/*.json")}
    assert run_sweep(store, settled_runs(store, read_plan(plan)), InProcess()) == (
        results,
        [],
    )  # and nothing is trained
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").rglob("results/*.json")} == before


def test_a_run_that_fails_is_tried_again_and_named_without_harm_to_the_others(plan: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "out"))
    runs = settled_runs(store, read_plan(plan).model_copy(update={"shots": (2,), "subsets": 1}))
    first = FinetuneConfig.model_validate_json(runs[0].config)
    (Path(first.out) / "run.json").parent.mkdir(parents=True)
    (Path(first.out) / "run.json").write_text('{"another": "configuration"}')
    seen: list[dict[str, Any]] = []
    results, failures = run_sweep(store, runs, InProcess(), seen.append)
    assert [row["init"] for row in results] == ["scratch"]
    assert [(row["init"], row["task"]) for row in failures] == [("pretrained", "same")]
    assert len(seen) == 2
    assert "Failed" in (tmp_path / "out" / "index.html").read_text()
    (Path(first.out) / "run.json").unlink()
    results, failures = run_sweep(store, runs, InProcess())
    assert [row["init"] for row in results] == ["pretrained", "scratch"]
    assert not failures


def test_whatever_a_run_ends_with_the_others_go_on(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(config: FinetuneConfig, world: World, *_: Any) -> None:
        assert world.device.type == "cpu"  # whatever the machine has
        raise MemoryError("of this machine" if config.init == "scratch" else "of another")

    monkeypatch.setitem(JOBS, "finetune", replace(JOBS["finetune"], run=fails))
    store = open_store(str(tmp_path / "out"))
    runs = settled_runs(store, read_plan(plan).model_copy(update={"shots": (2,), "subsets": 1}))
    results, failures = run_sweep(store, runs, InProcess())
    assert results == []
    assert {row["error"] for row in failures} == {"MemoryError: of this machine", "MemoryError: of another"}


def test_another_plan_is_refused_and_versions_stay_as_they_were(plan: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "out"))
    found = read_plan(plan)
    first = settled_runs(store, found)
    assert settled_runs(store, found) == first
    with pytest.raises(Conflict, match="holds the sweep of another plan"):
        settled_runs(store, found.model_copy(update={"subsets": 3}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("subsets = 2", "subset = 2"), "subset: Extra inputs are not permitted"),
        (('model = "R14x0.5"', ""), "fine-tuning from scratch needs `model`"),
        (("num_lanes = 12", "num_lane = 12"), "settings.num_lane: Extra inputs"),
        (("shots = [0, 2]", "shots = [31]"), "3 classes have fewer training pictures than 31 shots"),
        (("shots = [0, 2]", "shots = []"), "shots: Tuple should have at least 1 item"),
        (("shots = [0, 2]", "shots = [2, 2]"), "shots: a number is given twice"),
        (("num_lanes = 12", "seed = 12"), "settings: seed differs from run to run"),
        (("num_lanes = 12", "shots = [2]"), "settings: shots differs from run to run"),
        (('scratch = "scratch"', '"pre trained" = "scratch"\n"pre/trained" = "scratch"'), "two runs would write to"),
    ],
)
def test_a_plan_that_cannot_run_is_refused_before_anything_runs(
    change: tuple[str, str], message: str, plan: Path, tmp_path: Path
) -> None:
    plan.write_text(plan.read_text().replace(*change))
    with pytest.raises(ConfigError, match=message):
        settled_runs(open_store(str(tmp_path / "out")), read_plan(plan))
    assert not (tmp_path / "out").exists()


def test_a_folder_stands_for_its_train_and_test_sets(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text('[inits]\nnew = "scratch"\n[tasks]\npets = "data/pets"\n')
    assert read_plan(path) == SweepPlan.model_validate(
        {"inits": {"new": "scratch"}, "tasks": {"pets": {"train": "data/pets/train", "test": "data/pets/test"}}}
    )


def test_runs_are_summed_up_by_what_they_share() -> None:
    runs = [{"task": "a", "accuracy": value, "num_correct": 5, "num_test": 10} for value in (0.2, 0.6, 0.7)]
    runs.append({"task": "b", "accuracy": 0.5, "num_correct": 5, "num_test": 10})
    three, one = summarise(runs, ["task"])
    assert (three["num_runs"], three["median"], three["mean"]) == (3, 0.6, pytest.approx(0.5))
    assert three["std"] == pytest.approx(0.2646, abs=1e-4)
    assert three["low"] < 0.5 < three["high"]
    assert (one["std"], one["low"]) == (None, pytest.approx(0.2366, abs=1e-4))


def test_gpus_are_refused_without_a_cluster_before_anything_is_written(plan: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    for command in (("sweep", str(plan), out), ("study", "run", "few-shot", out, "--scale", "tiny")):
        done = run_cli("trainer", *command, "--gpu")
        assert (done.returncode, done.stderr) == (2, "error: --gpu gives each run a GPU of a Ray cluster; add --ray\n")
    assert not (tmp_path / "out").exists()


def test_the_command_prints_a_table_and_where_the_page_is(plan: Path, tmp_path: Path) -> None:
    plan.write_text(plan.read_text().replace("[0, 2]", "[2]").replace("subsets = 2", "subsets = 1"))
    done = run_cli("trainer", "sweep", str(plan), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split()[:3] == ["task", "shots", "from"]
    assert done.stdout.splitlines()[-1] == f"{tmp_path / 'out'}/index.html"
