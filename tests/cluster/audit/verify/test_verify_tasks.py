"""Matches that digests do not prove are compared picture by picture; what cannot be compared is unchecked."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from cluster.audit.base.sets import Sides, pin
from cluster.audit.base.tables import PAIR_SCHEMA, UNREADABLE, Evidence
from cluster.audit.verify.verify_tasks import verify_matches
from pipeline.dataset.dataset import Address, Dataset, open_dataset
from pipeline.dataset.schema import image_digest, sha256_hex, to_parquet
from pipeline.image.fingerprint import DIHEDRAL
from pipeline.store.base import put
from tests.cluster.audit.audits import local_job
from tests.conftest import class_folders, pack

MATCH_SCHEMA = pa.schema([*list(PAIR_SCHEMA)[:6], pa.field("known", pa.string())])
RADIUS = 62
NUM_PICTURES = 8


@pytest.fixture
def sides(tmp_path: Path) -> Sides:
    """Eight downstream pictures, and upstream a mirrored and compressed copy of each, in shards of a few pictures."""
    down = class_folders(tmp_path / "down-in", classes=1, each=NUM_PICTURES, seed=900)
    (tmp_path / "up-in" / "class0").mkdir(parents=True)
    for path in down.rglob("*.jpg"):
        with Image.open(path) as image:
            mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            mirrored.save(tmp_path / "up-in" / "class0" / path.name, quality=60)
    pack(tmp_path / "up-in", str(tmp_path / "up"), shard_bytes=12_000)
    pack(down, str(tmp_path / "down"))
    return Sides(pin(str(tmp_path / "up")), pin(str(tmp_path / "down")))


def places(dataset: Dataset) -> list[tuple[int, int]]:
    """Return shard and row of each picture, in the order of the file names."""
    rows = dataset.all_samples(["key"]).to_pylist()
    found = {
        dataset.read_about(Address(row["shard"], row["row"]))["source"]: (row["shard"], row["row"]) for row in rows
    }
    return [found[name] for name in sorted(found)]


def match(sides: Sides, up: int, down: int, **values: Any) -> dict[str, Any]:
    """Return a match of two pictures by their numbers."""
    (up_shard, up_row), (down_shard, down_row) = places(sides.upstream)[up], places(sides.downstream)[down]
    addresses = {"up_shard": up_shard, "up_row": up_row, "down_shard": down_shard, "down_row": down_row}
    return addresses | {"distance": 20, "element": 0, "known": None} | values


def verified(sides: Sides, matches: list[dict[str, Any]], work: Path) -> tuple[list[dict[str, Any]], list[Any]]:
    """Return the rows of the pairs, and (side, shard, row) of what could not be compared."""
    table = pa.Table.from_pylist(matches, schema=MATCH_SCHEMA)
    pairs, unreadable = verify_matches(table, RADIUS, sides, local_job(work))
    assert pairs.schema == PAIR_SCHEMA
    assert all(row["reason"] == UNREADABLE for row in unreadable)
    return pairs.to_pylist(), [(row["side"], row["shard"], row["row"]) for row in unreadable]


def test_copies_are_distinguished_from_other_pictures_and_their_turn_is_found(sides: Sides, tmp_path: Path) -> None:
    matches = [match(sides, up, down) for up in range(3) for down in range(3)]
    pairs, unreadable = verified(sides, matches, tmp_path / "work")
    assert unreadable == []
    assert len(pairs) == 9
    for pair in pairs:
        up = places(sides.upstream).index((pair["up_shard"], pair["up_row"]))
        down = places(sides.downstream).index((pair["down_shard"], pair["down_row"]))
        assert (pair["evidence"] == Evidence.NEAR) == (up == down)
        if up == down:
            assert DIHEDRAL[pair["element"]] == (False, True, False)  # mirrored; the search said 0
            assert pair["correlation"] > 0.9
        samples = (sides.upstream.sample(Address(pair["up_shard"], pair["up_row"])),
                   sides.downstream.sample(Address(pair["down_shard"], pair["down_row"])))  # fmt: skip
        assert pair["quality"] == min(sample["quality"] for sample in samples)


@pytest.mark.parametrize(("distance", "evidence"), [(RADIUS, Evidence.NEAR), (RADIUS + 1, Evidence.EMBEDDED)])
def test_pairs_beyond_the_radius_are_those_of_the_embedding(
    sides: Sides, tmp_path: Path, distance: int, evidence: Evidence
) -> None:
    pairs, _ = verified(sides, [match(sides, 0, 0, distance=distance)], tmp_path / "work")
    assert [pair["evidence"] for pair in pairs] == [evidence]


def test_what_digests_prove_is_not_read(sides: Sides, tmp_path: Path) -> None:
    proven = match(sides, 0, 1, distance=0, known=str(Evidence.SAME_PIXELS))
    for tar in tmp_path.rglob("*.tar"):
        tar.unlink()
    pairs, unreadable = verified(sides, [proven], tmp_path / "work")
    quality = sides.downstream.sample(Address(proven["down_shard"], proven["down_row"]))["quality"]
    expected = {name: proven[name] for name in PAIR_SCHEMA.names[:6]}
    assert pairs == [expected | {"quality": quality, "correlation": 1.0, "evidence": proven["known"]}]
    assert unreadable == []


def test_results_are_stored_and_do_not_depend_on_the_order_of_the_matches(sides: Sides, tmp_path: Path) -> None:
    matches = [match(sides, number, number) for number in range(NUM_PICTURES)]
    first, _ = verified(sides, matches, tmp_path / "work")
    results = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.parquet")}
    assert len(results) == len({row["up_shard"] for row in matches}) > 1
    for tar in tmp_path.rglob("*.tar"):
        tar.unlink()
    again, _ = verified(sides, matches[::-1], tmp_path / "work")
    assert again == first
    assert results == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.parquet")}


def damage(dataset: Dataset, place: tuple[int, int]) -> None:
    """Damage the data of a picture and record its new digest, as of one that was fingerprinted and does not decode."""
    shard, row = place
    sample = dataset.sample(Address(shard, row))
    body = bytearray(dataset.store.read(dataset.shard_path(shard)))
    end = sample["image_offset"] + sample["image_bytes"]
    body[end - sample["image_bytes"] // 2 : end] = bytes(sample["image_bytes"] // 2)
    put(dataset.store, dataset.shard_path(shard), bytes(body))
    samples, shards = dataset.samples(shard), dataset.shards.table
    digests = samples["digest"].to_pylist()
    digests[row] = image_digest(bytes(body[sample["image_offset"] : end]))
    sidecar = to_parquet(replaced(samples, "digest", digests))
    put(dataset.store, dataset.shards[shard]["sidecar"], sidecar)
    sums = shards["sidecar_sha256"].to_pylist()
    sums[shard] = sha256_hex(sidecar)
    table = to_parquet(replaced(shards, "sidecar_sha256", sums))
    put(dataset.store, dataset.version.shards, table)
    version = dataset.version.model_copy(update={"shards_sha256": sha256_hex(table)})
    put(dataset.store, "MANIFEST.json", version.to_json())


def replaced(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(name), pa.array(values, table.schema.field(name).type))


@pytest.mark.parametrize("side", ["up", "down"])
def test_a_picture_that_does_not_decode_is_unchecked_and_the_others_are_compared(
    sides: Sides, tmp_path: Path, side: str
) -> None:
    matches = [match(sides, number, number) for number in range(3)]
    damage(open_dataset(str(tmp_path / side)), (matches[1][f"{side}_shard"], matches[1][f"{side}_row"]))
    damaged = Sides(pin(str(tmp_path / "up")), pin(str(tmp_path / "down")))
    pairs, unreadable = verified(damaged, matches, tmp_path / "work")
    assert {(pair["down_shard"], pair["down_row"]) for pair in pairs} == {
        (row["down_shard"], row["down_row"]) for row in (matches[0], matches[2])
    }
    expected = [("downstream", matches[1]["down_shard"], matches[1]["down_row"])]
    if side == "up":
        expected.append(("upstream", matches[1]["up_shard"], matches[1]["up_row"]))
    assert unreadable == expected


def test_the_downstream_pictures_of_a_task_that_fails_everywhere_are_unchecked(sides: Sides, tmp_path: Path) -> None:
    matches = [match(sides, number, number) for number in range(NUM_PICTURES)]
    broken = [row | {"up_row": 1000} for row in matches[:1]]  # no such row: an error that nothing expects
    others = [row for row in matches if row["up_shard"] != broken[0]["up_shard"]]
    pairs, unreadable = verified(sides, broken + others, tmp_path / "work")
    assert unreadable == [("downstream", broken[0]["down_shard"], broken[0]["down_row"])]
    assert len(pairs) == len(others) > 0
