"""Rows of metrics: none is lost or doubled, whoever joins their objects and whenever it is killed; old ones stay."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from pipeline.base.errors import StorageError
from pipeline.store.local import LocalStore
from pipeline.store.url import open_store
from trainer.run import metrics
from trainer.run.events import attempts, read_events, write_event
from trainer.run.metrics import MetricsReader, MetricsWriter, Row, join_small, kept_rows, read_metrics, write_metrics


def row(step: int, attempt: str = "a", time: float = 0.0) -> Row:
    return {"attempt": attempt, "time": time or float(step), "step": step, "loss": 1 / step}


class Killed(BaseException):
    pass


class Dying(LocalStore):
    """Ends its process, as it were, at the n-th change."""

    def __init__(self, path: Path, num_changes: int) -> None:
        super().__init__(path)
        self.left = num_changes

    def _change(self) -> None:
        if not self.left:
            raise Killed
        self.left -= 1

    def create(self, key: str, body: bytes) -> bool:
        self._change()
        return super().create(key, body)

    def delete(self, key: str) -> None:
        self._change()
        super().delete(key)


def test_a_killed_joining_loses_and_doubles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_NUM_JOINED", 6)
    for kill_at in range(8):
        store = LocalStore(tmp_path / str(kill_at))
        wanted = [row(step) for step in range(1, 19)]
        for first in range(0, 18, 3):
            write_metrics(store, "a", wanted[first : first + 3])
        try:
            join_small(Dying(tmp_path / str(kill_at), kill_at))
        except Killed:
            assert kill_at < 7
        assert read_metrics(store) == wanted
        write_metrics(store, "a", [row(19)])
        join_small(store)
        assert read_metrics(store) == [*wanted, row(19)]
    assert len(list(store.list("metrics/"))) == 2


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=40), joined_at=st.sets(st.integers(0, 40)))
def test_joining_at_any_time_changes_no_row(tmp_path_factory, sizes: list[int], joined_at: set[int]) -> None:
    store, step, wanted = LocalStore(tmp_path_factory.mktemp("run")), 0, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_NUM_JOINED", 4)
        for number, size in enumerate(sizes):
            rows = [row(step + each) for each in range(1, size + 1)]
            write_metrics(store, "a", rows)
            step, wanted = step + size, wanted + rows
            if number in joined_at:
                join_small(store)
    assert read_metrics(store) == wanted


def test_a_run_of_three_million_steps_is_never_more_than_a_few_hundred_objects() -> None:
    sizes, num_bytes, most = [], 25 * 600, 0  # 6,000 checkpoints with 25 rows between them
    for _ in range(6_000):
        sizes.append(num_bytes)
        entries = [metrics.Entry(f"metrics/{place:09d}", size) for place, size in enumerate(sizes)]
        small = set(metrics.to_join(entries))
        if small:
            sizes = [entry.num_bytes for entry in entries if entry.key not in small]
            sizes.append(sum(entry.num_bytes for entry in entries if entry.key in small))
        most = max(most, len(sizes))
    assert sum(sizes) == 6_000 * num_bytes
    assert most < 300


def test_after_a_fallback_the_rows_of_the_new_start_count(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    write_metrics(store, "z", [row(step, "z", 10.0 + step) for step in (2, 4, 6, 8)])
    write_metrics(store, "b", [row(step, "b", 100.0 + step) for step in (4, 6)])
    assert [(each["step"], each["attempt"]) for each in read_metrics(store)] == [(2, "z"), (4, "b"), (6, "b")]
    assert len(MetricsReader(store).all_rows()) == 6


def test_rows_of_old_releases_stay_readable_and_come_first(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    lines = "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (5, 10))
    store.create("metrics/000000005.jsonl", lines.encode())
    store.create("metrics/000000010.jsonl", b'{"step": 10, "loss": 2.0}\n{"step": 15, "loss": 2.0}\n')
    write_metrics(store, "b", [row(20, "b")])
    found = read_metrics(store)
    assert [(each["step"], each["loss"]) for each in found] == [(5, 1.0), (10, 1.0), (15, 2.0), (20, 1 / 20)]


def test_kept_rows_are_those_of_the_last_way_through() -> None:
    rows = [{"attempt": name, "step": step} for name, steps in (("a", (1, 2, 3)), ("b", (2,))) for step in steps]
    assert kept_rows(rows) == [{"attempt": "a", "step": 1}, {"attempt": "b", "step": 2}]


def test_a_writer_keeps_rows_that_the_store_did_not_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    writer = MetricsWriter(store, "a")
    writer.add(row(1))

    def fails(key: str, body: bytes) -> bool:
        raise StorageError("down")

    with monkeypatch.context() as patch:
        patch.setattr(store, "create", fails)
        with pytest.raises(StorageError):
            writer.flush()
    writer.add(row(2))
    writer.close()
    assert read_metrics(store) == [row(1), row(2)]


def test_a_writer_writes_by_itself_and_joins_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(metrics, "_NUM_JOINED", 2)
    store = LocalStore(tmp_path)
    writer = MetricsWriter(store, "a")
    for step in range(1, 6):
        writer.add(row(step))
        writer._pending.result()
    assert read_metrics(store) == [row(step) for step in range(1, 6)]
    assert len(list(store.list("metrics/"))) < 5
    writer.close()


def test_a_reader_sees_objects_vanish_and_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_NUM_JOINED", 3)
    store = LocalStore(tmp_path)
    for step in (1, 2, 3):
        write_metrics(store, "a", [row(step)])
    read = store.read

    def joined_meanwhile(key: str) -> bytes:
        monkeypatch.setattr(store, "read", read)
        join_small(store)
        return read(key)

    monkeypatch.setattr(store, "read", joined_meanwhile)
    assert read_metrics(store) == [row(1), row(2), row(3)]


def test_events_come_back_in_order_of_time(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    write_event(store, "stalled", 7, rank=3, seconds=61.5)
    write_event(store, "damaged", 5, checkpoint=6)
    found = read_events(store)
    assert [(each["kind"], each["step"]) for each in found] == [("stalled", 7), ("damaged", 5)]
    assert found[0]["rank"] == 3
    assert found[0]["time"] <= found[1]["time"]


def test_starts_of_old_releases_have_no_time(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.create("attempts/000000000-x.json", b'{"attempt": "x", "first_step": 0, "ranks": []}')
    store.create("attempts/000000004-b.json", b'{"attempt": "b", "first_step": 4, "time": 9.0, "ranks": []}')
    store.create("attempts/000000004-c.json", b'{"attempt": "c", "first_step": 4, "time": 7.0, "ranks": []}')
    assert [each["attempt"] for each in attempts(store)] == ["x", "c", "b"]
