"""Packing and audits on Ray show Prometheus how far they are, standing still or not; without Ray nothing is paid."""

import json
import re
import subprocess
import sys
from pathlib import Path

from cluster.stack.services import Stack
from pipeline.dataset.dataset import open_dataset
from pipeline.work.job_metrics import GAUGES
from tests.cluster.audit.audits import leaky_sets
from tests.conftest import run_cli

_LABEL = re.compile(r'(\w+)="((?:[^"\\\\]|\\\\.)*)"')

_WITHOUT_RAY = """
import sys
from pipeline.base.console import Reporting
from pipeline.work.job_metrics import with_metrics
reporting = Reporting()
print(with_metrics(reporting, "shard", "s3://bucket/set") is reporting, "ray" in sys.modules)
"""


def test_without_ray_a_job_reports_as_before_and_imports_nothing() -> None:
    assert subprocess.check_output([sys.executable, "-c", _WITHOUT_RAY], text=True).split() == ["True", "False"]


# Ray shows a gauge for 20 s after it was last set: a stage that shows nothing new for longer is still there, one that
# has ended is not. The pool is left open, for what was set last is exported within 10 s by a process that lives.
_ON_RAY = """
import json, sys, threading, time, urllib.request
import ray
import cluster.cli, pipeline.cli
from pipeline.base.console import Reporting
from pipeline.work.job_metrics import with_metrics
from pipeline.work.on_ray import OnRay

OnRay.close = lambda pool: None
shown, found = {}, {}

def look():
    global shown
    while True:
        now = {}
        for node in ray.nodes():
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            lines = urllib.request.urlopen(url, timeout=10).read().decode().splitlines()
            now |= dict(line.rsplit(" ", 1) for line in lines if line.startswith("ray_bit_job_"))
        shown = now
        found.update(now)
        time.sleep(1)

def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited in vain; shown were {found}, are {shown}")
        time.sleep(0.5)

source, down, dest, out = sys.argv[1:]
OnRay(1)
threading.Thread(target=look, daemon=True).start()
held = with_metrics(Reporting(), "append", "s3://key:secret@bucket/held")
with held.progress("packing", 10, "images") as advance:
    held.event("resumed", num_shards=1, num_missing=2, num_rejects=2)
    held.event("shard", num_rejects=1)
    held.event("quarantined", task="a", detail="b")
    advance(4, 400)
    pipeline.cli.cli.main(["shard", source, dest, "--ray", "--max-reject-fraction", "0.1"], standalone_mode=False)
    cluster.cli.cli.main(["audit", dest, down, out, "--ray", "--canaries", "0"], standalone_mode=False)
    ended = time.monotonic()
    wait_for(lambda: "writing pages" in str(found) and time.monotonic() > ended + 35)
    still = shown
wait_for(lambda: not shown)
print(json.dumps({"found": found, "still": still}))
"""


def _figures(series: dict[str, str], run: str) -> dict[tuple[str, str, str], dict[str, float]]:
    """Return the figures of a run by command, stage and unit."""
    figures: dict[tuple[str, str, str], dict[str, float]] = {}
    for name, value in series.items():
        labels = dict(_LABEL.findall(name))
        if labels["run"] == run:
            stage = figures.setdefault((labels["command"], labels["stage"], labels["unit"]), {})
            stage[name.split("{")[0]] = float(value)
    return figures


def test_packing_and_audits_on_ray_show_prometheus_how_far_they_are(cluster: Stack, tmp_path: Path) -> None:
    _, down = leaky_sets(tmp_path)
    (tmp_path / "up-in" / "class0" / "bad.jpg").write_bytes(b"not a picture")
    dest, out = tmp_path / "packed", tmp_path / "report"
    done = run_cli("python", "-c", _ON_RAY, str(tmp_path / "up-in"), str(down), str(dest), str(out))
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout.splitlines()[-1])
    assert "secret" not in str(shown)

    held = _figures(shown["still"], "s3://bucket/held")["append", "packing", "images"]
    assert held.keys() == {f"ray_{name}" for name in GAUGES}
    assert held["ray_bit_job_done_units"] == 4
    assert held["ray_bit_job_planned_units"] == 10
    assert held["ray_bit_job_done_bytes"] == 400
    assert held["ray_bit_job_rejected_images"] == 3
    assert held["ray_bit_job_quarantined_tasks"] == 1

    version = open_dataset(str(dest)).version
    packing = _figures(shown["found"], str(dest))["shard", "packing", "images"]
    assert (
        packing.pop("ray_bit_job_last_progress_timestamp_seconds") > held["ray_bit_job_last_progress_timestamp_seconds"]
    )
    assert packing == {
        "ray_bit_job_done_units": version.num_samples + 1,
        "ray_bit_job_planned_units": version.num_samples + 1,
        "ray_bit_job_done_bytes": version.num_bytes,
        "ray_bit_job_rejected_images": 1,
    }
    audit = _figures(shown["found"], str(out))
    assert {(command, unit) for command, _, unit in audit} == {("audit", "pictures"), ("audit", "pairs")}
    for stage in [
        ("audit", "joining", "pictures"),
        ("audit", "verifying", "pairs"),
        ("audit", "writing pages", "pairs"),
    ]:
        assert audit[stage]["ray_bit_job_done_units"] == audit[stage]["ray_bit_job_planned_units"] > 0
