"""What may be audited: packed sets, tars of others, fingerprints of them, one set with itself; and shards that kill."""

import os
import shutil
import signal
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from cluster.audit.base.sets import index_of, pinned
from cluster.audit.base.stored_tasks import Quarantined, results_of
from cluster.audit.base.tables import AuditConfig, AuditTables, Evidence
from cluster.audit.coordinator import audit, sides_of
from cluster.audit.result.groups import stars
from cluster.audit.search.fingerprints import fingerprint_set
from pipeline.base.errors import CorruptShard
from pipeline.dataset.dataset import open_dataset
from pipeline.store.url import open_store
from pipeline.work.pools import Processes
from tests.cluster.audit.audits import here, leaky_sets
from tests.conftest import class_folders, pack, run_cli


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return leaky_sets(tmp_path_factory.mktemp("audit"))


def found_by(up: str, down: str, work: Path) -> AuditTables:
    config = AuditConfig(upstream=up, downstream=down, canaries_each=0)
    return audit(config, sides_of(config), here(work))


@pytest.fixture
def tars(sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The upstream tars alone, as somebody else would publish them."""
    monkeypatch.setenv("BIT_INDEX_FOLDER", str(tmp_path / "index"))
    folder = tmp_path / "tars"
    folder.mkdir()
    for tar in sets[0].rglob("*.tar"):
        shutil.copy(tar, folder)
    return folder


def told(tables: AuditTables) -> list[tuple[object, ...]]:
    """What an audit says of each picture. Distances may differ by a bit: packing encodes PNG as JPEG after the hash."""
    columns = [tables.downstream[name].to_pylist() for name in ("shard", "row", "state", "evidence", "num_pairs")]
    return list(zip(*columns, strict=True))


def test_tars_of_others_are_audited_like_the_packed_set(sets: tuple[Path, Path], tars: Path, tmp_path: Path) -> None:
    packed = found_by(str(sets[0]), str(sets[1]), tmp_path / "a")
    foreign = found_by(f"{tars}/*.tar", str(sets[1]), tmp_path / "b")
    assert told(foreign) == told(packed)


def test_fingerprints_of_tars_are_audited_and_made_once(sets: tuple[Path, Path], tars: Path, tmp_path: Path) -> None:
    out = tmp_path / "prints"
    done = run_cli("cluster", "fingerprint", str(tars), str(out))
    assert done.returncode == 0, done.stderr
    packed = found_by(str(sets[0]), str(sets[1]), tmp_path / "a")
    assert told(found_by(str(out), str(sets[1]), tmp_path / "b")) == told(packed)
    assert "pixels" in open_dataset(str(out)).samples(0).column_names
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert run_cli("cluster", "fingerprint", str(tars), str(out)).returncode == 0
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def test_only_a_new_tar_is_fingerprinted_and_a_moved_one_is_not_decoded(tars: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "prints"))
    first = fingerprint_set(str(tars), store, here(tmp_path / "prints"))
    made = set(tmp_path.glob("prints/fingerprints/*/*.parquet"))
    moved = next(tars.glob("*.tar"))
    moved.rename(tars / "zz-moved.tar")
    second = fingerprint_set(str(tars), store, here(tmp_path / "prints"))
    assert (second.version, second.num_samples) == (2, first.num_samples)
    assert set(tmp_path.glob("prints/fingerprints/*/*.parquet")) == made


def test_a_packed_set_needs_no_fingerprints(sets: tuple[Path, Path], tmp_path: Path) -> None:
    done = run_cli("cluster", "fingerprint", str(sets[0]), str(tmp_path / "out"))
    assert done.returncode == 0
    assert "audit it as it is" in done.stdout
    assert not (tmp_path / "out").exists()


def test_a_set_packed_without_fingerprints_gets_them(sets: tuple[Path, Path], tmp_path: Path) -> None:
    source, bare = sets[1].parent / "down-in", tmp_path / "bare"
    assert run_cli("pipeline", "shard", str(source), str(bare), "--check", "header").returncode == 0
    refused = run_cli("cluster", "audit", str(sets[0]), str(bare), str(tmp_path / "out"))
    assert refused.returncode == 2
    assert "cluster fingerprint" in refused.stderr
    fingerprint_set(str(bare), open_store(str(tmp_path / "prints")), here(tmp_path / "prints"))
    codes = [index_of(pinned(str(url))).select(["code", "digest"]) for url in (tmp_path / "prints", sets[1])]
    assert codes[0].equals(codes[1])


def test_a_damaged_tar_stops_with_its_name(tars: Path, tmp_path: Path) -> None:
    broken = sorted(tars.glob("*.tar"))[1]
    broken.write_bytes(broken.read_bytes()[:-2048])
    with pytest.raises(CorruptShard, match=broken.name):
        fingerprint_set(str(tars), open_store(str(tmp_path / "prints")), here(tmp_path / "prints"))
    assert not (tmp_path / "prints" / "MANIFEST.json").exists()


def test_equal_pixels_count_even_where_pictures_are_too_flat_to_tell(tmp_path: Path) -> None:
    flat = Image.fromarray(np.full((40, 60, 3), 90, np.uint8))
    for side, compression in (("up", 1), ("down", 9)):
        (tmp_path / side / "x").mkdir(parents=True)
        flat.save(tmp_path / side / "x" / "flat.png", compress_level=compression)
    for side in ("up", "down"):
        (tmp_path / side / "tars").mkdir()
        with_tar(tmp_path / side / "x" / "flat.png", tmp_path / side / "tars" / "a.tar")
        fingerprint_set(str(tmp_path / side / "tars"), open_store(str(tmp_path / side / "f")), here(tmp_path))
    tables = found_by(str(tmp_path / "up" / "f"), str(tmp_path / "down" / "f"), tmp_path / "work")
    assert tables.downstream["evidence"].to_pylist() == [str(Evidence.SAME_PIXELS)]
    assert not list(tmp_path.glob("work/verified/*"))


def with_tar(picture: Path, tar: Path) -> None:
    with tarfile.open(tar, "w") as archive:
        archive.add(picture, picture.name)


def test_copies_within_a_set_form_stars_and_all_but_one_are_left_out(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", classes=2, each=6)
    first = (source / "class0" / "000.jpg").read_bytes()
    for number in range(25):  # more than are verified of any one picture
        (source / "class1" / f"copy-{number}.jpg").write_bytes(first)
    pack(source, str(tmp_path / "set"), shard_bytes=20_000)
    done = run_cli("cluster", "audit-within", "set", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 of 37 pictures have copies, 25 of them" in done.stdout
    assert pq.read_table(tmp_path / "out" / "exclude.parquet").num_rows == 25
    assert len(set(pq.read_table(tmp_path / "out" / "stars.parquet")["centre_key"].to_pylist())) == 1


addresses = st.tuples(st.integers(0, 1), st.integers(0, 8))


@given(st.lists(st.tuples(addresses, addresses).filter(lambda pair: pair[0] != pair[1])))
def test_every_member_of_a_star_is_a_copy_of_its_centre(pairs: list[tuple[tuple[int, int], tuple[int, int]]]) -> None:
    linked = {frozenset(pair) for pair in pairs}
    found = stars(pairs)
    members = [member for group in found.values() for member in group]
    assert len(members) == len(set(members))
    assert not set(members) & set(found)
    assert all(frozenset((centre, member)) in linked for centre, group in found.items() for member in group)
    assert not any(pair & set(found) == pair for pair in linked)
    left = {address for pair in pairs for address in pair} - set(members)
    assert not any(pair <= left for pair in linked if not pair & set(found)), "a pair is left whole"
    assert stars([(other, one) for one, other in reversed(pairs)]) == found


def test_a_chain_does_not_become_one_group() -> None:
    chain = [((0, number), (0, number + 1)) for number in range(4)]
    assert stars(chain) == {(0, 1): [(0, 0), (0, 2)], (0, 3): [(0, 4)]}


@dataclass(frozen=True)
class Call:
    number: int


def deadly(call: Call) -> int:
    """Kill its process for one call, fails for another."""
    if call.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if call.number == 2:
        raise ValueError("a shard nobody foresaw")
    return call.number


def test_a_shard_that_kills_its_workers_is_quarantined_and_the_others_are_done() -> None:
    pool, events = Processes(2), []
    try:
        results = dict(results_of(pool, deadly, [Call(number) for number in range(4)], record_into(events)))
    finally:
        pool.close()
    assert results[Call(0)] == 0
    assert results[Call(3)] == 3
    assert results[Call(1)] == Quarantined("it kills the process that runs it")
    assert results[Call(2)] == Quarantined("ValueError: a shard nobody foresaw")
    assert events.count("lost") == 2
    assert events.count("quarantined") == 2


def record_into(events: list[str]) -> Callable[..., None]:
    return lambda event, **values: events.append(event)


def test_a_crop_needs_the_embedding_and_a_new_test_set_embeds_nothing_upstream_again(tmp_path: Path) -> None:
    down = class_folders(tmp_path / "down-in", classes=1, each=4, seed=500)
    up = class_folders(tmp_path / "up-in", classes=1, each=4)
    whole = Image.fromarray(scene())
    whole.save(down / "class0" / "scene.png")
    whole.crop((70, 50, 250, 190)).save(up / "class0" / "crop.png")
    for name in ("up", "down"):
        pack(tmp_path / f"{name}-in", str(tmp_path / name))
    pack(class_folders(tmp_path / "other-in", classes=1, each=3, seed=900), str(tmp_path / "other"))
    plain = AuditConfig(upstream=str(tmp_path / "up"), downstream=str(tmp_path / "down"), canaries_each=0)
    assert "duplicate" not in states_of(plain, tmp_path / "work")
    embedded = plain.model_copy(update={"embedding": "efficientnet-lite0", "most_matches": 2})
    assert states_of(embedded, tmp_path / "work").count("duplicate") == 1
    vectors = set(tmp_path.glob("work/vectors/*"))
    states_of(embedded.model_copy(update={"downstream": str(tmp_path / "other")}), tmp_path / "work")
    assert len(set(tmp_path.glob("work/vectors/*")) - vectors) == 1


def states_of(config: AuditConfig, work: Path) -> list[str]:
    states: list[str] = audit(config, sides_of(config), here(work)).downstream["state"].to_pylist()
    return states


def scene() -> np.ndarray:
    """A picture with shapes and texture at many sizes, 320x240."""
    generator = np.random.default_rng(4)
    canvas = np.zeros((240, 320, 3))
    for side in (4, 8, 16, 40):
        coarse = generator.integers(0, 256, (side * 3 // 4, side, 3), dtype=np.uint8)
        canvas += np.asarray(Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC)) / 4
    image = Image.fromarray(canvas.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(25):
        x, y, size = generator.integers(0, 300), generator.integers(0, 220), generator.integers(8, 45)
        draw.ellipse((x, y, x + size, y + size), fill=tuple(generator.integers(0, 256, 3).tolist()))
    return np.asarray(image)
