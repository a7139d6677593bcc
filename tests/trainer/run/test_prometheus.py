"""A run on Ray as Prometheus sees it: by its metrics alone, and by those of our dashboard and alert rules."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
import yaml

from cluster.stack.ports import free_ports
from cluster.stack.services import Stack
from tests.conftest import pack, run_cli
from tests.trainer.runs import config, damage_a_picture
from tests.waiting import wait_until
from trainer.run.telemetry import COUNTERS, GAUGES, RUN_GAUGES

MONITORING = Path(__file__).parents[3] / "docker" / "monitoring"
SHOWN = {*COUNTERS, *GAUGES, *RUN_GAUGES} - {"bit_mfu_ratio"}  # for which there must be a GPU

ON_RAY = """
import json, sys, time, urllib.request
import ray
from pathlib import Path
from pipeline.base.console import Reporting
from pipeline.work.job_metrics import with_metrics
from trainer.step.ranks import alone
from trainer.jobs.config import PretrainConfig
from trainer.jobs.pretrain import pretrain
from trainer.run import telemetry

telemetry._LINE_SECONDS = 0.0  # eight steps take less than the second between two lines
settings, targets, num_shown = sys.argv[1:]

def stand_still(row):
    if row["step"] < 8:
        return
    # A process exports its metrics a few at a time, and not all are there at one time: the newest line of each counts.
    began, found = time.monotonic(), {}
    while (passed := time.monotonic() - began) < 150:
        if passed < 35:  # Ray forgets gauges that were set so long ago; what was counted by then is known
            found = {key: line for key, line in found.items() if key[4:].partition("{")[0] in telemetry.COUNTERS}
        for node in ray.nodes():
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            lines = urllib.request.urlopen(url, timeout=10).read().decode().splitlines()
            found |= {line.rpartition(" ")[0]: line for line in lines if line.startswith("ray_bit_")}
        names = {series.partition("{")[0] for series in found if not series.startswith("ray_bit_job_")}
        totals = [line for series, line in found.items() if series.startswith("ray_bit_images_total")]
        if passed > 35 and len(names) == int(num_shown) and any(line.endswith(" 192.0") for line in totals):
            break
        time.sleep(1)
    print("\\n".join(found.values()))


ray.init()
nodes = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes()]
Path(targets).write_text(json.dumps([{"targets": nodes}]))
packing = with_metrics(Reporting(), "append", "s3://bucket/set")
with packing.progress("packing", 10, "images") as advance:
    packing.event("shard", num_rejects=1)
    packing.event("quarantined", task="a", detail="b")
    advance(4, 400)
    pretrain(PretrainConfig.model_validate_json(Path(settings).read_text()), alone(), stand_still)
"""


class Observed(NamedTuple):
    """What was seen of a run that stood still after its last step.

    Attributes:
        values: By metric, of rank 0, as the nodes served them.
        prometheus: URL of a Prometheus that scraped the nodes all the while; None where it is not installed.
        began: When the run was submitted, in seconds since 1970.
    """

    values: dict[str, float]
    prometheus: str | None
    began: float


@pytest.fixture(scope="module")
def observed(cluster: Stack, small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """A run of eight steps, and a job that packs, on two real nodes."""
    folder = tmp_path_factory.mktemp("observed")
    dataset = pack(small_folder, str(folder / "set"), shard_bytes=150_000, block_bytes=40_000)
    damage_a_picture(dataset)
    (folder / "config.json").write_bytes(config(dataset, folder / "run").to_json())
    (folder / "on_ray.py").write_text(ON_RAY)
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    server = start_prometheus(folder, port) if shutil.which("prometheus") else None
    try:
        began = time.time()
        arguments = [folder / "on_ray.py", folder / "config.json", folder / "targets.json", len(SHOWN)]
        done = run_cli("cluster", "submit", "--", sys.executable, *map(str, arguments))
        assert done.returncode == 0, done.stderr
        values = {
            line.partition("{")[0]: float(line.rpartition(" ")[2])
            for line in done.stdout.splitlines()
            if line.startswith("ray_bit_") and 'rank="0"' in line
        }
        yield Observed(values, url if server else None, began)
    finally:
        if server:
            server.terminate()
            server.wait()


def start_prometheus(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Start a Prometheus with our rules that scrapes, every second, the nodes that `targets.json` will name."""
    settings = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    settings["rule_files"] = [str(MONITORING / name) for name in settings["rule_files"]]
    settings["scrape_configs"] = [
        {"job_name": "ray", "file_sd_configs": [{"files": [str(folder / "targets.json")], "refresh_interval": "1s"}]}
    ]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    command = [
        "prometheus", f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with (folder / "prometheus.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def test_a_run_on_ray_shows_its_metrics_also_when_it_stands_still(observed: Observed) -> None:
    values = observed.values
    assert values.keys() == {f"ray_{name}" for name in SHOWN}
    assert values["ray_bit_images_total"] == 8 * 24
    assert values["ray_bit_bad_samples_total"] == 2
    assert values["ray_bit_read_bytes_total"] > 0
    assert 0 <= values["ray_bit_data_wait_fraction"] <= 1
    assert values["ray_bit_step"] == 8
    assert values["ray_bit_last_checkpoint_step"] in (3, 6)  # the second is committed beside the last two steps
    assert 0 < values["ray_bit_goodput_ratio"] <= 1
    assert values["ray_bit_restarts_total"] == 0


def ask(observed: Observed, path: str, **parameters: object) -> Any:
    """Return an answer of Prometheus."""
    if observed.prometheus is None:
        pytest.skip("prometheus, of Debian's package of that name, is not installed")
    reply = requests.get(f"{observed.prometheus}/api/v1/{path}", params=parameters, timeout=30)
    answer = reply.json()
    assert answer["status"] == "success", answer
    return answer["data"]


def test_every_panel_of_the_dashboard_has_a_curve_of_the_run(observed: Observed) -> None:
    board = json.loads((MONITORING / "dashboard.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    span = {"start": observed.began, "end": time.time(), "step": 1}
    for expression in expressions:
        asked = expression.replace("$SessionName", "session_.+").replace("$run", ".+").replace("$window", "30s")
        curves = ask(observed, "query_range", query=asked, **span)["result"]
        if "ray_bit_mfu_ratio" in expression:
            assert curves == []
            continue
        assert curves, expression
        for curve in curves:
            assert {"SessionName", "run"} <= curve["metric"].keys(), expression
            assert all(float(value) == float(value) for _, value in curve["values"]), expression  # no NaN


def test_prometheus_evaluates_every_alert_rule_on_the_run(observed: Observed) -> None:
    names = [
        rule["alert"]
        for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
        for rule in group["rules"]
    ]

    def rules() -> list[dict[str, Any]]:
        return [rule for group in ask(observed, "rules")["groups"] for rule in group["rules"]]

    assert sorted(rule["name"] for rule in rules()) == sorted(names)
    wait_until(lambda: all(rule["health"] == "ok" for rule in rules()), "every rule to be evaluated")
    span = {"start": observed.began, "end": time.time(), "step": 1}
    fired = ask(observed, "query_range", query='ALERTS{alertstate="firing"}', **span)["result"]
    assert {curve["metric"]["alertname"] for curve in fired} == {"TasksAreQuarantined"}  # as the job said; others wait
