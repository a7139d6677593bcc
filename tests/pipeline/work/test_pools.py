"""Workers of this machine: how many threads they have, and a call that is cancelled before it begins."""

import os
import time
from concurrent.futures import Future

import pytest

from pipeline.work.pools import Processes


def test_a_call_that_is_cancelled_before_it_begins_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Processes(1)
    running: Future[None] = Future()
    monkeypatch.setattr(pool, "_start", lambda function, *arguments: (object(), running))
    future = pool.submit(time.sleep, 60)
    running.cancel()  # as an executor does that is shut down
    assert future.cancelled()
    assert caplog.records == []


@pytest.mark.parametrize(("wanted", "found"), [(None, "1"), ("3", "3")])
def test_a_worker_computes_on_one_thread_unless_asked_otherwise(
    monkeypatch: pytest.MonkeyPatch, wanted: str | None, found: str
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")  # of the tests
    if wanted:
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    pool = Processes(1)
    try:
        assert pool.submit(os.getenv, "OMP_NUM_THREADS").result() == found
    finally:
        pool.close()
