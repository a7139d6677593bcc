"""What limits a stream is named, and figures add up; `pipeline bench` prints them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.dataset.dataset import Dataset
from pipeline.image.transforms import PretrainView
from pipeline.streaming.loader.messages import ReadCounts
from pipeline.streaming.order import OrderConfig
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import Stream
from pipeline.streaming.throughput import Laps, Limit, limiting_stage, measure
from tests.conftest import run_here
from tests.waiting import wait_until

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


def test_reasons_never_name_more_than_all_of_the_time() -> None:
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

    lap = measure(Stream(Selection(small_dataset), ORDER, PretrainView(16)), 0, 1e9, interrupt)
    assert lap.seconds >= 1
    assert lap.images > 0


def test_bench_prints_figures_that_fit_and_logs_every_second(small_dataset: Dataset, tmp_path: Path) -> None:
    tars = f"{small_dataset.store.url}/**/*.tar"  # as if they were another's
    log = tmp_path / "log.jsonl"
    done = run_here("bench", tars, "--px", "32", "--seconds", "2.5", "--json", "--log", str(log),
        BIT_INDEX_FOLDER=str(tmp_path / "index"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["images"] == pytest.approx(report["images_per_second"] * report["seconds"], rel=0.01)
    assert report["limiting_stage"] in ("reading", "decoding", "the consumer")
    assert report["reason"]
    assert report["remedy"]
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert 1 <= len(rows) <= report["seconds"]
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
    wait_until(lambda: process.poll() is not None or (log.exists() and log.read_text()), "a line of the log")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the loader's processes too
    out, errors = process.communicate()
    assert process.returncode == 0
    assert "images/s over" in out
    assert "limited by" in out
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "holds no published dataset"),
        (["{data}", "--batch", "30"], "30 is not a multiple of 16 lanes"),
        (["{data}", "--budget-mb", "1"], "raise budget_bytes"),
    ],
)
def test_wrong_arguments_get_one_sentence(small_dataset: Dataset, tmp_path: Path, arguments, message) -> None:
    done = run_here("bench", *(a.replace("{data}", small_dataset.store.url) for a in arguments), cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
