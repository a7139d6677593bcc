"""MLflow and Weights & Biases get every figure of a run once, however often the sending begins again."""

import random
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from pipeline.store.url import open_store
from tests.conftest import run_cli
from tests.trainer.watching.folders import write_run
from trainer.watching.facts import RunReader
from trainer.watching.scalars import Scalar, scalars
from trainer.watching.trackers import new_scalars


@given(times=st.lists(st.integers(1, 50), max_size=30), moments=st.lists(st.integers(0, 50), max_size=4))
def test_figures_that_become_known_later_than_newer_ones_of_another_kind_are_sent_once(
    times: list[int], moments: list[int]
) -> None:
    rows = [Scalar("train/loss", 0.0, each, float(each)) for each in sorted(set(times))]
    measured = [Scalar("held_out/loss", 0.0, each, each + 0.5) for each in sorted(set(times))]
    sent, until = [], {}
    for moment in [*sorted(moments), 100]:  # rows are stored up to ten seconds late
        known = [each for each in rows if each.time <= moment - 10] + [each for each in measured if each.time <= moment]
        random.Random(moment).shuffle(known)
        new = new_scalars(known, until)
        sent += new
        until |= {each.tag.partition("/")[0]: each.time for each in new}
    assert sorted(sent) == sorted([*rows, *measured])


def test_mlflow_gets_each_figure_with_its_step_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient  # noqa: PLC0415 - a second

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a server's own store; here a folder, without a server
    run, uri = tmp_path / "run", f"file://{tmp_path}/mlflow"
    for last_step in (500, 1000):  # the run goes on in between
        write_run(open_store(str(run)), last_step)
        done = run_cli("trainer", "watch", str(run), "--once", "--mlflow", uri)
        assert done.returncode == 0, done.stderr
    again = run_cli("trainer", "watch", str(run), "--once", "--mlflow", uri)
    assert again.stdout == ""
    client = MlflowClient(tracking_uri=uri)
    (found,) = client.search_runs([client.get_experiment_by_name("bit-pretrain").experiment_id])
    expected = [each for each in scalars(RunReader(open_store(str(run))).read()) if each.tag == "train/loss"]
    sent = client.get_metric_history(found.info.run_id, "train/loss")
    kept = {(each.step, each.value, round(1000 * each.time)) for each in expected}
    assert kept <= {(each.step, each.value, each.timestamp) for each in sent}
    assert len(sent) == len({(each.step, each.timestamp) for each in sent})


def test_weights_and_biases_gets_the_figures(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(open_store(str(run)))
    environment = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_CACHE_DIR": str(tmp_path)}
    done = run_cli("trainer", "watch", str(run), "--once", "--wandb", "tests", **environment)
    assert done.returncode == 0, done.stderr
    (kept,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert kept.read_bytes().count(b"train/loss") >= 97  # rows kept of the run


def test_a_tracker_that_does_not_answer_is_named(tmp_path: Path) -> None:
    write_run(open_store(str(tmp_path)))
    environment = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = run_cli("trainer", "watch", str(tmp_path), "--once", "--mlflow", "http://127.0.0.1:9", **environment)
    assert done.returncode == 2
    assert done.stderr.startswith("error: MLflow at http://127.0.0.1:9 does not take the run: ")
