"""Embeddings of a set are computed once, and find what its hashes miss."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from cluster.audit.base import stored_tasks
from cluster.audit.base.sets import pin
from cluster.audit.base.tables import UNREADABLE, AuditConfig
from cluster.audit.search import features
from cluster.audit.search.features import compute_features, feature_tasks
from pipeline.base.errors import BadImage
from pipeline.dataset.tables import read_table
from pipeline.image.decode import Pixels, decode
from tests.cluster.audit.audits import audited, local_job, scene
from tests.conftest import class_folders, pack


def pack_crop(folder: Path, box: tuple[int, int, int, int]) -> None:
    """Pack `up` with a crop of a picture in `down`, each among others."""
    down = class_folders(folder / "down-in", classes=1, each=4, seed=500)
    up = class_folders(folder / "up-in", classes=1, each=4)
    whole = Image.fromarray(scene(9, 320, 240))
    whole.save(down / "class0" / "scene.png")
    whole.crop(box).save(up / "class0" / "crop.png")
    for name in ("up", "down"):
        pack(folder / f"{name}-in", str(folder / name))


def refuse_wide(pixels: Pixels) -> Pixels:
    """Fail on the scene and its crop, as a broken picture does."""
    if pixels.shape[1] > 200:
        raise BadImage("decode", "no picture")
    return pixels


def test_a_crop_needs_the_embedding_and_a_new_test_set_embeds_nothing_upstream_again(tmp_path: Path) -> None:
    pack_crop(tmp_path, (70, 50, 250, 190))
    pack(class_folders(tmp_path / "other-in", classes=1, each=3, seed=900), str(tmp_path / "other"))
    plain = AuditConfig(upstream=str(tmp_path / "up"), downstream=str(tmp_path / "down"), canaries_each=0)
    assert "duplicate" not in states_of(plain, tmp_path / "work")
    embedded = plain.model_copy(update={"embedding": "efficientnet-lite0", "most_matches": 2})
    assert states_of(embedded, tmp_path / "work").count("duplicate") == 1
    vectors = set(tmp_path.glob("work/vectors/*"))
    states_of(embedded.model_copy(update={"downstream": str(tmp_path / "other")}), tmp_path / "work")
    assert len(set(tmp_path.glob("work/vectors/*")) - vectors) == 1


def test_a_crop_is_found_by_crops_and_these_are_computed_once(tmp_path: Path) -> None:
    pack_crop(tmp_path, (70, 50, 300, 210))
    plain = AuditConfig(upstream=str(tmp_path / "up"), downstream=str(tmp_path / "down"), canaries_each=3)
    assert "duplicate" not in states_of(plain, tmp_path / "work")
    tables = audited(plain.model_copy(update={"crops": True}), tmp_path / "work")
    assert tables.downstream["state"].to_pylist().count("duplicate") == 1
    (pair,) = tables.pairs.to_pylist()
    assert (pair["evidence"], pair["distance"] > 44) == ("near-duplicate", True)
    crops = pc.equal(tables.canaries["transform"], "another crop of the scene")
    assert all(tables.canaries.filter(crops)["found"].to_pylist())  # the page says what this search finds
    codes = set(tmp_path.glob("work/crops/*"))
    assert len(codes) == 1
    audited(plain.model_copy(update={"crops": True, "most_matches": 2}), tmp_path / "work")
    assert set(tmp_path.glob("work/crops/*")) == codes


def test_a_picture_that_cannot_be_read_is_listed_once_however_many_features_want_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_crop(tmp_path, (70, 50, 300, 210))

    monkeypatch.setattr(features, "decode", lambda data: refuse_wide(decode(data)))
    config = AuditConfig(upstream=str(tmp_path / "up"), downstream=str(tmp_path / "down"), canaries_each=0, crops=True,
                         insets=True)  # fmt: skip
    rows = audited(config, tmp_path / "work").found.unchecked.to_pylist()
    assert [(row["side"], row["reason"]) for row in rows] == [("downstream", UNREADABLE), ("upstream", UNREADABLE)]


def states_of(config: AuditConfig, work: Path) -> list[str]:
    states: list[str] = audited(config, work).downstream["state"].to_pylist()
    return states


@pytest.mark.parametrize("kind", [features.VARIANTS, features.INSETS])
def test_parts_of_a_shard_make_up_what_the_whole_shard_has_and_are_described_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    pack_crop(tmp_path, (70, 50, 300, 210))
    side = pin(str(tmp_path / "down"))

    def described(work: str, pictures_per_part: int) -> tuple[pa.Table, list[tuple[int, int, str]]]:
        monkeypatch.setattr(stored_tasks, "_PICTURES_PER_PART", pictures_per_part)
        job = local_job(tmp_path / work)
        tasks = feature_tasks(side, kind, job)
        assert len(tasks) == -(-5 // pictures_per_part)
        quarantined, failed = compute_features(tasks, "describing", job)
        assert not quarantined
        return pa.concat_tables([read_table(job.work, task.features_key) for task in tasks]), failed

    monkeypatch.setattr(features, "decode", lambda data: refuse_wide(decode(data)))
    whole, failed = described("whole", 5)
    assert [(shard, reason) for shard, _, reason in failed] == [(0, "decode: no picture")]
    for size in (1, 2, 3):
        assert described(f"parts-{size}", size) == (whole, failed)
    next((tmp_path / "parts-2" / "unreadable").iterdir()).unlink()  # as if its process had been killed before
    monkeypatch.setattr(features, "decode", None)
    assert described("parts-2", 2) == (whole, failed)


def test_whoever_collects_what_could_not_be_read_reads_no_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_crop(tmp_path, (70, 50, 300, 210))
    monkeypatch.setattr(features, "decode", lambda data: refuse_wide(decode(data)))
    job = local_job(tmp_path / "work")
    tasks = feature_tasks(pin(str(tmp_path / "down")), features.VARIANTS, job)
    described = compute_features(tasks, "describing", job)
    assert len(described[1]) == 1
    for path in (tmp_path / "work" / features.VARIANTS).iterdir():
        path.write_bytes(b"")
    assert compute_features(tasks, "describing", job) == described
