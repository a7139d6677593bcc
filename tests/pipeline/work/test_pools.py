"""A call that is cancelled before it begins ends its caller's wait, and prints nothing."""

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
