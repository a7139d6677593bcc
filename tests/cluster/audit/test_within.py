"""Copies within one set are grouped, and all but one of each group are excluded, however the set is cut."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.audit.base import stored_tasks
from cluster.audit.base.sets import picture_name
from cluster.audit.base.tables import AuditConfig, is_duplicate
from cluster.audit.coordinator import pin_sides
from cluster.audit.find_pairs import find_pairs
from cluster.audit.within import run_audit_within
from pipeline.base.errors import Conflict
from pipeline.dataset.dataset import Address, open_dataset
from pipeline.store.url import open_store
from tests.cluster.audit.audits import ellipse, local_job, scene
from tests.cluster.audit.stand_in import pixel_model
from tests.conftest import class_folders, pack, run_cli

SIMILAR = ("similar-a.png", "similar-b.png")
COPIES = {"000.jpg": ("same.jpg", "mirrored.jpg", "small.png"), "001.jpg": ("grey.jpg",)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures, four copies of two of them, and two pictures that are very similar."""
    source = class_folders(tmp_path_factory.mktemp("within") / "in", classes=1, each=6)
    pictures = source / "class0"
    (pictures / "same.jpg").write_bytes((pictures / "000.jpg").read_bytes())
    with Image.open(pictures / "000.jpg") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(pictures / "mirrored.jpg")
        image.resize((32, 24)).save(pictures / "small.png")
    with Image.open(pictures / "001.jpg") as image:
        image.convert("L").save(pictures / "grey.jpg")
    for name, (half_width, half_height) in zip(SIMILAR, ((80, 60), (88, 55)), strict=True):
        Image.fromarray(ellipse(half_width, half_height)).save(pictures / name)
    return source


def run(url: Path, out: Path, **settings: Any) -> dict[str, Any]:
    config = AuditConfig(upstream=str(url), downstream=str(url), canaries_each=0, **settings)
    return run_audit_within(open_store(str(out)), config, pin_sides(config), local_job(out / "work"))


def names_of(url: Path, rows: list[dict[str, Any]], prefix: str = "") -> set[str]:
    dataset = open_dataset(str(url))
    places = {Address(row[f"{prefix}shard"], row[f"{prefix}row"]) for row in rows}
    return {Path(dataset.read_about(place)["source"]).name for place in places}


@pytest.mark.parametrize("shard_bytes", [10_000_000, 10_000])
def test_all_copies_but_the_centres_are_excluded_and_similar_pictures_stay(
    folder: Path, tmp_path: Path, shard_bytes: int
) -> None:
    num_shards = len(pack(folder, str(tmp_path / "set"), shard_bytes=shard_bytes).shards)
    assert (num_shards > 3) == (shard_bytes == 10_000)
    summary = run(tmp_path / "set", tmp_path / "out")
    pairs = pq.read_table(tmp_path / "out" / "pairs.parquet").to_pylist()
    similar = [pair for pair in pairs if not is_duplicate(pair["evidence"])]
    assert [names_of(tmp_path / "set", similar, f"{side}_") for side in ("up", "down")] in (
        [{SIMILAR[0]}, {SIMILAR[1]}], [{SIMILAR[1]}, {SIMILAR[0]}],
    )  # fmt: skip
    members = pq.read_table(tmp_path / "out" / "stars.parquet").to_pylist()
    groups = {}
    for centre in {(row["centre_shard"], row["centre_row"]) for row in members}:
        own = [row for row in members if (row["centre_shard"], row["centre_row"]) == centre]
        groups[min(names_of(tmp_path / "set", own, "centre_"))] = names_of(tmp_path / "set", own)
    assert sorted(sorted({centre, *copies}) for centre, copies in groups.items()) == sorted(
        sorted({original, *copies}) for original, copies in COPIES.items()
    )
    excluded = pq.read_table(tmp_path / "out" / "exclude.parquet").to_pylist()
    assert names_of(tmp_path / "set", excluded) == set().union(*groups.values())
    assert {row["source"] for row in excluded} == {f"class0/{name}" for name in set().union(*groups.values())}
    assert {row["classes"] for row in [*excluded, *members]} == {"class0"}
    assert {row["centre_classes"] for row in members} == {"class0"}
    counts = {name: summary[name] for name in ("num_stars", "num_left_out", "num_samples", "num_duplicate_pairs")}
    assert counts == {"num_stars": 2, "num_left_out": 4, "num_samples": 12, "num_duplicate_pairs": len(pairs) - 1}
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary


def ordered_folder(source: Path, target: Path, *, is_reversed: bool) -> Path:
    """Copy pictures under other names: packing orders them by a hash of their names."""
    target.mkdir(parents=True)
    for number, path in enumerate(sorted(source.iterdir(), reverse=is_reversed)):
        shutil.copy(path, target / f"{number:02d}-{path.name}")
    return target.parent


def compared(url: Path, work: Path, **settings: Any) -> dict[frozenset[str], tuple[Any, ...]]:
    """Return the result of every pair that was compared, by the names of its pictures, and those of hubs."""
    config = AuditConfig(upstream=str(url), downstream=str(url), canaries_each=0, **settings)
    sides = pin_sides(config)
    found = find_pairs(config, sides, local_job(work))

    def name(shard: int, row: int) -> str:
        return picture_name(sides.upstream, Address(shard, row)).rpartition("/")[2][3:]

    results: dict[frozenset[str], tuple[Any, ...]] = {
        frozenset({name(row["up_shard"], row["up_row"]), name(row["down_shard"], row["down_row"])}): (
            row["distance"], row["correlation"], row["evidence"],
        )
        for row in found.pairs.to_pylist()
    }  # fmt: skip
    hubs = {frozenset({name(row["shard"], row["row"])}): (row["num_matches"],) for row in found.hubs.to_pylist()}
    return results | hubs | {frozenset(): (found.num_candidates,)}


def test_the_pairs_do_not_depend_on_the_order_of_the_pictures_nor_on_shards_nor_on_parts_of_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = class_folders(tmp_path / "in", classes=1, each=10) / "class0"
    for name, pixels in {f"scene{number}": scene(number) for number in range(3)}.items():
        Image.fromarray(pixels).save(source / f"{name}.png")
        Image.fromarray(pixels[20:150, 30:220]).save(source / f"{name}-crop.png")
    with Image.open(source / "003.jpg") as image:
        for quality in range(40, 46):  # more than are verified of any one picture, and equally far in bits
            image.save(source / f"003-{quality}.jpg", quality=quality)
    nearness = "cosine_from = 0.1\nmargin = 0.02\nsure_from = 0.98"
    settings = {"embedding": pixel_model(tmp_path, nearness), "most_matches": 3}
    results = []
    for is_reversed, shard_bytes in ((False, 10_000_000), (True, 10_000_000), (True, 20_000)):
        name = f"{is_reversed}-{shard_bytes}"
        folder = ordered_folder(source, tmp_path / "ordered" / name / "class0", is_reversed=is_reversed)
        pack(folder, str(tmp_path / name), shard_bytes=shard_bytes)
        results.append(compared(tmp_path / name, tmp_path / "work" / name, **settings))
    assert len(list((tmp_path / "work" / name / "joined").iterdir())) > 3
    assert results[0] == results[1] == results[2]
    monkeypatch.setattr(stored_tasks, "_PICTURES_PER_PART", 5)
    assert compared(tmp_path / "True-10000000", tmp_path / "work" / "parts", **settings) == results[0]
    assert len(list((tmp_path / "work" / "parts" / "joined").iterdir())) > 3
    hubs = {picture for key in results[0] if len(key) == 1 for picture in key}
    assert {f"003-{quality}.jpg" for quality in range(40, 46)} & hubs
    proposed = pq.read_table(next((tmp_path / "work" / "False-10000000" / "proposed").iterdir()))
    directed = set(zip(proposed["up_row"].to_pylist(), proposed["down_row"].to_pylist(), strict=True))
    one_way = {pair for pair in directed if pair[::-1] not in directed}
    assert {up < down for up, down in one_way} == {True, False}, "earlier and later pictures propose some alone"
    assert results[0][frozenset()] == (len({frozenset(pair) for pair in directed}),), "a pair is one candidate"


def test_another_audit_does_not_overwrite_the_report(folder: Path, tmp_path: Path) -> None:
    pack(folder, str(tmp_path / "set"))
    run(tmp_path / "set", tmp_path / "out")
    before = (tmp_path / "out" / "summary.json").read_bytes()
    with pytest.raises(Conflict, match="choose another destination"):
        run(tmp_path / "set", tmp_path / "out", radius=31)
    assert (tmp_path / "out" / "summary.json").read_bytes() == before


def test_more_copies_than_are_verified_form_one_group(tmp_path: Path) -> None:
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


def test_what_was_not_compared_is_counted_once_and_no_flat_picture_is_called_clean(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", classes=1, each=4)
    for number in range(3):
        Image.new("RGB", (64, 48), (90 + 20 * number, 80, 70)).save(source / "class0" / f"flat{number}.png")
    (source / "class0" / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    pack(source, str(tmp_path / "set"), max_reject_fraction=0.5)
    summary = run(tmp_path / "set", tmp_path / "out")
    assert summary["num_unchecked"] == 3 + 1
    assert pq.read_table(tmp_path / "out" / "unchecked.parquet")["source"].to_pylist() == ["class0/broken.jpg"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "4 could not be checked" in page
    assert "The search was by hash alone" in page
