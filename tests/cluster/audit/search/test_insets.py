"""Pictures within a picture are found by codes of insets, which propose pairs and prove nothing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, strategies as st
from PIL import Image, ImageDraw

from cluster.audit.base.tables import CLOSE_BITS, AuditConfig
from cluster.audit.search.features import inset_rows, inset_table
from cluster.audit.search.insets import inset_codes, insets
from cluster.audit.search.join import candidates, index_wholes
from pipeline.image.fingerprint import fingerprint
from tests.cluster.audit.audits import audited, scene
from tests.cluster.audit.search.codes import code_table, flipped, random_codes
from tests.conftest import class_folders, pack


def collage(seed: int) -> Image.Image:
    """Return four pictures in a square."""
    out = Image.new("RGB", (400, 300), "white")
    for cell in range(4):
        out.paste(Image.fromarray(scene(4 * seed + cell, 200, 150)), (200 * (cell % 2), 150 * (cell // 2)))
    return out


def pasted(seed: int) -> Image.Image:
    """Return a picture anywhere in another one."""
    out, draw = Image.fromarray(scene(1000 + seed, 420, 320)), np.random.default_rng(seed)
    out.paste(Image.fromarray(scene(4 * seed, 200, 150)), (int(draw.integers(8, 210)), int(draw.integers(8, 160))))
    return out


def screenshot(seed: int) -> Image.Image:
    """Return a picture between bars and lines of text."""
    out, draw = Image.new("RGB", (300, 260), (246, 247, 249)), np.random.default_rng(seed)
    paint = ImageDraw.Draw(out)
    for y in range(20, 260, 14):
        paint.rectangle((12, y, draw.uniform(80, 290), y + 4), fill=(120, 124, 130))
    out.paste(Image.fromarray(scene(4 * seed, 200, 150)), (int(draw.integers(20, 95)), int(draw.integers(12, 100))))
    return out


@pytest.mark.parametrize("compose", [collage, pasted, screenshot])
def test_most_pictures_within_a_picture_are_near(compose: Callable[[int], Image.Image]) -> None:
    found = 0
    for seed in range(30):
        code = np.frombuffer(fingerprint(scene(4 * seed, 200, 150))[0], np.uint8)
        codes = inset_codes(np.asarray(compose(seed)))
        found += min(np.bitwise_count(np.frombuffer(own, np.uint8) ^ code).sum() for own in codes) <= 62
    assert found >= 27


@given(st.integers(0, 9), st.integers(1, 90), st.integers(1, 90))
def test_insets_are_distinct_parts_of_any_picture(seed: int, height: int, width: int) -> None:
    luma = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    boxes = insets(luma)
    assert len(boxes) <= 16
    assert len(np.unique(boxes, axis=0)) == len(boxes)
    for top, bottom, left, right in boxes.tolist():
        assert 0 <= top < bottom <= height
        assert 0 <= left < right <= width
        assert (bottom - top, right - left) != (height, width)


def test_a_flat_picture_has_no_insets() -> None:
    assert inset_codes(np.full((200, 300, 3), 128, np.uint8)) == []


@pytest.mark.parametrize(("bits", "counted"), [(0, 45), (44, 45), (50, 50), (62, 62), (63, None)])
def test_the_distance_of_an_inset_is_no_evidence(bits: int, counted: int | None) -> None:
    down, up = random_codes(5, 1), random_codes(3, 2)
    up[2] = flipped(down[4], bits, 3)
    table = pa.table({"inset_codes": pa.array([[up[0].tobytes()], [], [up[1].tobytes(), up[2].tobytes()]],
                                              pa.list_(pa.binary(32)))})  # fmt: skip
    found = candidates(inset_rows(7, table), index_wholes(code_table(down), 62), 62).to_pylist()
    assert [(row["up_shard"], row["up_row"], row["down_row"], row["distance"]) for row in found] == (
        [] if counted is None else [(7, 2, 4, counted)]
    )
    assert inset_table([None])["inset_codes"].to_pylist() == [[]]


def test_a_part_of_a_collage_is_found_by_insets_and_these_are_computed_once_for_all_test_sets(tmp_path: Path) -> None:
    for name, seed in (("up", 0), ("down", 500), ("other", 900)):
        class_folders(tmp_path / f"{name}-in", classes=1, each=4, seed=seed)
    Image.fromarray(scene(20, 200, 150)).save(tmp_path / "down-in" / "class0" / "scene.png")
    collage(5).save(tmp_path / "up-in" / "class0" / "collage.png")
    for name in ("up", "down", "other"):
        pack(tmp_path / f"{name}-in", str(tmp_path / name))
    plain = AuditConfig(upstream=str(tmp_path / "up"), downstream=str(tmp_path / "down"), canaries_each=0)
    assert "duplicate" not in audited(plain, tmp_path / "work").downstream["state"].to_pylist()
    tables = audited(plain.model_copy(update={"insets": True}), tmp_path / "work")
    (pair,) = tables.pairs.to_pylist()
    assert (pair["evidence"], pair["distance"] > CLOSE_BITS) == ("near-duplicate", True)
    codes = set(tmp_path.glob("work/insets/*"))
    assert len(codes) == 1
    audited(plain.model_copy(update={"insets": True, "downstream": str(tmp_path / "other")}), tmp_path / "work")
    assert set(tmp_path.glob("work/insets/*")) == codes
