"""What may be audited: packed sets, third-party tars, and their fingerprints."""

import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from cluster.audit.base.sets import pin, samples_of
from cluster.audit.base.tables import Evidence
from cluster.audit.search.fingerprints import fingerprint_set
from pipeline.store.url import open_store
from tests.cluster.audit.audits import audited_sets, local_job, outcome
from tests.conftest import run_cli


def test_third_party_tars_are_audited_like_the_packed_set(sets: tuple[Path, Path], tars: Path, tmp_path: Path) -> None:
    packed = audited_sets(str(sets[0]), str(sets[1]), tmp_path / "a")
    foreign = audited_sets(f"{tars}/*.tar", str(sets[1]), tmp_path / "b")
    assert outcome(foreign) == outcome(packed)


def test_a_set_packed_without_fingerprints_gets_them(sets: tuple[Path, Path], tmp_path: Path) -> None:
    source, bare = sets[1].parent / "down-in", tmp_path / "bare"
    assert run_cli("pipeline", "shard", str(source), str(bare), "--check", "header").returncode == 0
    refused = run_cli("cluster", "audit", str(sets[0]), str(bare), str(tmp_path / "out"))
    assert refused.returncode == 2
    assert "cluster fingerprint" in refused.stderr
    fingerprint_set(str(bare), open_store(str(tmp_path / "prints")), local_job(tmp_path / "prints"))
    codes = [samples_of(pin(str(url))).select(["code", "digest"]) for url in (tmp_path / "prints", sets[1])]
    assert codes[0].equals(codes[1])


def test_equal_pixels_count_even_where_pictures_are_too_flat_to_tell(tmp_path: Path) -> None:
    flat = Image.fromarray(np.full((40, 60, 3), 90, np.uint8))
    for side, compression in (("up", 1), ("down", 9)):
        (tmp_path / side / "x").mkdir(parents=True)
        flat.save(tmp_path / side / "x" / "flat.png", compress_level=compression)
    for side in ("up", "down"):
        (tmp_path / side / "tars").mkdir()
        with_tar(tmp_path / side / "x" / "flat.png", tmp_path / side / "tars" / "a.tar")
        fingerprint_set(str(tmp_path / side / "tars"), open_store(str(tmp_path / side / "f")), local_job(tmp_path))
    tables = audited_sets(str(tmp_path / "up" / "f"), str(tmp_path / "down" / "f"), tmp_path / "work")
    assert tables.downstream["evidence"].to_pylist() == [str(Evidence.SAME_PIXELS)]
    assert not list(tmp_path.glob("work/verified/*"))


def with_tar(picture: Path, tar: Path) -> None:
    with tarfile.open(tar, "w") as archive:
        archive.add(picture, picture.name)
