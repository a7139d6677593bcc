"""A folder of studies is checked before anything runs, and stays as it was begun."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import trainer.studies
from pipeline.base.errors import ConfigError, Conflict, NotFound
from pipeline.store.url import open_store
from tests.conftest import run_cli
from tests.trainer.studies.tiny import settled, tiny
from trainer.studies.paper.catalogue import STUDIES, named_studies
from trainer.studies.scale import Scale, read_scale
from trainer.studies.settle import STUDIES_KEY, settled_grid


def test_a_larger_set_that_is_none_is_named(tmp_path: Path) -> None:
    text = (Path(trainer.studies.__file__).parent / "scales" / "tiny.toml").read_text()
    (tmp_path / "own.toml").write_text(text.replace("[schedule]", '[schedule]\nlarger = "M"'))
    with pytest.raises(ConfigError, match=r"schedule.larger 'M' is none of L"):
        read_scale(str(tmp_path / "own.toml"), "/data")


@pytest.mark.parametrize("enough", ["pretrain", "finetune"])
def test_a_group_that_cannot_share_the_lanes_is_refused_before_anything_is_begun(
    data: Path, tmp_path: Path, enough: str
) -> None:
    store, studies = open_store(str(tmp_path)), named_studies(["few-shot"])
    scale = tiny(data, **{enough: {**getattr(tiny(data), enough), "num_lanes": 24}})
    with pytest.raises(ConfigError, match="20 workers cannot share 12 lanes"):
        settled_grid(store, scale, studies, num_workers=20)
    assert not (tmp_path / STUDIES_KEY).exists()


def test_a_study_that_cannot_run_is_refused_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    scale, out = tiny(data), tmp_path / "out"
    with pytest.raises(ConfigError, match="norms: the study of norms needs"):
        settled(out, scale.model_copy(update={"norms": None}), "norms")
    with pytest.raises(ConfigError, match="fewer training pictures than 99 shots"):
        settled(out, scale.model_copy(update={"shots": (99,)}), "few-shot")
    with pytest.raises(ConfigError, match=r"model 'R15x1' is unknown"):
        settled(out, scale.model_copy(update={"model": "R15x1"}), "few-shot")
    with pytest.raises(ConfigError, match=r"finetune\.step of the scale"):
        settled(out, scale.model_copy(update={"finetune": {"step": 3}}), "few-shot")
    with pytest.raises(ConfigError, match=r"R14x0\.5 does not fit: a step of 24 pictures of 32 px takes .* may have"):
        settled_grid(open_store(str(out)), scale, named_studies(["few-shot"]), 10_000_000)
    with pytest.raises(NotFound, match=r"no dataset at .*absent/upstream/train, .*absent/task/test"):
        settled(out, read_scale("tiny", str(tmp_path / "absent")), "few-shot")
    with pytest.raises(ConfigError, match="there is no study few-shots; there are upstream-size, few-shot"):
        named_studies(["few-shots"])
    assert not (out / "studies.json").exists()


def test_studies_that_an_earlier_release_began_go_on_without_what_it_did_not_know(data: Path, tmp_path: Path) -> None:
    grid = settled(tmp_path, tiny(data), "schedule")
    stored = json.loads((tmp_path / STUDIES_KEY).read_text())
    del stored["scale"]["schedule"]["adam_lr_per_256"]
    (tmp_path / STUDIES_KEY).write_text(json.dumps(stored))
    del stored["shares_equal"]
    (tmp_path / STUDIES_KEY).write_text(json.dumps(stored))
    names = {run.name for run in STUDIES["schedule"].runs(settled(tmp_path, tiny(data), "schedule"), {})}
    assert "pretrain/L-R14x0.5-weight-decay-0.0001" in names - {run.name for run in STUDIES["schedule"].runs(grid, {})}
    stored["shares_equal"] = True
    (tmp_path / STUDIES_KEY).write_text(json.dumps(stored))
    older = settled(tmp_path, tiny(data), "schedule")
    assert {run.name for run in STUDIES["schedule"].runs(grid, {})} - {
        run.name for run in STUDIES["schedule"].runs(older, {})
    } == {"pretrain/L-R14x0.5-adam", "upstream/L-R14x0.5-adam"}
    with pytest.raises(Conflict, match="holds studies of another scale"):
        settled(tmp_path, tiny(data, subsets=3), "schedule")


def with_list(scale: Scale, path: Path, rows: list[int]) -> Scale:
    """Return a scale whose task has so many test pictures with duplicates, by a list as an audit writes it."""
    columns = {"shard": pa.array([0] * len(rows), pa.int32()), "row": pa.array(rows, pa.int32())}
    pq.write_table(pa.table(columns), path)
    return scale.model_copy(
        update={"tasks": {"task": scale.tasks["task"].model_copy(update={"duplicates": {"L": str(path)}})}}
    )


def test_the_lists_of_a_folder_are_those_it_is_begun_with(data: Path, tmp_path: Path) -> None:
    store, studies, out = open_store(str(tmp_path / "out")), named_studies(["duplicates"]), tmp_path / "out"

    def kept() -> list[int]:
        return list(pq.read_table(out / "lists/test/task-L.parquet")["row"].to_pylist())

    settled_grid(store, with_list(tiny(data), tmp_path / "a.parquet", [0, 1, 2]), studies, begins=False)
    scale = with_list(tiny(data), tmp_path / "b.parquet", [3, 4])
    settled_grid(store, scale, studies)
    assert kept() == [3, 4]
    with_list(scale, tmp_path / "b.parquet", [5])  # another audit has written it since
    settled_grid(store, scale, studies)
    assert kept() == [3, 4]


@pytest.mark.parametrize(("rows", "message"), [([99], "are not all in"), (list(range(18)), "leaves no sample")])
def test_lists_of_other_pictures_and_of_all_are_refused_before_anything_runs(
    data: Path, tmp_path: Path, rows: list[int], message: str
) -> None:
    scale = with_list(tiny(data), tmp_path / "list.parquet", rows)
    with pytest.raises(ConfigError, match=message):
        settled(tmp_path / "out", scale, "duplicates")
    assert not (tmp_path / "out" / STUDIES_KEY).exists()


def test_fields_that_studies_set_themselves_are_refused_and_those_of_a_task_may_be_given(
    data: Path, tmp_path: Path
) -> None:
    fine = tiny(data).finetune
    with pytest.raises(ConfigError, match="studies set seed for each fine-tuning themselves; leave it out"):
        settled(tmp_path, tiny(data, finetune={**fine, "seed": 7}), "few-shot")
    grid = settled(tmp_path, tiny(data, finetune={**fine, "flip": False, "loss": "sigmoid"}), "few-shot")
    configs = [json.loads(run.config) for run in STUDIES["few-shot"].runs(grid, {}) if run.job == "finetune"]
    assert {(config["flip"], config["loss"]) for config in configs} == {(False, "sigmoid")}


def test_fine_tunings_that_do_not_fit_into_memory_are_refused(data: Path, tmp_path: Path) -> None:
    large = {"shortened": {"steps": 1, "batch_size": 24, "resize_px": 520, "crop_px": 512}, "num_lanes": 12}
    scale = tiny(data, finetune=large)
    with pytest.raises(ConfigError, match=r"R14x0\.5 does not fit: a step of 24 pictures of 512 px takes .* may have"):
        settled_grid(open_store(str(tmp_path)), scale, named_studies(["few-shot"]), 1_000_000_000)
    settled_grid(open_store(str(tmp_path)), scale, named_studies(["few-shot"]), 100_000_000_000)


def test_names_of_studies_in_a_scale_are_checked(data: Path, tmp_path: Path) -> None:
    text = (Path(trainer.studies.__file__).parent / "scales" / "tiny.toml").read_text()
    (tmp_path / "own.toml").write_text(text + '\n[tasks_of]\nfewshot = ["task"]\n')
    command = ["study", "run", "norms", str(tmp_path / "out"), "--scale", str(tmp_path / "own.toml"), "--dry-run"]
    done = run_cli("trainer", *command, "--data", str(data))
    assert done.returncode == 2
    assert "error: tasks_of of the scale: 'fewshot' is no study; it is one of" in done.stderr
