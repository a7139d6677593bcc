"""Our Huffman decoder reads only images that were decoded before we packed them; libjpeg alone reads all others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.image.render
from pipeline.dataset.dataset import Dataset
from pipeline.image.jpeg_region.region import Region, decode_region
from pipeline.image.policy import ImagePolicy
from pipeline.image.transforms import EvaluationView, PretrainView
from pipeline.packing.foreign_tars.open_any import open_any
from pipeline.streaming.one_pass import one_pass
from pipeline.streaming.order import OrderConfig
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import Stream
from tests.conftest import pack

pytestmark = pytest.mark.usefixtures("program")


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record which decoder read each image of this process."""
    found = []

    def recorded(*arguments: Any, **options: Any) -> Region:
        region = decode_region(*arguments, **options)
        found.append(region.decoder)
        return region

    monkeypatch.setattr(pipeline.image.render, "decode_region", recorded)
    return found


@pytest.fixture
def third_party(small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """The same tars without our manifest."""
    monkeypatch.setenv("BIT_INDEX_FOLDER", str(tmp_path / "index"))
    return open_any(f"{small_dataset.store.url}/shards")


@pytest.fixture
def header_checked(small_folder: Path, tmp_path: Path) -> Dataset:
    """The same images, never decoded."""
    return pack(small_folder, str(tmp_path / "set"), image=ImagePolicy(check="header"))


def read(dataset: Dataset) -> np.ndarray:
    """Read one batch of a stream, and all samples once."""
    stream = Stream(Selection(dataset), OrderConfig(batch_size=24, num_lanes=2), PretrainView(16))
    next(stream)
    stream.close()
    batches = [batch.images.copy() for batch in one_pass(Selection(dataset), EvaluationView(16), 16, 30)]
    return np.concatenate(batches)


def test_ours_reads_the_images_of_tars_that_we_packed(small_dataset: Dataset, decoders: list[str]) -> None:
    read(small_dataset)
    # The tables of images as small as these are built when they come again.
    assert len(decoders) >= 90 + 24
    assert decoders.count("ours") > len(decoders) - 10


@pytest.mark.parametrize("kind", ["third_party", "header_checked"])
def test_libjpeg_alone_reads_the_images_of_all_others(
    kind: str, small_dataset: Dataset, decoders: list[str], request: pytest.FixtureRequest
) -> None:
    dataset = request.getfixturevalue(kind)
    images = read(dataset)
    assert len(decoders) >= 90 + 24
    assert set(decoders) == {"libjpeg"}
    if kind == "third_party":
        assert np.array_equal(images, read(small_dataset))
