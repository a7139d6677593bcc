"""The time classes of a run add up to its wall time, and are those of a run whose every second is known."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from pipeline.store.url import open_store
from trainer.run.goodput import time_classes
from trainer.run.metrics import write_metrics
from trainer.run.running_goodput import RunningGoodput

times = st.floats(0.0, 1e6)
starts_of_a_run = st.lists(
    st.fixed_dictionaries({"attempt": st.sampled_from("abcd"), "first_step": st.integers(0, 50), "time": times}),
    max_size=4,
    unique_by=lambda start: start["attempt"],
)
rows_of_a_run = st.lists(
    st.fixed_dictionaries(
        {
            "attempt": st.sampled_from("abcdx"),
            "step": st.integers(1, 60),
            "time": times,
            "data_wait_fraction": st.floats(0.0, 1.0),
        },
        optional={"evaluation_seconds": st.floats(0.0, 1e5), "checkpoint_stall_seconds": st.floats(0.0, 1e5)},
    ),
    max_size=20,
)


@given(starts_of_a_run, rows_of_a_run, st.lists(times, max_size=5), st.lists(times, max_size=5))
def test_classes_add_up_to_the_wall_time_whatever_was_recorded(attempts, rows, failures, starts) -> None:
    until = 2e6
    found = time_classes(attempts, rows, failures, starts, until)
    assert all(seconds >= 0 for seconds in vars(found).values())
    assert 0 <= found.goodput <= 1
    if attempts:
        begin = min([each["time"] for each in attempts] + starts)
        assert found.wall == pytest.approx(until - begin)
    else:
        assert found.wall == 0


class Life:
    """A run that is lived through second by second, with what it writes down and what is true."""

    def __init__(self, rows_every: int = 1) -> None:
        self.rows_every = rows_every
        self.now = 1000.0
        self.true = dict.fromkeys(("steps", "data_wait", "rework", "saving", "evaluation", "startup", "down"), 0.0)
        self.attempts: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.failures: list[float] = []
        self.starts: list[float] = []

    def spend(self, name: str, seconds: float) -> None:
        self.true[name] += seconds
        self.now += seconds

    def live(self, first_step: int, last_step: int, kept_to: int, *, fails: bool) -> None:
        """Make steps of 2 s with 0.5 s of waiting, save at each tenth and measure at each twentieth."""
        self.starts.append(self.now)
        self.spend("startup", 7.0)
        self.attempts.append({"attempt": str(len(self.attempts)), "first_step": first_step, "time": self.now})
        self.spend("startup", 5.0)
        figures, row_began = (
            dict.fromkeys(("evaluation_seconds", "checkpoint_stall_seconds", "waited"), 0.0),
            self.now - 5,
        )
        for step in range(first_step + 1, last_step + 1):
            is_kept = step <= kept_to
            self.spend("data_wait" if is_kept else "rework", 0.5)
            self.spend("steps" if is_kept else "rework", 2.0)
            figures["waited"] += 0.5
            if step % 20 == 0:
                self.spend("evaluation", 4.0)
                figures["evaluation_seconds"] += 4.0
            if step % 10 == 0:
                self.spend("saving", 1.0)
                figures["checkpoint_stall_seconds"] += 1.0
            if step % self.rows_every == 0:
                # The first row's figures refer to the time from the first step on, as those of the trainer do.
                row_began = max(row_began, self.attempts[-1]["time"] + 5)
                share = figures.pop("waited") / (self.now - row_began)
                row = {"attempt": self.attempts[-1]["attempt"], "step": step, "time": self.now}
                self.rows.append(row | {"data_wait_fraction": share} | figures)
                figures, row_began = dict.fromkeys(figures, 0.0) | {"waited": 0.0}, self.now
        if fails:
            self.spend("rework", 0.7)
            self.failures += [self.now, self.now + 0.1]
            self.spend("down", 12.0)

    def found(self) -> dict[str, float]:
        return vars(time_classes(self.attempts, self.rows, self.failures, self.starts))


def test_a_run_whose_every_second_is_known_is_told_apart() -> None:
    life = Life()
    life.live(0, 57, 50, fails=True)
    life.live(50, 93, 40, fails=True)  # its newest checkpoint is damaged: the next start goes back to 40
    life.live(40, 120, 120, fails=False)
    life.true["steps"] -= 10 * 2.0  # steps 41 to 50 were made by the first start, and are lost, too
    life.true["data_wait"] -= 10 * 0.5
    life.true["rework"] += 10 * 2.5
    assert life.found() == pytest.approx(life.true)


def test_rows_that_are_rare_change_the_classes_little() -> None:
    life = Life(rows_every=5)
    life.live(0, 57, 50, fails=True)
    life.live(50, 120, 120, fails=False)
    found = life.found()
    assert sum(found.values()) == pytest.approx(sum(life.true.values()))
    for name, seconds in life.true.items():
        assert found[name] == pytest.approx(seconds, abs=6.0), name


def test_silence_after_the_last_row_is_down_time_if_it_is_to_be_counted() -> None:
    attempts = [{"attempt": "a", "first_step": 0, "time": 10.0}]
    rows = [{"attempt": "a", "step": 1, "time": 20.0}]
    assert time_classes(attempts, rows).wall == 10
    found = time_classes(attempts, rows, until=100.0)
    assert (found.steps, found.down) == (10, 80)
    assert found.goodput == pytest.approx(1 / 9)


def test_what_a_start_writes_after_the_next_one_began_takes_none_of_its_time() -> None:
    attempts = [{"attempt": name, "first_step": 0, "time": time} for name, time in (("a", 0.0), ("b", 50.0))]
    rows = [{"attempt": "a", "step": 1, "time": 90.0}, {"attempt": "b", "step": 1, "time": 80.0}]
    found = time_classes(attempts, rows)
    assert (found.rework, found.steps, found.wall) == (50, 30, 80)


def test_a_run_of_an_old_release_has_no_times() -> None:
    assert time_classes([{"attempt": "a", "first_step": 0}], [{"step": 1}]).wall == 0


def test_the_running_goodput_is_that_of_the_folder(tmp_path: Path) -> None:
    life = Life()
    life.live(0, 57, 50, fails=True)
    store = open_store(str(tmp_path))
    write_metrics(store, "0", life.rows)
    store.create(f"failures/x/{round(life.failures[0] * 1e9)}-0.json", b'{"rank": 0, "message": "", "final": false}')
    num_rows = len(life.rows)
    life.live(50, 120, 120, fails=False)
    for start in life.attempts:
        store.create(f"attempts/{start['first_step']:09d}-{start['attempt']}.json", json.dumps(start).encode())
    write_metrics(store, "1", life.rows[num_rows : num_rows + 9])  # is taken row by row, below
    running = RunningGoodput(store, "1")
    running._thread.join()
    found = [running.add(row) for row in life.rows[num_rows:]]
    whole = time_classes(life.attempts, life.rows, life.failures[:1])
    assert found[-1] == pytest.approx(whole.goodput, abs=0.02)  # but for the start-up within the first row
    assert None not in found
    assert running._classes is not None
    assert running._classes.wall == pytest.approx(whole.wall)
