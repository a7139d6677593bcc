"""Pools end their workers whatever these do."""

import time

import pytest

from pipeline.work.pools import Processes


def test_calls_that_have_not_begun_are_cancelled_when_a_pool_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    pool = Processes(1)
    futures = [pool.submit(time.sleep, 60) for _ in range(2)]  # of two processes, which take a second to start
    pool.close()
    assert all(future.done() for future in futures)
    assert [record.getMessage() for record in caplog.records] == []
