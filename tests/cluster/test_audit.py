"""The audit finds what was planted, refuses look-alikes, does not depend on cutting or Ray, and tells it in a page."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

from cluster.audit.canaries import TRANSFORMS
from cluster.audit.coordinator import AuditConfig, AuditTables, audit
from cluster.audit.report import publish_audit
from cluster.audit.scores import score
from cluster.audit.verify import Evidence
from cluster.services import Stack
from pipeline.dataset import Address, Dataset, open_dataset
from pipeline.errors import ConfigError, Conflict
from pipeline.store.url import open_store
from tests.conftest import class_folders, jpeg, pack, run_cli
from trainer.evaluate import PREDICTION_SCHEMA

LEAKS = {
    "JPEG quality 30": 3, "mirrored": 7, "turned 90": 11, "half size": 19, "grey": 23,
}  # fmt: skip


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An upstream set with altered copies of six downstream pictures, one of them byte for byte."""
    root = tmp_path_factory.mktemp("audit")
    down = class_folders(root / "down-in", classes=3, each=12, seed=50_000)
    up = class_folders(root / "up-in", classes=3, each=20)
    pictures = sorted(down.rglob("*.jpg"))
    for transform, number in LEAKS.items():
        with Image.open(pictures[number]) as image:
            TRANSFORMS[transform](image.convert("RGB")).save(up / "class0" / f"leak-{number}.png")
    (up / "class1" / "same.jpg").write_bytes(pictures[30].read_bytes())
    pack(up, str(root / "up"), shard_bytes=100_000)
    pack(down, str(root / "down"))
    return root / "up", root / "down"


@pytest.fixture(scope="module")
def config(sets: tuple[Path, Path]) -> AuditConfig:
    return AuditConfig(upstream=str(sets[0]), downstream=str(sets[1]), canaries_each=2)


@pytest.fixture(scope="module")
def found(config: AuditConfig) -> AuditTables:
    return audit(config, on_ray=False)


def duplicates(tables: AuditTables, down: Dataset) -> dict[str, str]:
    rows = [row for row in tables.downstream.to_pylist() if row["state"] == "duplicate"]
    return {down.read_about(Address(row["shard"], row["row"]))["source"]: row["evidence"] for row in rows}


def test_every_planted_copy_is_found_and_nothing_else(found: AuditTables, sets: tuple[Path, Path]) -> None:
    pictures = sorted(f"class{label}/{number:03d}.jpg" for label in range(3) for number in range(12))
    expected = {pictures[number]: str(Evidence.NEAR) for number in LEAKS.values()}
    expected[pictures[30]] = str(Evidence.SAME_BYTES)
    assert duplicates(found, open_dataset(str(sets[1]))) == expected
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
    other = audit(other_config, on_ray=False)
    assert len(open_dataset(str(sets[0])).shards) > len(open_dataset(str(tmp_path / "one")).shards)
    assert other.downstream.equals(found.downstream)
    assert other.canaries.equals(found.canaries)


def test_the_result_on_ray_is_the_same(cluster: Stack, config: AuditConfig, found: AuditTables, tmp_path: Path) -> None:
    done = run_cli(
        "cluster", "submit", "--", "cluster", "audit", config.upstream, config.downstream, str(tmp_path / "report"),
        "--canaries", "2", "--ray",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    publish_audit(open_store(str(tmp_path / "here")), config, found, {})
    for name in ("found.parquet", "downstream.parquet", "canaries.parquet", "pairs.csv", "summary.json", "index.html"):
        assert (tmp_path / "report" / name).read_bytes() == (tmp_path / "here" / name).read_bytes(), name


def predictions(down: Dataset, wrong: set[int]) -> pa.Table:
    rows = [
        {"shard": 0, "row": row, "labels": [0], "prediction": 0, "probability": 1.0, "correct": row not in wrong}
        for row in range(down.version.num_samples)
    ]
    return pa.Table.from_pylist(rows, schema=PREDICTION_SCHEMA)


def test_accuracy_without_duplicates_leaves_exactly_them_out(found: AuditTables, sets: tuple[Path, Path]) -> None:
    rows = found.downstream.to_pylist()
    copies = [row["row"] for row in rows if row["state"] == "duplicate"]
    others = [row["row"] for row in rows if row["state"] != "duplicate"]
    result = score(predictions(open_dataset(str(sets[1])), set(others[:10])), found.downstream, 62)
    assert (result["full"]["num_correct"], result["full"]["num_samples"]) == (26, 36)
    assert (result["dedup"]["num_correct"], result["dedup"]["num_samples"]) == (20, 30)
    assert (result["duplicates"]["num_correct"], result["duplicates"]["num_samples"]) == (len(copies), 6)
    assert result["difference"] == pytest.approx(20 / 30 - 26 / 36)
    assert result["difference_low"] <= result["difference"] <= result["difference_high"]


def test_predictions_of_another_set_are_refused(found: AuditTables, sets: tuple[Path, Path]) -> None:
    short = predictions(open_dataset(str(sets[1])), set()).slice(0, 20)
    with pytest.raises(ConfigError, match="the predictions cover 20 pictures, the test set has 36"):
        score(short, found.downstream, 62)


def test_the_page_opens_offline_and_holds_its_pictures(
    found: AuditTables, config: AuditConfig, sets: tuple[Path, Path], tmp_path: Path
) -> None:
    models = {"<b>model</b>": predictions(open_dataset(str(sets[1])), {1, 2})}
    summary = publish_audit(open_store(str(tmp_path)), config, found, models)
    page = (tmp_path / "index.html").read_text()
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)""", page) == []
    assert "<script" not in page
    assert page.count('src="data:image/jpeg;base64,') == 3 * 6
    assert "<b>model</b>" not in page
    assert "&lt;b&gt;model&lt;/b&gt;" in page
    with (tmp_path / "pairs.csv").open() as file:
        pairs = list(csv.DictReader(file))
    assert len(pairs) == summary["num_pairs"] == 6
    for pair in pairs:
        root, _, path = pair["down_url"].rpartition("/shards/")
        with Path(root, "shards", path).open("rb") as tar:
            tar.seek(int(pair["down_offset"]))
            assert tar.read(3) == b"\xff\xd8\xff"
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_publishing_again_changes_nothing_and_another_audit_is_refused(
    found: AuditTables, config: AuditConfig, tmp_path: Path
) -> None:
    publish_audit(open_store(str(tmp_path)), config, found, {})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    publish_audit(open_store(str(tmp_path)), config, found, {})
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(Conflict, match="another destination"):
        publish_audit(open_store(str(tmp_path)), config.model_copy(update={"radius": 31}), found, {})


def test_an_audit_that_finds_nothing_still_tells(tmp_path: Path) -> None:
    pack(class_folders(tmp_path / "a", each=4), str(tmp_path / "up"))
    pack(class_folders(tmp_path / "b", each=4, seed=90_000), str(tmp_path / "down"))
    done = run_cli("cluster", "audit", "up", "down", "report", "--canaries", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0 of 12 downstream pictures have a duplicate upstream" in done.stdout
    assert "No pair was accepted." in (tmp_path / "report" / "index.html").read_text()


def flat_pictures() -> dict[str, np.ndarray]:
    """Pictures that hash alike without being copies: solid, gradients, product on white, sky, page of text."""
    made: dict[str, np.ndarray] = {}
    for number, grey in enumerate((30, 128, 250)):
        made[f"solid {number}"] = np.full((96, 128, 3), grey, np.uint8)
        ramp = np.linspace(grey // 2, grey, 128)[None, :, None]
        made[f"gradient {number}"] = np.broadcast_to(ramp, (96, 128, 3)).astype(np.uint8)
    for number, (width, height) in enumerate(((50, 40), (56, 36), (44, 44))):
        image = Image.new("RGB", (128, 96), "white")
        box = (64 - width // 2, 48 - height // 2, 64 + width // 2, 48 + height // 2)
        ImageDraw.Draw(image).ellipse(box, fill=(200 - 60 * number, 40 * number, 90))
        made[f"product {number}"] = np.asarray(image)
    for number in range(3):
        page = Image.new("RGB", (128, 96), "white")
        generator = np.random.default_rng(number)
        for line in range(8, 90, 8):
            for word in range(6, 120, 12):
                ImageDraw.Draw(page).rectangle(
                    (word, line, word + int(generator.integers(4, 11)), line + 3), fill="black"
                )
        made[f"page {number}"] = np.asarray(page)
    return made


def test_flat_and_look_alike_pictures_are_not_called_duplicates(tmp_path: Path) -> None:
    for side in ("up", "down"):
        (tmp_path / side / "x").mkdir(parents=True)
    for number, (name, pixels) in enumerate(flat_pictures().items()):
        side = "up" if number % 2 else "down"
        (tmp_path / side / "x" / f"{name}.jpg").write_bytes(jpeg(pixels))
    pack(tmp_path / "up", str(tmp_path / "u"))
    pack(tmp_path / "down", str(tmp_path / "d"))
    tables = audit(
        AuditConfig(upstream=str(tmp_path / "u"), downstream=str(tmp_path / "d"), canaries_each=0), on_ray=False
    )
    assert "duplicate" not in tables.downstream["state"].to_pylist()
    assert "unchecked" in tables.downstream["state"].to_pylist()
