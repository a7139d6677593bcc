"""The page of runs: it opens offline, shows all that the folders tell, and takes runs of old releases."""

import json
import re
import sys
from pathlib import Path

import pytest

from pipeline.dataset.dataset import Dataset
from pipeline.store.url import open_store
from tests.conftest import run_cli
from tests.trainer.runs import config
from tests.trainer.watching.folders import write_run
from trainer.commands.watching import short_names
from trainer.jobs.pretrain import pretrain
from trainer.run.events import write_event
from trainer.run.metrics import read_metrics
from trainer.step.ranks import alone
from trainer.watching.facts import RunReader
from trainer.watching.report import report_page

GOLDEN = Path(__file__).parents[2] / "golden" / "run"


def page_of(*folders: Path, now: float) -> str:
    return report_page({path.name: (RunReader(open_store(str(path))).read(), ()) for path in folders}, now).decode()


def test_the_page_shows_all_that_the_folder_tells(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "run"))
    now = write_run(store)
    write_event(store, "skipped", 5, why="loss nan <b>")
    page = page_of(tmp_path / "run", now=now)
    sentence = re.search(r'<p class="verdict">(.*)</p>', page)
    assert sentence is not None
    assert sentence[1].startswith("R50x1 finished all 1,000 steps; its best held-out accuracy is 48.2% [47.2%, 49.2%]")
    assert "over 2 restarts." in sentence[1]
    for shown in ("NCCL error", "recipe.epochs 90 → 100", "ranks_before 4, ranks_after 2", "torch 2.13.0", "H100"):
        assert shown in page, shown
    assert "loss nan &lt;b&gt;" in page
    assert "loss nan <b>" not in page
    assert {kind for kind in ("Loss", "Accuracy", "Learning rate", "Throughput") if f"<h3>{kind}</h3>" in page} == {
        "Loss", "Accuracy", "Learning rate", "Throughput",
    }  # fmt: skip
    assert page.count("<circle") == 2 * 5 + 7  # held-out figures in two charts, and everything that happened
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<script" not in page


def test_runs_stand_side_by_side_with_the_settings_in_which_they_differ_first(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    now = write_run(open_store(str(one)))
    write_run(open_store(str(other)), last_step=880)
    settings = json.loads((one / "run.json").read_text())
    settings["recipe"]["epochs"] = 10
    (other / "run.json").write_text(json.dumps(settings))
    page = page_of(one, other, now=now)
    table = page[page.index("<h2>Settings</h2>") :]
    assert re.findall(r"<td><code>([\w.]+)</code>", table)[:2] == ["recipe.epochs", "model"]
    assert re.findall(r'<tr class="differs"><td><code>([\w.]+)</code>', table) == ["recipe.epochs"]
    assert "<h3>Held-out accuracy</h3>" in page
    assert page.count('<p class="verdict">') == 2


def test_runs_of_old_releases_have_a_page(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    done = run_cli("trainer", "report", str(GOLDEN), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "kept no times" in out.read_text()


def test_a_real_run_shows_its_pictures_and_its_figures_in_tensorboard(small_dataset: Dataset, tmp_path: Path) -> None:
    run, out, logs = tmp_path / "run", tmp_path / "page.html", tmp_path / "logs"
    pretrain(config(small_dataset, run), alone(), lambda row: None)
    done = run_cli("trainer", "report", str(run), "--out", str(out), "--pictures", "5", "--tensorboard", str(logs))
    assert done.returncode == 0, done.stderr
    assert out.read_text().count("data:image/jpeg;base64,") == 5
    found = scalars_in(logs / "run")
    rows = read_metrics(open_store(str(run)))
    assert [value for step, value in found["train/loss"]] == pytest.approx([row["loss"] for row in rows])
    assert [step for step, value in found["train/loss"]] == [row["step"] for row in rows]


def scalars_in(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read event files: records of a length, a checksum, the event, and another checksum."""
    from tensorboardX.proto.event_pb2 import Event  # noqa: PLC0415 - half a second

    found: dict[str, list[tuple[int, float]]] = {}
    for path in folder.glob("events.out.tfevents.*"):
        body, place = path.read_bytes(), 0
        while place < len(body):
            length = int.from_bytes(body[place : place + 8], sys.byteorder)
            event = Event.FromString(body[place + 12 : place + 12 + length])
            place += 16 + length
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_a_report_of_nothing_and_to_nowhere_is_refused(tmp_path: Path) -> None:
    done = run_cli("trainer", "report", str(GOLDEN))
    assert (done.returncode, done.stderr) == (
        2, "error: nothing to write; give --out FILE.html, or --tensorboard FOLDER\n",
    )  # fmt: skip
    done = run_cli("trainer", "report", str(tmp_path), "--out", str(tmp_path / "page.html"))
    assert done.returncode == 1
    assert "holds no run" in done.stderr
    assert not (tmp_path / "page.html").exists()


def test_runs_are_named_by_what_tells_them_apart() -> None:
    assert short_names(["s3://b/runs/a", "runs/c/"]) == {"a": "s3://b/runs/a", "c": "runs/c/"}
    assert list(short_names(["s3://b/x/run", "s3://b/y/run"])) == ["x/run", "y/run"]
