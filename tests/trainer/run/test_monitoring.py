"""The dashboard and the alert rules speak of the metrics that are exported, and of nothing else."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.work import job_metrics
from trainer.run.telemetry import COUNTERS, GAUGES, RUN_GAUGES

FOLDER = Path(__file__).parents[3] / "docker" / "monitoring"
GUIDE = Path(__file__).parents[3] / "docs" / "operations.md"
EXPORTED = {f"ray_{name}" for name in (*COUNTERS, *GAUGES, *RUN_GAUGES, *job_metrics.GAUGES)}
METRIC = re.compile(r"\bray_bit_\w+")


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    board = json.loads((FOLDER / "dashboard.json").read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    assert set(METRIC.findall(" ".join(expressions))) == EXPORTED
    chosen = '{SessionName=~"$SessionName",run=~"$run"}'
    for expression in expressions:
        assert len(METRIC.findall(expression)) == expression.count(chosen), expression
    named = {variable["name"] for variable in board["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(board))) == named
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in panels)


def test_alert_rules_are_of_exported_metrics_and_each_is_in_the_guide() -> None:
    groups = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    guide = GUIDE.read_text()
    for rule in rules:
        names = METRIC.findall(rule["expr"])
        assert names
        assert set(names) <= EXPORTED, rule["alert"]
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert f"`{rule['alert']}`" in guide
    assert len({rule["alert"] for rule in rules}) == len(rules)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, of Debian's prometheus, is not installed")
def test_alerts_tell_runs_of_a_cluster_apart() -> None:
    rules = Path(__file__).with_name("alerts_test.yaml")
    for command in (["check", "rules", FOLDER / "alerts.yaml"], ["test", "rules", rules]):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_guide_names_every_metric() -> None:
    guide = GUIDE.read_text()
    assert [name for name in sorted(EXPORTED) if f"`{name}`" not in guide] == []
