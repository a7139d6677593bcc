"""Runs of studies: what is the same is run once."""

import json
from collections import Counter
from typing import Any

import pytest

from trainer.studies.engine import planned
from trainer.studies.grid import DatasetFacts, Grid
from trainer.studies.paper.catalogue import STUDIES
from trainer.studies.scale import SCALES, read_scale


def grid_of(name: str, **changes: Any) -> Grid:
    scale = read_scale(name, "/data").model_copy(update=changes)
    sets = [place for each in scale.upstream.values() for place in (each.train, each.test) if place]
    sets += [f"{task.data}/{split}" for task in scale.tasks.values() for split in ("train", "test")]
    return Grid(scale, {place: DatasetFacts(version=1, num_samples=20_000) for place in sets}, "/out")


@pytest.mark.parametrize("name", SCALES)
def test_no_two_runs_compute_the_same(name: str) -> None:
    grid = grid_of(name)
    runs = planned([study for study in STUDIES.values() if not study.missing(grid.scale)], grid, {})
    configs = Counter(
        run.job + json.dumps({**json.loads(run.config), "out": "", "keep_every_steps": None}, sort_keys=True)
        for run in runs.values()
    )
    assert set(configs.values()) == {1}


def test_studies_share_the_pretrainings_that_change_nothing() -> None:
    grid = grid_of("mini")
    names = {name: {run.name for run in STUDIES[name].runs(grid, {})} for name in ("norms", "schedule", "few-shot")}
    plain = {f"pretrain/{name}-R14x0.5" for name in "SML"}
    assert plain & names["norms"] == {"pretrain/M-R14x0.5"}  # GN + WS at the micro-batch of all others
    assert plain & names["schedule"] == {"pretrain/S-R14x0.5", "pretrain/L-R14x0.5"}  # a budget, and a weight decay
    assert plain <= names["few-shot"]


def test_the_checkpoint_halfway_is_kept_by_the_pretraining_that_other_studies_begin() -> None:
    grid = grid_of("mini")
    run = grid.pretraining("L")
    assert json.loads(run.config)["keep_every_steps"] == grid.halfway_step()
    halfway = f"upstream/L-R14x0.5-step-{grid.halfway_step()}"
    assert halfway in {run.name for run in STUDIES["schedule"].runs(grid, {})}
    assert json.loads(grid.pretraining("S").config)["keep_every_steps"] is None
    assert json.loads(grid_of("mini", schedule=None).pretraining("L").config)["keep_every_steps"] is None


def test_of_the_tasks_of_vtab_the_mean_is_compared() -> None:
    claims = STUDIES["upstream-size"].claims(read_scale("full", "/data"))
    rows = {row for claim in claims for contrast in claim.contrasts for row, _ in contrast.plus}
    assert rows == {"mean of tasks", "VTAB-1k", "ilsvrc2012", "cifar10", "cifar100", "pets", "flowers102"}


def test_few_shots_need_an_upstream_set() -> None:
    grid = grid_of("tiny", upstream={})
    assert STUDIES["few-shot"].missing(grid.scale) == "it needs an upstream set"
