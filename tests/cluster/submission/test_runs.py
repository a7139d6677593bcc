"""The status of jobs tells how their training runs stand."""

import json
import time
from pathlib import Path

import pytest

from cluster.submission import runs
from cluster.submission.runs import run_line, run_lines, run_of
from pipeline.store.url import open_store
from tests.trainer.watching.folders import write_run


@pytest.mark.parametrize(
    ("command", "out"),
    [
        ("trainer pretrain s3://b/set s3://b/run --workers 2 --set 'recipe.epochs=3'", "s3://b/run"),
        ("/venv/bin/trainer pretrain --recipe bit-m s3://b/set /runs/m", "/runs/m"),
        ("python -P -m cluster.submission.supervise s3://b/run pretrain s3://b/set s3://b/run", "s3://b/run"),
        ("trainer pretrain data run", None),  # relative to a folder of another machine
        ("trainer finetune s3://b/run s3://b/train s3://b/test s3://b/out", None),
        ("sh -c 'echo pretrain a s3://b/c'", None),
        ("echo pretrain a s3://b/c", None),
        ("trainer pretrain --no-such-option", None),
        ("sh -c 'unbalanced", None),
    ],
)
def test_the_run_of_a_job_is_found_in_its_command(command: str, out: str | None) -> None:
    assert run_of(command) == out


def test_a_line_has_step_and_last_error(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "run"))
    write_run(store, last_step=880)
    line = run_line(str(tmp_path / "run"))
    assert "silent, step 880 of 1,000, no sign of life for" in line
    assert "last error" in line
    assert line.endswith("ago: RuntimeError: NCCL error")
    row = {"attempt": "c", "time": time.time(), "step": 890, "num_steps": 1000, "images_per_second": 512.0}
    row |= {"eta_seconds": 110, "epoch": 8.9}
    store.create("metrics/000000890-c.jsonl", json.dumps(row).encode() + b"\n")
    assert "training, step 890 of 1,000, 51" in run_line(str(tmp_path / "run"))
    assert run_line(str(tmp_path / "nothing")).endswith("nothing yet")


def test_of_several_jobs_of_a_run_the_newest_tells_of_it(tmp_path: Path) -> None:
    command = f"trainer pretrain s3://b/set {tmp_path}/run"
    jobs = [{"job": name, "command": command} for name in ("a", "b")] + [{"job": "c", "command": "sleep 1"}]
    assert list(run_lines(jobs)) == ["b"]


def test_a_store_that_does_not_answer_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(runs, "run_line", lambda url: time.sleep(60))
    jobs = [{"job": "a", "command": "trainer pretrain s3://b/set s3://b/run"}]
    assert run_lines(jobs) == {"a": "s3://b/run: its store does not answer"}
