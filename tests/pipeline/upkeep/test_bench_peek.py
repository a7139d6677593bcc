"""`pipeline bench` names what limits a stream, `peek` shows what training would see; both on tars of anyone."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.dataset import Dataset
from pipeline.image.transforms import EvaluationView, PretrainView
from pipeline.streaming.loader.messages import BadSample, ReadCounts
from pipeline.streaming.order import OrderConfig
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import Batch, Stream
from pipeline.streaming.throughput import Laps, Limit, limiting_stage, measure
from pipeline.upkeep.contact_sheet import Tile, batches_of, page, sheet, tiles
from tests.conftest import picture, run_cli

ORDER = OrderConfig(seed=1, batch_size=24, num_lanes=12, window_blocks=1)


def limit(decode: float, wait_read: float, waited: float, num_workers: int = 2) -> Limit:
    counts = ReadCounts(decode_seconds=decode, wait_read_seconds=wait_read)
    return limiting_stage(counts, 10.0, num_workers, waited, num_cpus=4)


@pytest.mark.parametrize(
    ("decode", "wait_read", "waited", "stage"),
    [
        (19.0, 0.5, 9.9, "decoding"),
        (4.0, 15.0, 9.9, "reading"),
        (5.0, 1.0, 0.1, "the consumer"),
        (1.0, 19.0, 0.4, "the consumer"),  # batches were ready: how the decoders got there does not matter
        (9.0, 1.0, 8.0, "decoding"),  # one worker waits until the other has made its part
        (1.0, 9.0, 8.0, "reading"),
        (0.0, 0.0, 10.0, "decoding"),  # nothing came yet
    ],
)
def test_the_limiting_stage_is_the_one_the_others_wait_for(decode, wait_read, waited, stage) -> None:
    assert limit(decode, wait_read, waited).stage == stage


def test_more_workers_are_only_advised_where_there_are_cpus_for_them() -> None:
    assert "add loader workers (2 for 4 CPUs)" in limit(19.0, 0.5, 9.9).remedy
    assert "use more CPUs" in limit(39.0, 0.5, 9.9, num_workers=4).remedy


def test_reasons_never_tell_of_more_than_all_of_the_time() -> None:
    assert "busy 100% of the time" in limit(21.0, 0.0, 9.9).reason


def test_laps_add_up_to_the_whole(small_dataset: Dataset) -> None:
    stream = Stream(Selection(small_dataset), ORDER, PretrainView(16))
    whole, parts, taken = Laps(stream, 0), Laps(stream, 0), []
    for _ in range(3):
        for _ in range(2):
            batch = next(stream)
            whole.took(batch)
            parts.took(batch)
        taken.append(parts.lap())
    total = whole.lap()
    stream.close()
    assert total.images == total.counts.samples == sum(lap.images for lap in taken) == 144
    assert total.counts.bytes_read == sum(lap.counts.bytes_read for lap in taken) > 0
    assert 0 < total.wait_fraction <= 1
    assert total.row()["images_per_second"] == pytest.approx(144 / total.seconds, abs=0.1)


def test_an_interrupt_gives_what_was_measured_so_far(small_dataset: Dataset) -> None:
    def interrupt(lap: object) -> None:
        raise KeyboardInterrupt

    lap = measure(Stream(Selection(small_dataset), ORDER, PretrainView(16)), 0, 60.0, interrupt)
    assert 1 <= lap.seconds < 30
    assert lap.images > 0
    assert lap.limit.stage != "the consumer"


def test_bench_tells_figures_that_fit_and_logs_every_second(small_dataset: Dataset, tmp_path: Path) -> None:
    tars = f"{small_dataset.store.url}/**/*.tar"  # as if they were another's
    log = tmp_path / "log.jsonl"
    done = run_cli(
        "pipeline", "bench", tars, "--px", "32", "--seconds", "2.5", "--json", "--log", str(log),
        BIT_INDEX_FOLDER=str(tmp_path / "index"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["images"] == pytest.approx(told["images_per_second"] * told["seconds"], rel=0.01)
    assert told["limiting_stage"] in ("reading", "decoding")
    assert told["reason"]
    assert told["remedy"]
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert 1 <= len(rows) <= 3
    assert all(row["event"] == "second" and row["images"] > 0 and row["seconds"] >= 1 for row in rows)


def test_ctrl_c_prints_the_result_and_nothing_else(small_dataset: Dataset, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    command = [str(Path(sys.executable).parent / "pipeline"), "bench", small_dataset.store.url, "--seconds", "100"]
    process = subprocess.Popen(
        [*command, "--px", "32", "--log", str(log)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not (log.exists() and log.read_text()):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the loader's processes too
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "images/s over" in out
    assert "limited by" in out
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bench", "nowhere"], "holds no published dataset"),
        (["bench", "{data}", "--batch", "30"], "30 is not a multiple of 16 lanes"),
        (["bench", "{data}", "--budget-mb", "1"], "raise budget_bytes"),
        (["peek", "nowhere", "--out", "x.html"], "holds no published dataset"),
        (["peek", "{data}", "--out", "no/such/folder/x.html"], "No such file or directory"),
    ],
)
def test_wrong_arguments_get_one_sentence(small_dataset: Dataset, tmp_path: Path, arguments, said) -> None:
    done = run_cli("pipeline", *(a.replace("{data}", small_dataset.store.url) for a in arguments), cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_peek_writes_a_page_that_needs_nothing_else(small_dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "peek.html"
    done = run_cli(
        "pipeline", "peek", small_dataset.store.url, "--out", str(out), "--px", "64", "--batch", "12", "--batches", "3"
    )
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
    done = run_cli(
        "pipeline", "peek", small_dataset.store.url, "--out", str(out), "--px", "40", "--batch", "12", "--batches", "1",
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
