"""How a run stands is told from its folder alone, whichever release wrote it."""

import json
import time
from pathlib import Path

import pytest

from pipeline.base.errors import NotFound
from pipeline.store.local import LocalStore
from pipeline.store.url import open_store
from tests.conftest import run_cli
from tests.trainer.watching.folders import BEGAN, CONFIG, start, write_run
from trainer.run.events import write_event
from trainer.run.metrics import write_metrics
from trainer.watching.facts import RunReader
from trainer.watching.happenings import happenings
from trainer.watching.state import state_lines, state_of
from trainer.watching.terminal import bars

GOLDEN = Path(__file__).parents[2] / "golden" / "run"


def test_a_run_under_way_is_told_with_what_is_left_and_what_was_lost(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    now = write_run(store, last_step=880)
    facts = RunReader(store).read()
    state = state_of(facts, now + 3)
    assert (state.word, state.step, state.num_steps, state.num_restarts) == ("training", 880, 1000, 2)
    assert state.eta_seconds == pytest.approx(120, rel=0.1)
    assert state.times.rework == pytest.approx(30 + 2, abs=1)  # steps 401 to 430, and until it failed
    assert state.best is not None
    assert state.best["step"] == 800
    text = "\n".join(state_lines(facts, state))
    for part in ("step 880 of 1,000 (88.0%)", "2 ranks on 1 host (NVIDIA H100", "2 restarts", "best 46.5%"):
        assert part in text, text


def test_silence_is_told_and_counts_as_down(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    now = write_run(store, last_step=880)
    state = state_of(RunReader(store).read(), now + 7200)
    assert state.word == "silent"
    assert state.times.down > 7200
    assert not state.is_over


def test_the_last_thing_that_happened_decides_how_a_run_stands(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.create("run.json", json.dumps(CONFIG).encode())
    reader = RunReader(store)
    assert state_of(reader.read(), time.time()).word == "starting"
    start(store, "a", 0, time.time(), 1)
    assert state_of(reader.read(), time.time()).word == "starting"
    write_event(store, "stopping", 7, why="asked to stop")
    state = state_of(reader.read(), time.time())
    assert (state.word, state.why) == ("stopping", "asked to stop")
    assert state_of(reader.read(), time.time() + 100).word == "stopped"
    body = json.dumps({"rank": 0, "final": True, "message": "no space left"}).encode()
    store.create(f"failures/x/{time.time_ns()}-0.json", body)
    assert state_of(reader.read(), time.time()).word == "failed"
    start(store, "b", 0, time.time() + 1, 1)
    assert state_of(reader.read(), time.time()).word == "starting"


def test_what_happened_is_on_one_time_axis(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    write_run(store)
    found = happenings(RunReader(store).read())
    assert [each.kind for each in found] == ["started", "failed", "resumed", "changed", "resized", "resumed"]
    assert found[1].text == "rank 3: RuntimeError: NCCL error"
    assert found[3].text == "recipe.epochs 90 → 100"
    assert "ranks_before 4, ranks_after 2" in found[4].text
    assert found[0].time == pytest.approx(BEGAN + 20)


def test_a_second_look_reads_what_is_new_and_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    now = write_run(store, last_step=880)
    reader = RunReader(store)
    before = reader.read()
    read, keys = store.read, []
    monkeypatch.setattr(store, "read", lambda key: (keys.append(key), read(key))[1])
    row = before.rows[-1] | {"step": 890, "time": now + 10}
    write_metrics(store, "c", [row])
    write_event(store, "skipped", 885)
    facts = reader.read()
    assert facts.rows[-1] == row
    assert facts.events[-1]["kind"] == "skipped"
    assert [key.partition("/")[0] for key in keys] == ["run.json", "metrics", "events"]


def test_a_run_of_an_old_release_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    done = run_cli("trainer", "watch", str(GOLDEN), "--once")
    assert done.returncode == 0, done.stderr
    assert "finished: step 6 of 6 (100.0%)" in done.stdout
    assert "goodput" not in done.stdout  # it kept no times


def test_where_there_is_no_run_it_is_said(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with pytest.raises(NotFound, match="holds no run"):
        RunReader(store).read()
    store.create("models/0010-shots-0/run.json", b"{}")
    with pytest.raises(NotFound, match=r"models/ with 0010-shots-0: give one of them"):
        RunReader(store).read()


def test_bars_fall_as_the_loss_does() -> None:
    assert bars([4.0, 3.0, 2.0, 1.0]) == "█▆▃▁"
    assert len(bars([1.0 / step for step in range(1, 10_000)])) == 60
