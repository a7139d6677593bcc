"""A sample of rows shows how large images are and how much of them is stored; those that fail show nothing."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.dataset.schema import PLAN_SCHEMA, table_of
from pipeline.image.policy import ImagePolicy
from pipeline.packing.plan import UNKNOWN_IMAGE_BYTES
from pipeline.packing.probe import Probe, prober
from pipeline.packing.sources.rows import FILE, NO_EXTRA, Source
from tests.conftest import jpeg, picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of different sizes, and a file that is none."""
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(picture(number, 60 * (number + 1), 80 * (number + 1))))
    (tmp_path / "text.jpg").write_bytes(b"no picture" * 10_000)
    return tmp_path


def probed(folder: Path, *names: str, policy: ImagePolicy | None = None) -> Probe:
    rows = [
        {"source": name, "base": 0, "path": None, "container": FILE, "offset": 0, "num_bytes": -1, "labels": [],
         "extra": NO_EXTRA, "run": None}
        for name in names
    ]  # fmt: skip
    rows_table: pa.Table = table_of(rows, PLAN_SCHEMA)
    return prober(policy or ImagePolicy())(rows_table, [("", Source(str(folder), lambda parallel_map: iter(())))])


def test_the_mean_is_over_what_can_be_used(folder: Path) -> None:
    sizes = [(folder / f"{number}.jpg").stat().st_size for number in range(3)]
    found = probed(folder, "0.jpg", "text.jpg", "1.jpg", "gone.jpg", "2.jpg")
    assert (found.mean_source_bytes, found.stored_fraction) == (sum(sizes) // 3, 1.0)
    assert found.seconds_per_image > 0


def test_shrinking_shows_in_what_is_stored(folder: Path) -> None:
    found = probed(folder, "2.jpg", policy=ImagePolicy(shorter_side_px=60))
    assert found.mean_source_bytes == (folder / "2.jpg").stat().st_size
    assert 0.1 < found.stored_fraction < 0.8  # a ninth of the pixels, which hold more each
    assert found.stored_fraction == round(found.stored_fraction, 3)


def test_a_sample_without_a_usable_image_says_nothing(folder: Path) -> None:
    assert probed(folder, "text.jpg", "gone.jpg") == Probe(UNKNOWN_IMAGE_BYTES, 1.0, 0.0)
    assert probed(folder) == Probe()
