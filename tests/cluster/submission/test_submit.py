"""A run is checked before it is submitted, takes its code along, and outlives its driver, on a real cluster."""

import re
import signal
import subprocess
import sys
import time
import uuid
import zipfile
from pathlib import Path

import psutil
import pytest

from cluster.stack.services import Stack
from cluster.submission.checks import checked_command
from cluster.submission.wheel import code_wheel
from pipeline.base.errors import ConfigError
from pipeline.dataset.dataset import Dataset
from pipeline.store.url import open_store
from tests.cluster.submission.test_supervise import SETTINGS
from tests.conftest import BUCKET, run_cli
from trainer.checkpoint.record import latest
from trainer.run.events import attempts

OPTIONS = ["--model", "R14x0.5", "--recipe", "bit-s", *[part for setting in SETTINGS for part in ("--set", setting)]]


def driver_of(out: str) -> psutil.Process:
    """Return the driver of the run at `out`, which its supervisor has as its only child."""
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "cluster.submission.supervise" in line and out in line and line[0] != "/bin/sh":
            (driver,) = process.children()
            return driver
    raise AssertionError(out)


@pytest.mark.timeout(400)
def test_a_submitted_run_takes_its_code_along_and_outlives_its_driver(cluster: Stack, small_dataset: Dataset) -> None:
    job = f"run-{uuid.uuid4().hex[:6]}"
    out = f"s3://{BUCKET}/{job}"
    store = open_store(out)
    submitted = run_cli("cluster", "submit", "--no-wait", "--job", job, "pretrain", small_dataset.store.url, out,
                        "--workers", "2", *OPTIONS, "--set", "recipe.epochs=60")  # fmt: skip
    assert submitted.returncode == 0, submitted.stderr
    while latest(store) is None:
        assert run_cli("cluster", "status", job).stdout.strip() in ("PENDING", "RUNNING")
        time.sleep(0.5)
    driver_of(out).send_signal(signal.SIGKILL)
    while run_cli("cluster", "status", job).stdout.strip() in ("PENDING", "RUNNING"):
        time.sleep(0.5)
    said = run_cli("cluster", "logs", job).stdout
    assert run_cli("cluster", "status", job).stdout.strip() == "SUCCEEDED", said
    assert "the driver has ended (killed by SIGKILL); starting it again" in said
    begun = attempts(store)
    assert len(begun) == 2
    assert begun[1]["first_step"] > 0
    digest = re.search(r"sha256 (\w+)", submitted.stderr)
    assert digest
    assert {each["code"]["wheel_sha256"][:12] for each in begun} == {digest[1]}
    assert [rank["code"] for each in begun for rank in each["ranks"] if "py_modules_files" not in rank["code"]] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "2", "--set", "recipe.epoch=3"], "there is no setting recipe.epoch; did you mean recipe.epochs"),
        (["--workers", "2", "--model", "R50x"], "R50x"),
        (["--workers", "2", "--no-such-option"], "No such option"),
        (["--workers", "0"], "--workers 0 runs without Ray"),
        (["--workers", "64", "--set", "num_lanes=64", "--set", "recipe.batch_size=64"],
         "the job takes 64 CPUs, one for each worker, and the cluster has 2 on 2 nodes"),
        (["--workers", "1", "--gpu"], "the job takes 1 GPUs, one for each worker, and the cluster has 0 on 2 nodes"),
    ],
)  # fmt: skip
def test_what_could_not_run_is_not_submitted(
    cluster: Stack, small_dataset: Dataset, arguments: list[str], message: str
) -> None:
    job = f"run-{uuid.uuid4().hex[:6]}"
    out = f"s3://{BUCKET}/{job}"
    done = run_cli("cluster", "submit", "--job", job, "pretrain", small_dataset.store.url, out, *OPTIONS, *arguments)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert job not in run_cli("cluster", "status").stdout
    assert not any(True for _ in open_store(out).list(""))


def test_a_folder_of_this_machine_is_not_sent_elsewhere(cluster: Stack, small_dataset: Dataset) -> None:
    done = run_cli("cluster", "submit", "pretrain", small_dataset.store.url, "runs/a")
    assert done.returncode == 2
    assert "runs/a is relative to a folder of this machine, and the job runs on another one" in done.stderr
    places = (["--mix", "more=0.5"], ["--held-out", "val"], ["--probe", "p=s3://b/a,probe"], ["--exclude", "x.parquet"])
    for options in places:
        with pytest.raises(ConfigError, match="is relative to a folder of this machine"):
            checked_command("pretrain", ["s3://b/set", "s3://b/run", "--held-out", "0.5%", *options])


def test_the_wheel_is_one_that_pip_installs_and_holds_the_code_that_runs_here(tmp_path: Path) -> None:
    wheel = code_wheel()
    assert wheel == code_wheel()
    (tmp_path / wheel.name).write_bytes(wheel.body)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(tmp_path / "there")]
    subprocess.run([*pip, str(tmp_path / wheel.name)], check=True, capture_output=True)
    program = "import pipeline.image, trainer, cluster.audit.search.hamming as h; print(trainer.__file__, h.__file__)"
    there = subprocess.run(
        [sys.executable, "-P", "-c", program], env={"PYTHONPATH": str(tmp_path / "there")}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert all(path.startswith(str(tmp_path / "there")) for path in there.stdout.split())
    with zipfile.ZipFile(tmp_path / wheel.name) as archive:
        assert {name.partition("/")[0] for name in archive.namelist()} == {
            "pipeline", "trainer", "cluster", f"{wheel.name.rpartition('-py3')[0]}.dist-info"
        }  # fmt: skip
