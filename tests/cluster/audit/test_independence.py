"""With an embedding and insets the result depends on the pictures alone: not on shards, order, workers, or kills."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.audit.base import stored_tasks
from cluster.audit.base.sets import picture_name
from cluster.audit.base.tables import ADDRESS_COLUMNS, DEFAULT_RADIUS, AuditConfig, Evidence
from cluster.audit.coordinator import pin_sides, run_audit
from cluster.audit.search.embedding import embedding
from pipeline.dataset.dataset import Address, Dataset, open_dataset
from tests.cluster.audit.audits import ALTERED, contents, local_job, scene
from tests.cluster.audit.stand_in import pixel_model
from tests.conftest import class_folders, pack

NEARNESS = "cosine_from = 0.1\nmargin = 0.02\nsure_from = 0.95"
NUM_SCENES, MOST_MATCHES = 4, 2
STAGES = ("insets", "vectors", "joined", "verified")  # of the work
KILLED_AT = ("insets", "vectors", "verified")  # after the first result of each


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set `down`; pictures, altered copies of some of it too, as `up-in`, packed as `many` and `one`; a model."""
    root = tmp_path_factory.mktemp("independence")
    down = class_folders(root / "down-in", classes=1, each=6, seed=50_000)
    up = class_folders(root / "up-in", classes=1, each=10) / "class0"
    for number in range(NUM_SCENES):
        pixels = scene(number)
        Image.fromarray(pixels).save(down / "class0" / f"scene{number}.png")
        for name in ("crop", "darker", "bordered"):
            Image.fromarray(ALTERED[name](pixels)).save(up / f"scene{number}-{name}.png")
    Image.fromarray(np.concatenate([scene(0), scene(NUM_SCENES)])).save(up / "collage.png")
    with Image.open(down / "class0" / "001.jpg") as image:
        for number in range(5):  # more than are verified, and equally close: their bytes decide
            image.save(up / f"alike{number}.jpg", quality=40, comment=f"{number}".encode())
    pack(down, str(root / "down"))
    pack(up.parent, str(root / "many"), shard_bytes=60_000)
    pack(up.parent, str(root / "one"))
    assert len(open_dataset(str(root / "many")).shards) > 3
    pixel_model(root, NEARNESS)
    return root


def by_name(up: Path, folder: Path, work: Path) -> dict[str, Any]:
    """Run an audit in this process, and return its result by the names of the pictures, without their places."""
    config = AuditConfig(upstream=str(up), downstream=str(folder / "down"), canaries_each=0, most_matches=MOST_MATCHES,
                         insets=True, embedding=str(folder / "model.toml"))  # fmt: skip
    sides = pin_sides(config)
    tables = run_audit(config, sides, local_job(work))

    def name(dataset: Dataset, row: dict[str, Any], side: str) -> str:
        source = picture_name(dataset, Address(row[f"{side}_shard"], row[f"{side}_row"]))
        return Path(source).name.rpartition("_")[2]

    pairs = {
        (name(sides.upstream, row, "up"), name(sides.downstream, row, "down")): {
            column: value for column, value in row.items() if column not in ADDRESS_COLUMNS
        }
        for row in tables.found.pairs.to_pylist()
    }
    return {
        "pairs": pairs,
        "states": tables.downstream.to_pylist(),
        "hubs": tables.found.hubs.to_pylist(),
        "num_candidates": tables.found.num_candidates,
    }


def alike_in_order(dataset: Dataset) -> list[str]:
    sources = [
        picture_name(dataset, Address(shard, row))
        for shard in range(len(dataset.shards))
        for row in range(dataset.samples(shard).num_rows)
    ]
    return [source[source.index("alike") :] for source in sources if "alike" in source]


def test_neither_the_number_of_shards_nor_their_order_nor_their_parts_change_the_result(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "renamed" / "class0").mkdir(parents=True)
    for path in (folder / "up-in" / "class0").iterdir():
        shutil.copy(path, tmp_path / "renamed" / "class0" / f"other_{path.name}")
    pack(tmp_path / "renamed", str(tmp_path / "other"), shard_bytes=60_000)  # ordered by a hash of the names
    first = [alike_in_order(open_dataset(str(up)))[:MOST_MATCHES] for up in (folder / "one", tmp_path / "other")]
    assert set(first[0]) != set(first[1]), "by place another of equally close pictures would be verified"
    many, one, other = (
        by_name(up, folder, tmp_path / "work" / up.name) for up in (folder / "many", folder / "one", tmp_path / "other")
    )
    assert many == one
    assert many == other
    monkeypatch.setattr(stored_tasks, "_PICTURES_PER_PART", 4)
    monkeypatch.setattr(embedding, "_PICTURES_PER_STEP", 2)
    assert by_name(folder / "one", folder, tmp_path / "work" / "parts") == one
    assert all(
        len(list((tmp_path / "work" / "parts" / stage).iterdir())) > 3 for stage in ("insets", "vectors", "joined")
    )
    evidence = {row["evidence"] for row in one["pairs"].values()}
    assert {str(Evidence.NEAR), str(Evidence.EMBEDDED), str(Evidence.REJECTED)} <= evidence
    by_inset = [
        pair for pair, row in one["pairs"].items() if "collage" in pair[0] and row["distance"] <= DEFAULT_RADIUS
    ]
    assert by_inset, "insets have something to find"
    assert one["hubs"], "the cap has something to decide"


def audit_command(folder: Path, out: Path, num_workers: int) -> list[str]:
    options = ["--embedding", str(folder / "model.toml"), "--canaries", "1", "--most-matches", str(MOST_MATCHES)]
    tool = str(Path(sys.executable).parent / "cluster")
    return [tool, "audit", str(folder / "many"), str(folder / "down"), str(out), *options,
            "--workers", str(num_workers)]  # fmt: skip


def kill_after_first(stage: str, command: Sequence[str], out: Path) -> None:
    """Start an audit and kill it with its workers once it has a result of the stage that it did not have before."""
    before = results(out, stage)
    driver = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while driver.poll() is None and results(out, stage).keys() == before.keys():
            time.sleep(0.005)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    assert driver.returncode == -signal.SIGKILL
    assert not (out / "summary.json").exists()


def results(out: Path, stage: str) -> dict[str, int]:
    """Return the stored results of a stage, with the times at which they were written."""
    return {path.name: path.stat().st_mtime_ns for path in (out / "work" / stage).glob("*.parquet")}


@pytest.mark.timeout(180)
def test_an_audit_with_two_workers_that_is_killed_twice_ends_as_the_calm_one_with_one_worker(
    folder: Path, tmp_path: Path
) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    done = subprocess.run(audit_command(folder, calm, 1), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    command = audit_command(folder, killed, 2)
    for stage in KILLED_AT:
        kill_after_first(stage, command, killed)
    kept = {stage: results(killed, stage) for stage in STAGES}
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert contents(killed) == contents(calm)
    for stage, stored in kept.items():
        assert stored
        assert stored.items() <= results(killed, stage).items(), "finished work is not repeated"
        assert results(killed, stage).keys() == results(calm, stage).keys()
