"""Secrets of a stack stand in its private files and in the environments of its own processes, and nowhere else."""

import json
import uuid
from pathlib import Path

import psutil
import pytest
import requests

from cluster.cli import _SECRET
from cluster.stack.services import Stack
from pipeline.dataset.dataset import Dataset
from tests.conftest import BUCKET, run_cli


def secrets_of(stack: Stack) -> list[str]:
    key = Path(stack.folder, "s3-secrets", "key.pem").read_text().splitlines()
    return [stack.environment["AWS_SECRET_ACCESS_KEY"], Path(stack.token).read_text().strip(), key[1]]


def test_no_secret_is_in_command_lines_jobs_logs_or_pages(
    cluster: Stack, small_dataset: Dataset, tmp_path: Path
) -> None:
    out, job = f"s3://{BUCKET}/{uuid.uuid4().hex[:6]}", f"job-{uuid.uuid4().hex[:6]}"
    settings = {"recipe.epochs": 1, "recipe.batch_size": 32, "recipe.resolution_px": 16, "recipe.warmup_steps": 1}
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    done = run_cli("cluster", "submit", "--job", job, "pretrain", small_dataset.store.url, out, "--model", "R14x0.5",
                   "--recipe", "bit-s", "--workers", "1", *options)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert run_cli("trainer", "report", out, "--out", str(tmp_path / "run.html"), "--pictures", "0").returncode == 0
    token = {"Authorization": f"Bearer {Path(cluster.token).read_text().strip()}"}
    places = {
        "output": done.stdout + done.stderr,
        "status": run_cli("cluster", "status").stdout,
        "logs": run_cli("cluster", "logs", job).stdout,
        "jobs": requests.get(f"{cluster.dashboard}/api/jobs/", headers=token, timeout=30).text,
        "page": (tmp_path / "run.html").read_text(),
        "command lines": "\n".join(_command_lines()),
        "run": _contents(out),
    }
    assert job in places["jobs"]
    for folder in (Path(cluster.scratch), Path(cluster.folder)):
        places |= {str(path): path.read_text(errors="replace") for path in folder.rglob("*.log")}
        places |= {str(path): path.read_text(errors="replace") for path in folder.rglob("*.out")}
        places |= {str(path): path.read_text(errors="replace") for path in folder.rglob("*.err")}
    assert len(places) > 20
    assert [name for name, text in places.items() for secret in secrets_of(cluster) if secret in text] == []


def _contents(url: str) -> str:
    from pipeline.store.url import open_store  # noqa: PLC0415

    store = open_store(url)
    kept = [entry.key for entry in store.walk() if entry.key.endswith((".json", ".jsonl", ".txt"))]
    return json.dumps({key: store.read(key).decode(errors="replace") for key in kept})


def _command_lines() -> list[str]:
    return [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY", "PGPASSWORD", "API_TOKEN_1"]
)
def test_secrets_are_refused_as_variables_of_a_job(name: str) -> None:
    command = ["cluster", "submit", "--address", "http://127.0.0.1:9", "--env", f"{name}=hunter2", "true"]
    done = run_cli(*command)
    assert done.returncode == 2
    assert f"error: --env {name}: what a job is given so can be read in its metadata" in done.stderr
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN_PATH", "OMP_NUM_THREADS", "GREETING", "AWS_SHARED_CREDENTIALS_FILE"])
def test_other_variables_are_let_through(name: str) -> None:
    assert not _SECRET.search(name)
