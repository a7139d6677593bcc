"""What the join keeps: every pair that digests prove, and the closest others, however the upstream set is cut."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from cluster.audit.base.sets import Sides
from cluster.audit.base.tables import AuditConfig, Evidence
from cluster.audit.coordinator import pin_sides
from cluster.audit.search.join_tasks import cap_matches, join_shards
from pipeline.dataset.dataset import Address, Dataset
from tests.cluster.audit.audits import local_job
from tests.conftest import class_folders, pack

SCHEMA = pa.schema(
    [*((name, pa.int32()) for name in ("up_shard", "up_row", "down_shard", "down_row")), ("distance", pa.int16()),
     ("element", pa.int8()), ("known", pa.string()), ("num_matches", pa.int64())]
)  # fmt: skip
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
        kept, hubs, num_candidates = cap_matches(matches, 3)
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
    rows = matches.to_pylist()
    assert all((row["up_shard"], row["up_row"]) < (row["down_shard"], row["down_row"]) for row in rows)
    pairs = [(row["up_shard"], row["up_row"], row["down_shard"], row["down_row"]) for row in rows]
    alike = NUM_COPIES + len(QUALITIES)
    assert len(set(pairs)) == len(pairs) == alike * (alike - 1) // 2
    proven = [row for row in rows if row["known"]]
    assert len(proven) == NUM_COPIES - 1
    assert len({(row["up_shard"], row["up_row"]) for row in proven}) == 1


@st.composite
def listed_matches(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows of several upstream shards; `num_matches` is at least the number that the shard lists for the picture."""
    pairs = draw(st.sets(st.tuples(*(st.integers(0, most) for most in (2, 5, 1, 2))), max_size=40))
    rows = [
        {"up_shard": up_shard, "up_row": up_row, "down_shard": down_shard, "down_row": down_row,
         "distance": draw(st.integers(0, 4)), "element": 0,
         "known": draw(st.sampled_from([None, None, None, "same bytes", "same pixels"]))}
        for up_shard, up_row, down_shard, down_row in sorted(pairs)
    ]  # fmt: skip
    listed = Counter((row["up_shard"], row["down_shard"], row["down_row"]) for row in rows)
    counts = {key: number + draw(st.integers(0, 3)) for key, number in listed.items()}
    return [row | {"num_matches": counts[row["up_shard"], row["down_shard"], row["down_row"]]} for row in rows]


@settings(max_examples=100)
@given(listed_matches(), st.integers(1, 5))
def test_the_cap_keeps_what_is_proven_and_the_closest_of_the_others(rows: list[dict[str, Any]], most: int) -> None:
    kept, hubs, num_candidates = cap_matches(pa.Table.from_pylist(rows, schema=SCHEMA), most)
    own: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    totals: Counter[tuple[int, int]] = Counter()
    for row in rows:
        own[row["down_shard"], row["down_row"]].append(row)
    expected = []
    for picture, matches in own.items():
        unproven = [row for row in matches if row["known"] is None]
        unproven.sort(key=lambda row: (row["distance"], row["up_shard"], row["up_row"]))
        expected += [row for row in matches if row["known"]] + unproven[:most]
        totals[picture] = sum({row["up_shard"]: row["num_matches"] for row in matches}.values())
    ordered = sorted(kept.to_pylist(), key=lambda row: list(row.values())[:4])
    assert ordered == sorted(expected, key=lambda row: list(row.values())[:4])
    assert num_candidates == totals.total()
    full = sorted((-number, *picture) for picture, number in totals.items() if number > most)
    assert [(-row["num_matches"], row["shard"], row["row"]) for row in hubs.to_pylist()] == full
