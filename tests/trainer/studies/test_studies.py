"""Studies from the plan to the page: bad scales are refused, runs are shared, and none is done twice."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from threading import Event
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.stack.services import Stack
from pipeline.base.errors import Conflict
from pipeline.store.url import open_store
from pipeline.work.pools import InProcess
from pipeline.work.schedule import Attempt
from tests.conftest import run_cli
from tests.trainer.studies.tiny import settled, tiny
from tests.waiting import wait_until
from trainer.studies.engine import execute, execute_in_group, planned, read_results, run_studies
from trainer.studies.grid import DatasetFacts, Grid
from trainer.studies.page import findings, study_page
from trainer.studies.paper.catalogue import STUDIES, named_studies
from trainer.studies.scale import SCALES, read_scale


def test_studies_share_runs_whose_plan_does_not_depend_on_the_start(data: Path, tmp_path: Path) -> None:
    names = [name for name in STUDIES if name != "duplicates"]  # for which the tiny scale has no lists
    grid = settled(tmp_path / "out", tiny(data), *names)
    assert settled(tmp_path / "out", tiny(data), "few-shot") == grid
    studies = named_studies(names)
    together = planned(studies, grid, {})
    assert len(together) < sum(len(study.runs(grid, {})) for study in studies)
    assert all(run.needs is None or run.needs in together for run in together.values())
    with pytest.raises(Conflict, match="holds studies of another scale"):
        settled(tmp_path / "out", tiny(data, subsets=3), "few-shot")


@pytest.mark.parametrize("name", SCALES)
def test_every_scale_of_the_package_plans_every_study_it_has_the_data_for(name: str) -> None:
    scale = read_scale(name, "/data")
    sets = [place for each in scale.upstream.values() for place in (each.train, each.test) if place]
    sets += [f"{task.data}/{split}" for task in scale.tasks.values() for split in ("train", "test")]
    grid = Grid(scale, {place: DatasetFacts(version=1, num_samples=2000) for place in sets}, "/out")
    for study in STUDIES.values():
        if study.missing(scale):
            continue
        results: dict[str, Any] = {}
        while len(runs := planned([study], grid, results)) > len(results):
            results = {run: {"accuracy": 0.5, "num_correct": 50, "num_test": 100} for run in runs}
        cells = study.cells(grid, results)
        assert (("VTAB-1k", "S") in cells) == (study.name == "upstream-size" and name == "full")  # where all 19 are
        claims = study.claims(scale)
        contrasts = [contrast for claim in claims for contrast in claim.contrasts]
        assert contrasts
        assert all(contrast.measured(cells) for contrast in contrasts)  # each speaks of cells that are measured
        told = {"cannot be told at this scale"} | ({"holds"} if study.name == "duplicates" else set())  # none left out
        assert {claim.judge(cells) for claim in claims} == told


def test_a_further_test_leaves_out_what_the_fine_tuning_does() -> None:
    scale = read_scale("tiny", "/data").model_copy(update={"finetune": {"ignore_unknown_classes": True}})
    sets = [f"{task.data}/{split}" for task in scale.tasks.values() for split in ("train", "test")]
    sets += [place for each in scale.upstream.values() for place in (each.train, each.test) if place]
    grid = Grid(scale, {place: DatasetFacts(version=1, num_samples=2000) for place in sets}, "/out")
    tests = [run for run in STUDIES["random-search"].runs(grid, {}) if run.job == "evaluate"]
    assert tests
    assert all(json.loads(run.config)["ignore_unknown_classes"] for run in tests)


def test_another_budget_keeps_the_places_of_the_decays_that_the_scale_sets() -> None:
    scale = read_scale("tiny", "/data").model_copy(update={"pretrain": {"recipe": {"epochs": 10, "decay_epochs": [6]}}})
    grid = Grid(scale, {}, "/out")
    assert grid.recipe("S").decay_epochs == (6.0,)
    assert grid.recipe("S", epochs=30).decay_epochs == (18.0,)
    assert grid.recipe("S", decay_epochs=(3.0,)).decay_epochs == (3.0,)


def test_studies_that_are_killed_go_on_without_repeating_a_finished_run(data: Path, tmp_path: Path) -> None:
    out, names = tmp_path / "out", ("few-shot", "random-search")  # the latter plans by its results
    command = [str(Path(sys.executable).parent / "trainer"), "study", "run", *names, str(out)]
    command += ["--scale", "tiny", "--data", str(data), "--workers", "2"]
    store = open_store(str(out))

    def killed_at(num_results: int) -> dict[str, Any]:
        """Start, and kill all processes when there are so many results; return these."""
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        wait_until(lambda: process.poll() is not None or len(list(store.list("results/"))) >= num_results, "results")
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return read_results(store)

    before: dict[str, Any] = {}
    for num_results in (1, 6, 14):
        found = killed_at(num_results)
        assert before.items() <= found.items()
        before = found
    grid = settled(out, tiny(data), *names)
    repeated: list[str] = []

    def work(url: str, attempt: Any) -> dict[str, Any]:
        repeated.extend({attempt.call.name} & before.keys())
        return execute(url, attempt)

    results, failures = run_studies(store, named_studies(names), grid, InProcess(), work=work)
    assert (repeated, failures) == ([], {})
    assert results.keys() == planned(named_studies(names), grid, results).keys() > before.keys()
    assert {name: results[name] for name in before} == before
    found = findings(STUDIES["few-shot"], grid, results)
    assert {(cell["row"], cell["column"]) for cell in found["cells"]} == {
        (row, column) for row in ("task, 2 a class", "task, all") for column in ("from scratch", "S", "L")
    }
    assert [claim["verdict"] for claim in found["claims"]]
    page = study_page(STUDIES["few-shot"], grid, results, {}).decode()
    assert "http" not in page
    assert "84.1" in page  # the paper's own
    started: list[Any] = []
    run_studies(store, named_studies(["few-shot"]), grid, InProcess(), lambda *row: started.append(row))
    assert started == []


def test_a_run_that_fails_is_named_and_what_needs_it_is_left_out(data: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "out"))
    grid = settled(tmp_path / "out", tiny(data), "norms")
    tried: list[str] = []

    def work(url: str, attempt: Any) -> dict[str, Any]:
        name = attempt.call.name
        tried.append(name)
        if name == "pretrain/L-R14x0.5-microbatch-12":
            return {"error": "it was cold"}
        row = {"accuracy": 0.5, "num_correct": 5, "num_test": 10, "seconds": 1.0}
        open_store(url).create(f"results/{name}.json", json.dumps(row).encode())
        return row

    results, failures = run_studies(store, named_studies(["norms"]), grid, InProcess(), work=work)
    assert failures == {"pretrain/L-R14x0.5-microbatch-12": {"error": "it was cold"}}
    assert tried.count("pretrain/L-R14x0.5-microbatch-12") == 2
    assert not [name for name in tried if "L-R14x0.5-microbatch-12/" in name]
    study = STUDIES["norms"]
    columns = [column for row, column in study.cells(grid, results) if row == "upstream, pretrained at micro-batch 12"]
    assert columns == ["BN", "BN + WS", "GN"]
    assert {claim["verdict"] for claim in findings(study, grid, results)["claims"]} == {"cannot be told at this scale"}
    assert "it was cold" in study_page(study, grid, results, failures).decode()


def test_a_fine_tuning_that_diverges_is_never_right_and_so_is_what_tests_it(data: Path, tmp_path: Path) -> None:
    wild = {**tiny(data).finetune, "decay_to_start": 1e38}
    grid = settled(tmp_path / "out", tiny(data, finetune=wild), "random-search")
    store, study = open_store(str(tmp_path / "out")), STUDIES["random-search"]
    results, failures = run_studies(store, [study], grid, InProcess())
    assert failures == {}
    repeated = {name: row for name, row in results.items() if "/hyperrule-seed" in name}
    assert {(row["accuracy"], row["num_correct"], row["diverged"]) for row in repeated.values()} == {(0.0, 0, True)}
    assert study.cells(grid, results)["task", "HyperRule"].value == 0.0
    assert all(f"{name}: NonFinite" in study_page(study, grid, results, {}).decode() for name in repeated)


def test_a_fine_tuning_that_diverges_on_a_group_of_workers_is_never_right(
    data: Path, tmp_path: Path, cluster: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    wild = {**tiny(data).finetune, "decay_to_start": 1e38}
    grid = settled(tmp_path / "out", tiny(data, finetune=wild), "random-search")
    store, study = open_store(str(tmp_path / "out")), STUDIES["random-search"]
    start = next(run for run in study.runs(grid, {}) if not run.needs)
    execute(store.url, Attempt(start))
    run = next(run for run in study.runs(grid, read_results(store)) if "/hyperrule-seed" in run.name)
    with get_context("spawn").Pool(1) as process:  # one that the cluster takes for its own, and that ends with the test
        row = process.apply(execute_in_group, (1, False, store.url, Attempt(run)))
    assert (row["accuracy"], row["num_correct"], row["diverged"]) == (0.0, 0, True)
    assert row["why"].startswith("NonFinite: the run stopped on its workers")
    assert read_results(store)[run.name] == row


class Threads:
    """A pool of two places in this process."""

    num_slots, may_lose_workers, num_reported = 2, False, 0

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(2)

    def submit(self, function: Any, *arguments: Any) -> Any:
        return self._threads.submit(function, *arguments)

    def cancel(self, future: Any) -> None: ...

    def close(self) -> None: ...


def test_what_is_ready_does_not_wait_for_the_longest_pretraining(data: Path, tmp_path: Path) -> None:
    grid, begun = settled(tmp_path / "out", tiny(data), "upstream-size"), Event()

    def work(url: str, attempt: Any) -> dict[str, Any]:
        name = attempt.call.name
        if name.startswith("finetune/S-"):
            begun.set()
        if name.startswith("pretrain/L-") and not begun.wait(30):
            return {"error": "no fine-tuning has begun"}
        row = {"accuracy": 0.5, "num_correct": 5, "num_test": 10, "seconds": 1.0}
        open_store(url).create(f"results/{name}.json", json.dumps(row).encode())
        return row

    store = open_store(str(tmp_path / "out"))
    results, failures = run_studies(store, named_studies(["upstream-size"]), grid, Threads(), work=work)
    assert (len(results), failures) == (4, {})


def test_the_command_shows_what_would_run_and_reports_what_has(data: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    planned_only = run_cli("trainer", "study", "run", "norms", out, "--scale", "tiny", "--data", str(data), "--dry-run")
    assert planned_only.returncode == 0, planned_only.stderr
    assert "to do  pretrain/L-R14x0.5-BN-microbatch-2" in planned_only.stdout.splitlines()
    assert not (tmp_path / "out/studies.json").exists()
    settled(tmp_path / "out", tiny(data), "norms")
    report = run_cli("trainer", "study", "report", "norms", out)
    assert report.returncode == 0, report.stderr
    assert "- GN with plain kernels is behind BN upstream: **cannot be told at this scale**" in report.stdout
    assert (tmp_path / "out/pages/norms.html").exists()


def test_a_search_trains_each_trial_once_and_the_chosen_one_on_both_parts(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pretraining = planned(named_studies(["few-shot"]), settled(tmp_path / "few", tiny(data), "few-shot"), {})
    assert execute(str(tmp_path / "few"), Attempt(pretraining["pretrain/L-R14x0.5"]))["seconds"] > 0
    (tmp_path / "space.toml").write_text("steps = [2, 3]\nresolution_px = [32]\nmixup_alpha = [0.1]\n")
    command = ["search", str(tmp_path / "few/runs/pretrain/L-R14x0.5"), str(out), "--task", f"pictures={data}/task"]
    command += ["--trials", "2", "--train", "30", "--validation", "12", "--space", str(tmp_path / "space.toml")]
    command += ["--set", "num_lanes=12"]
    command += ["--set", 'shortened={"steps": 3, "batch_size": 24, "resize_px": 40, "crop_px": 32}']
    done = run_cli("trainer", *command)
    assert done.returncode == 0, done.stderr
    assert "- random search beats the HyperRule on the mean of tasks" in done.stdout
    results = read_results(open_store(str(out)))
    trials = [results[f"finetune/search/pictures/trial-{number:03d}"] for number in range(2)]
    best = max(range(2), key=lambda number: (trials[number]["accuracy"], -number))
    assert [(row["num_train"], row["num_test"]) for row in trials] == [(30, 12)] * 2
    chosen = results[f"finetune/search/pictures/chosen-{best:03d}-seed-0"]
    rule = results["finetune/search/pictures/hyperrule-seed-0"]
    assert chosen["recipe"] == trials[best]["recipe"] != rule["recipe"]
    assert [(row["num_train"], row["num_test"]) for row in (chosen, rule)] == [(42, 18)] * 2
    assert len(results) == 2 + 2 + 2  # trials, their tests, chosen and rule
    assert "polyline" in (out / "pages/random-search.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in (out / "results").rglob("*.json")}
    assert run_cli("trainer", *command).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "results").rglob("*.json")} == before
    few = run_cli("trainer", *command[:2], str(tmp_path / "other"), *command[3:], "--train", "40")
    assert few.returncode == 2
    assert "has 48 pictures, and the search takes 40 to train on and 12 to choose by" in few.stderr


def test_lists_of_duplicates_clean_the_test_set_and_the_upstream_set(data: Path, tmp_path: Path) -> None:
    rows = pa.table({"shard": pa.array([0, 0, 0], pa.int32()), "row": pa.array([0, 1, 2], pa.int32())})
    pq.write_table(rows, tmp_path / "list.parquet")
    scale = tiny(data)
    upstream = {"L": scale.upstream["L"].model_copy(update={"duplicates": (str(tmp_path / "list.parquet"),)})}
    task = scale.tasks["task"].model_copy(update={"duplicates": {"L": str(tmp_path / "list.parquet")}})
    grid = settled(
        tmp_path / "out", scale.model_copy(update={"upstream": upstream, "tasks": {"task": task}}), "duplicates"
    )
    (tmp_path / "list.parquet").unlink()  # the folder has its own since the first start
    store, study = open_store(str(tmp_path / "out")), STUDIES["duplicates"]
    results, failures = run_studies(store, [study], grid, InProcess())
    assert failures == {}
    cells = study.cells(grid, results)
    assert [column for _, column in cells] == ["full", "clean test", "change by the clean test", "clean upstream"]
    clean = results["clean-test/L-R14x0.5/task/0000-shots-0-seed-0"]
    assert clean["num_test"] == 18 - 3
    row = "task, from L"
    assert cells[row, "change by the clean test"].value == pytest.approx(
        cells[row, "clean test"].value - cells[row, "full"].value
    )
    starts = (tmp_path / "out/runs/pretrain/L-deduplicated-R14x0.5/run.json").read_text()
    assert "lists/L-deduplicated.parquet" in starts
