"""Fingerprints of third-party tars: audited like a packed set, taken once, found again under another name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.audit.search.fingerprints import fingerprint_set
from pipeline.base.console import Reporting
from pipeline.base.errors import CorruptShard
from pipeline.dataset.dataset import open_dataset
from pipeline.store.url import open_store
from tests.cluster.audit.audits import audited_sets, local_job, outcome
from tests.conftest import run_cli


def test_fingerprints_of_tars_are_audited_and_taken_once(sets: tuple[Path, Path], tars: Path, tmp_path: Path) -> None:
    out = tmp_path / "prints"
    done = run_cli("cluster", "fingerprint", str(tars), str(out))
    assert done.returncode == 0, done.stderr
    packed = audited_sets(str(sets[0]), str(sets[1]), tmp_path / "a")
    assert outcome(audited_sets(str(out), str(sets[1]), tmp_path / "b")) == outcome(packed)
    assert "pixels" in open_dataset(str(out)).samples(0).column_names
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert run_cli("cluster", "fingerprint", str(tars), str(out)).returncode == 0
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def test_only_a_new_tar_is_fingerprinted_and_a_moved_one_is_not_decoded(tars: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "prints"))
    first = fingerprint_set(str(tars), store, local_job(tmp_path / "prints"))
    taken = set(tmp_path.glob("prints/fingerprints/*/*.parquet"))
    moved = next(tars.glob("*.tar"))
    moved.rename(tars / "zz-moved.tar")
    second = fingerprint_set(str(tars), store, local_job(tmp_path / "prints"))
    assert (second.version, second.num_samples) == (2, first.num_samples)
    assert set(tmp_path.glob("prints/fingerprints/*/*.parquet")) == taken


def test_the_log_has_every_tar_with_what_it_rejects(tars: Path, tmp_path: Path) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    job = local_job(tmp_path / "prints")
    heard = replace(job, reporting=Reporting(event=lambda name, **values: events.append((name, values))))
    version = fingerprint_set(str(tars), open_store(str(tmp_path / "prints")), heard)
    assert {name for name, _ in events} == {"shard"}
    assert sorted(values["path"] for _, values in events) == sorted(map(str, tars.glob("*.tar")))
    assert sum(values["num_samples"] for _, values in events) == version.num_samples
    assert all(values["num_rejects"] == 0 for _, values in events)


def test_a_packed_set_needs_no_fingerprints(sets: tuple[Path, Path], tmp_path: Path) -> None:
    done = run_cli("cluster", "fingerprint", str(sets[0]), str(tmp_path / "out"))
    assert done.returncode == 0
    assert "audit it as it is" in done.stdout
    assert not (tmp_path / "out").exists()


def test_a_damaged_tar_stops_with_its_name(tars: Path, tmp_path: Path) -> None:
    broken = sorted(tars.glob("*.tar"))[1]
    broken.write_bytes(broken.read_bytes()[:-2048])
    with pytest.raises(CorruptShard, match=broken.name):
        fingerprint_set(str(tars), open_store(str(tmp_path / "prints")), local_job(tmp_path / "prints"))
    assert not (tmp_path / "prints" / "MANIFEST.json").exists()
