"""The audit finds what was planted, rejects look-alikes, and does not depend on shards, workers or Ray."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cluster.audit.base.tables import AuditConfig, AuditTables, Evidence
from cluster.audit.result.canaries import TRANSFORMS
from cluster.stack.services import Stack
from pipeline.base.errors import ConfigError, CorruptShard, NotFound
from pipeline.dataset.dataset import Address, Dataset, open_dataset
from pipeline.store.base import put
from pipeline.store.url import open_store
from tests.cluster.audit.audits import LEAKS, audited, contents, leaky_sets
from tests.cluster.audit.stand_in import pixel_model
from tests.conftest import BUCKET, class_folders, jpeg, pack, run_cli, running_stack
from tests.soak.audit_kill import soak


def duplicates(tables: AuditTables, down: Dataset) -> dict[str, str]:
    rows = [row for row in tables.downstream.to_pylist() if row["state"] == "duplicate"]
    return {down.read_about(Address(row["shard"], row["row"]))["source"]: row["evidence"] for row in rows}


def expected_duplicates() -> dict[str, str]:
    pictures = sorted(f"class{label}/{number:03d}.jpg" for label in range(3) for number in range(12))
    expected = {pictures[number]: str(Evidence.NEAR) for number in LEAKS.values()}
    return expected | {pictures[30]: str(Evidence.SAME_BYTES)}


def test_every_planted_copy_is_found_and_nothing_else(found: AuditTables, sets: tuple[Path, Path]) -> None:
    assert duplicates(found, open_dataset(str(sets[1]))) == expected_duplicates()
    assert found.downstream["state"].to_pylist().count("clean") == 30


def test_canaries_measure_recall_per_transform(found: AuditTables) -> None:
    assert set(found.canaries["transform"].to_pylist()) == set(TRANSFORMS)
    assert found.canaries.num_rows == 2 * len(TRANSFORMS)
    lossless = [
        r["found"] for r in found.canaries.to_pylist() if r["transform"] in ("mirrored", "turned 90", "turned 180")
    ]
    assert all(lossless)


def test_the_result_does_not_depend_on_sharding(found: AuditTables, sets: tuple[Path, Path], tmp_path: Path) -> None:
    pack(sets[0].parent / "up-in", str(tmp_path / "one"))
    other_config = AuditConfig(upstream=str(tmp_path / "one"), downstream=str(sets[1]), canaries_each=2)
    other = audited(other_config, tmp_path / "work")
    assert len(open_dataset(str(sets[0])).shards) > len(open_dataset(str(tmp_path / "one")).shards)
    assert other.downstream.equals(found.downstream)
    assert other.canaries.equals(found.canaries)


def test_with_an_embedding_of_crops_and_a_tight_cap_the_result_does_not_depend_on_sharding_either(
    tmp_path: Path,
) -> None:
    model = pixel_model(tmp_path, "cosine_from = 0.1\nmargin = 0.0\nsure_from = 0.5")
    up = class_folders(tmp_path / "up", classes=1, each=12)
    pack(class_folders(tmp_path / "down", classes=1, each=5, seed=50_000), str(tmp_path / "test"))
    results = []
    for name, shard_bytes in (("many", 8_000), ("one", 10_000_000)):
        pack(up, str(tmp_path / name), shard_bytes=shard_bytes)
        config = AuditConfig(upstream=str(tmp_path / name), downstream=str(tmp_path / "test"), canaries_each=0,
                             most_matches=1, embedding=model)  # fmt: skip
        results.append(audited(config, tmp_path / "work"))
    many, one = results
    assert one.found.shards.num_rows < many.found.shards.num_rows
    assert many.found.num_candidates == one.found.num_candidates > 3 * many.downstream.num_rows
    assert many.found.hubs.equals(one.found.hubs)
    assert many.downstream.equals(one.downstream)
    assert many.found.pairs["evidence"].value_counts() == one.found.pairs["evidence"].value_counts()
    hubs = set(zip(one.found.hubs["shard"].to_pylist(), one.found.hubs["row"].to_pylist(), strict=True))
    assert hubs
    states = {(row["shard"], row["row"]): row["state"] for row in one.downstream.to_pylist()}
    assert {states[place] for place in hubs} <= {"unchecked", "duplicate"}, "none of them is called clean"


def test_the_report_made_on_ray_is_the_same_to_the_byte(cluster: Stack, config: AuditConfig, tmp_path: Path) -> None:
    arguments = ["cluster", "audit", config.upstream, config.downstream]
    options = ["--canaries", "1"]
    done = run_cli("cluster", "submit", "--", *arguments, str(tmp_path / "ray"), *options, "--ray")
    assert done.returncode == 0, done.stdout + done.stderr
    done = run_cli(*arguments, str(tmp_path / "here"), *options)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")


def test_a_rerun_computes_nothing_and_a_changed_shard_is_joined_alone(tmp_path: Path) -> None:
    up, down = leaky_sets(tmp_path)
    config = AuditConfig(upstream=str(up), downstream=str(down), canaries_each=0)
    before = audited(config, tmp_path / "work")
    stored = set(tmp_path.glob("work/joined/*"))
    assert audited(config, tmp_path / "work").found == before.found
    assert set(tmp_path.glob("work/joined/*")) == stored
    extra = class_folders(tmp_path / "more" / "photos", classes=1, each=3, seed=77_000)
    (extra / "class0" / "leak.jpg").write_bytes((tmp_path / "down-in" / "class2" / "000.jpg").read_bytes())
    assert run_cli("pipeline", "append", f"more={extra}", str(up)).returncode == 0
    after = audited(config, tmp_path / "work")
    assert len(set(tmp_path.glob("work/joined/*")) - stored) == 1
    gained = after.downstream["state"].to_pylist().count("duplicate")
    assert gained == before.downstream["state"].to_pylist().count("duplicate") + 1


def test_a_missing_shard_stops_with_its_name(tmp_path: Path) -> None:
    up, down = leaky_sets(tmp_path)
    gone = next(up.rglob("*.tar"))
    gone.unlink()
    config = AuditConfig(upstream=str(up), downstream=str(down))
    with pytest.raises(NotFound, match=f"{re.escape(gone.name)}, shard . of .* is gone; restore it, or rebuild it"):
        audited(config, tmp_path / "work")


def test_a_shard_with_other_pictures_stops_with_its_name(tmp_path: Path) -> None:
    up, down = leaky_sets(tmp_path)
    dataset = open_dataset(str(up))
    body = bytearray((up / dataset.shard_path(0)).read_bytes())
    for sample in dataset.samples(0).to_pylist():
        body[sample["image_offset"] + sample["image_bytes"] // 2] ^= 0xFF
    (up / dataset.shard_path(0)).write_bytes(body)
    config = AuditConfig(upstream=str(up), downstream=str(down), radius=100)
    with pytest.raises(CorruptShard, match="the picture is not the fingerprinted one"):
        audited(config, tmp_path / "work")
    (up / dataset.shard_path(0)).write_bytes(body[:-512])
    with pytest.raises(CorruptShard, match="its manifest says"):
        audited(config, tmp_path / "other")


def test_descriptors_of_another_release_are_refused(sets: tuple[Path, Path], tmp_path: Path) -> None:
    pack(sets[1].parent / "down-in", str(tmp_path / "old"))
    store = open_store(str(tmp_path / "old"))
    put(store, "MANIFEST.json", re.sub(rb"dct256-sign/\d+", b"dct256-sign/1", store.read("MANIFEST.json")))
    config = AuditConfig(upstream=str(sets[0]), downstream=str(tmp_path / "old"))
    with pytest.raises(ConfigError, match="has descriptors dct256-sign/1, this release compares"):
        audited(config, tmp_path / "work")


def test_unusable_pictures_are_unchecked_and_listed(tmp_path: Path) -> None:
    down = class_folders(tmp_path / "down-in", classes=1, each=4, seed=3000)
    (down / "class0" / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    pack(down, str(tmp_path / "down"), max_reject_fraction=0.5)
    pack(class_folders(tmp_path / "up-in", classes=1, each=4), str(tmp_path / "up"))
    config = AuditConfig(upstream=str(tmp_path / "up"), downstream=str(tmp_path / "down"), canaries_each=0)
    unchecked = audited(config, tmp_path / "work").found.unchecked.to_pylist()
    assert [(row["side"], row["source"]) for row in unchecked] == [("downstream", "class0/broken.jpg")]


def flat_pictures() -> dict[str, np.ndarray]:
    """Return pictures that hash alike without being copies: solid, gradients, product on white, sky, page of text."""
    pictures: dict[str, np.ndarray] = {}
    for number, grey in enumerate((30, 128, 250)):
        pictures[f"solid {number}"] = np.full((96, 128, 3), grey, np.uint8)
        ramp = np.linspace(grey // 2, grey, 128)[None, :, None]
        pictures[f"gradient {number}"] = np.broadcast_to(ramp, (96, 128, 3)).astype(np.uint8)
    for number, (width, height) in enumerate(((50, 40), (56, 36), (44, 44))):
        image = Image.new("RGB", (128, 96), "white")
        box = (64 - width // 2, 48 - height // 2, 64 + width // 2, 48 + height // 2)
        ImageDraw.Draw(image).ellipse(box, fill=(200 - 60 * number, 40 * number, 90))
        pictures[f"product {number}"] = np.asarray(image)
    for number in range(3):
        page = Image.new("RGB", (128, 96), "white")
        generator = np.random.default_rng(number)
        for line in range(8, 90, 8):
            for word in range(6, 120, 12):
                ImageDraw.Draw(page).rectangle(
                    (word, line, word + int(generator.integers(4, 11)), line + 3), fill="black"
                )
        pictures[f"page {number}"] = np.asarray(page)
    return pictures


def test_flat_and_look_alike_pictures_are_not_called_duplicates(tmp_path: Path) -> None:
    for side in ("up", "down"):
        (tmp_path / side / "x").mkdir(parents=True)
    for number, (name, pixels) in enumerate(flat_pictures().items()):
        side = "up" if number % 2 else "down"
        (tmp_path / side / "x" / f"{name}.jpg").write_bytes(jpeg(pixels))
    pack(tmp_path / "up", str(tmp_path / "u"))
    pack(tmp_path / "down", str(tmp_path / "d"))
    config = AuditConfig(upstream=str(tmp_path / "u"), downstream=str(tmp_path / "d"), canaries_each=0)
    tables = audited(config, tmp_path / "work")
    assert "duplicate" not in tables.downstream["state"].to_pylist()
    assert "unchecked" in tables.downstream["state"].to_pylist()


@pytest.mark.timeout(300)
def test_kills_of_workers_drivers_and_nodes_leave_the_same_report(tmp_path: Path) -> None:
    """A short form of the soak, on a cluster of its own, since what it kills is not what was started."""
    leaky_sets(tmp_path)
    with running_stack(tmp_path / "stack", [1, 1]) as stack:
        outcome = soak(stack, tmp_path, num_kills=2, seed=1, bucket=BUCKET)
        assert sum(outcome.kills.values()) == 2
        assert outcome.num_datasets >= 1
