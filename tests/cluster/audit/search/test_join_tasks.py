"""What the join keeps: every pair that digests prove, and the closest others, however the upstream set is cut."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from cluster.audit.base.sets import Sides
from cluster.audit.base.tables import DEFAULT_RADIUS, AuditConfig, Evidence
from cluster.audit.coordinator import pin_sides
from cluster.audit.search.join_tasks import join_shards
from cluster.audit.search.matches import cap_matches
from pipeline.dataset.dataset import Address, Dataset
from tests.cluster.audit.audits import local_job
from tests.conftest import class_folders, pack

NUM_COPIES, QUALITIES = 5, (20, 30, 40, 50, 60, 70, 80, 95)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Class folders of an upstream set with five copies and eight recompressions of one downstream picture."""
    root = tmp_path_factory.mktemp("join")
    up = class_folders(root / "up", classes=2, each=6)
    down = class_folders(root / "down", classes=1, each=4, seed=900)
    original = down / "class0" / "001.jpg"
    for number in range(NUM_COPIES):
        (up / "class1" / f"copy-{number}.jpg").write_bytes(original.read_bytes())
    with Image.open(original) as image:
        for quality in QUALITIES:
            image.save(up / "class0" / f"quality-{quality}.jpg", quality=quality)
    return up, down


def joined(up: str, down: str, work: Path, most: int) -> tuple[Sides, pa.Table, list[dict[str, Any]]]:
    config = AuditConfig(upstream=up, downstream=down, most_matches=most)
    sides = pin_sides(config)
    matches, shards, unreadable = join_shards(config, sides, local_job(work))
    assert unreadable == []
    return sides, matches, shards


def source_of(dataset: Dataset, shard: int, row: int) -> str:
    return str(dataset.read_about(Address(shard, row))["source"])


def by_source(sides: Sides, pairs: pa.Table) -> set[tuple[Any, ...]]:
    """Return pairs by the names of their pictures, which do not depend on shards."""
    return {
        (source_of(sides.upstream, row["up_shard"], row["up_row"]),
         source_of(sides.downstream, row["down_shard"], row["down_row"]),
         row["distance"], row["element"], row["known"])
        for row in pairs.to_pylist()
    }  # fmt: skip


def test_the_kept_matches_do_not_depend_on_how_the_upstream_set_is_cut(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    up, down = folders
    pack(down, str(tmp_path / "down"))
    results = []
    for name, shard_bytes in (("one", 10_000_000), ("many", 15_000)):
        num_shards = len(pack(up, str(tmp_path / name), shard_bytes=shard_bytes).shards)
        sides, matches, shards = joined(str(tmp_path / name), str(tmp_path / "down"), tmp_path / "work", 3)
        assert [row["state"] for row in shards] == ["joined"] * num_shards
        kept, hubs, num_candidates = cap_matches(matches, 3, DEFAULT_RADIUS)
        assert sum(row["num_candidates"] for row in shards) == num_candidates
        hub_sources = [source_of(sides.downstream, row["shard"], row["row"]) for row in hubs.to_pylist()]
        results.append((by_source(sides, kept), hub_sources, hubs["num_matches"].to_pylist(), num_candidates))
    assert num_shards > 4
    assert results[0] == results[1]
    kept_by_source, hub_sources, counts, num_candidates = results[0]
    assert hub_sources == ["class0/001.jpg"]
    assert counts == [num_candidates] == [NUM_COPIES + len(QUALITIES)]
    evidence = Counter(known for *_, known in kept_by_source)
    assert evidence == {str(Evidence.SAME_BYTES): NUM_COPIES, None: 3}
    unproven = {source for source, *_, known in kept_by_source if known is None}
    assert unproven < {f"class0/quality-{quality}.jpg" for quality in QUALITIES}


def test_within_a_set_each_pair_is_listed_once_and_a_copy_with_the_first_one_only(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    pack(folders[0], str(tmp_path / "up"), shard_bytes=15_000)
    _, matches, _ = joined(str(tmp_path / "up"), str(tmp_path / "up"), tmp_path / "work", 100)
    kept, hubs, num_candidates = cap_matches(matches, 100, DEFAULT_RADIUS, is_within=True)
    assert matches.num_rows == 2 * kept.num_rows == 2 * num_candidates
    assert hubs.num_rows == 0
    rows = kept.to_pylist()
    assert all((row["up_shard"], row["up_row"]) < (row["down_shard"], row["down_row"]) for row in rows)
    pairs = [(row["up_shard"], row["up_row"], row["down_shard"], row["down_row"]) for row in rows]
    alike = NUM_COPIES + len(QUALITIES)
    assert len(set(pairs)) == len(pairs) == alike * (alike - 1) // 2
    proven = [row for row in rows if row["known"]]
    assert len(proven) == NUM_COPIES - 1
    assert len({(row["up_shard"], row["up_row"]) for row in proven}) == 1
