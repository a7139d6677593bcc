"""`pipeline peek` shows what training would see, on a page or in an image that need nothing else."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.dataset import Dataset
from pipeline.image.transforms import EvaluationView, PretrainView
from pipeline.streaming.loader.messages import BadSample
from pipeline.streaming.stream import Batch
from pipeline.upkeep.contact_sheet import Tile, batches_of, page, sheet, tiles
from tests.conftest import picture, run_here


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--out", "x.html"], "holds no published dataset"),
        (["{data}", "--out", "no/such/folder/x.html"], "No such file or directory"),
    ],
)
def test_wrong_arguments_get_one_sentence(small_dataset: Dataset, tmp_path: Path, arguments, message) -> None:
    done = run_here("peek", *(a.replace("{data}", small_dataset.store.url) for a in arguments), cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_peek_writes_a_page_that_needs_nothing_else(small_dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "peek.html"
    done = run_here("peek", small_dataset.store.url, "--out", str(out), "--px", "64", "--batch", "12", "--batches", "3")
    assert done.returncode == 0, done.stderr
    html = out.read_text()
    assert len(re.findall(r'<img src="data:image/jpeg;base64,', html)) == 36
    assert "<script" not in html
    assert [link for link in re.findall(r'(?:src|href)="([^"]{0,20})', html) if not link.startswith("data:")] == []
    assert "url(" not in html
    assert len(re.findall(r'title="epoch 0, shard \d+, row \d+"', html)) == 36
    assert set(re.findall(r"<figcaption>(\w+)", html)) == {"class0", "class1", "class2"}


def test_peek_writes_a_picture_of_all_tiles(small_dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "peek.png"
    done = run_here("peek", small_dataset.store.url, "--out", str(out), "--px", "40", "--batch", "12", "--batches", "1",
        "--view", "evaluate",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    image = np.asarray(Image.open(out))
    [batch] = batches_of(small_dataset, EvaluationView(40), seed=0, batch_size=12, count=1)
    rows = [image[top : top + 40] for top in range(image.shape[0] - 40)]
    for pixels in batch.images:
        assert any(
            np.array_equal(row[:, left : left + 40], pixels)
            for row in rows
            for left in range(6, image.shape[1] - 40, 46)
        )


def test_peek_shows_the_batches_of_the_seed(small_dataset: Dataset) -> None:
    def drawn(seed: int) -> bytes:
        batches = batches_of(small_dataset, PretrainView(16), seed=seed, batch_size=12, count=2)
        return page("t", "a", [list(tiles(small_dataset, batch)) for batch in batches])

    assert drawn(3) == drawn(3) != drawn(4)


def test_a_replaced_sample_is_marked_and_its_substitute_in_its_own_turn_is_not(small_dataset: Dataset) -> None:
    bad = BadSample(0, 0, 0, "a.tar", 5, 0, "checksum", "differs", (0, 6))
    images = np.stack([picture(seed, 20, 20) for seed in (1, 1, 2)])
    places = np.array([[0, 0, 0, 6], [0, 0, 0, 6], [0, 0, 0, 7]])
    shown = list(tiles(small_dataset, Batch(images, ((0,), (0,), ()), places, (bad,))))
    assert [tile.replaced for tile in shown] == ["in place of shard 0, row 5: checksum", "", ""]
    assert shown[2].name == "no label"
    html = page("t", "a", [shown]).decode()
    assert html.count('class="replaced"') == 1
    assert "epoch 0, shard 0, row 6, in place of shard 0, row 5: checksum" in html
    edges = np.asarray(Image.open(io.BytesIO(sheet([shown]))))
    assert (edges == (200, 30, 30)).all(axis=2).any()


def test_names_are_shown_as_they_are_written() -> None:
    tile = Tile(picture(1, 20, 20), '<b>"Zürich" & 猫', "epoch 0", "")
    html = page("<title>", "a", [[tile]]).decode()
    assert html.count("&lt;b&gt;&#34;Zürich&#34; &amp; 猫") == 2
    assert "<b>" not in html
    assert sheet([[tile]]).startswith(b"\x89PNG")
