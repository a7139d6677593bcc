"""When Ray may start a run again, and when the run says why it cannot succeed."""

from pathlib import Path

import pytest

from pipeline.base.errors import ConfigError, Unreachable
from pipeline.store.url import open_store
from trainer.run.launch import _final_failure, _write_failure

FOLDER = "failures/abc/"


def test_an_error_that_would_come_again_is_final_at_once(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    _write_failure(store, FOLDER, 0, RuntimeError("Connection reset by peer"))
    assert _final_failure(store, FOLDER) is None
    _write_failure(store, FOLDER, 1, ConfigError("17 lanes"))
    assert _final_failure(store, FOLDER) == "17 lanes"
    assert _final_failure(store, "failures/another/") is None


@pytest.mark.parametrize("error", [Unreachable("no answer from S3"), RuntimeError("out of memory")])
def test_five_starts_without_a_checkpoint_are_enough(tmp_path: Path, error: Exception) -> None:
    store = open_store(str(tmp_path))
    for start in range(5):
        assert _final_failure(store, FOLDER) is None, start
        for rank in (0, 1):
            _write_failure(store, FOLDER, rank, error)
    assert "5 starts in a row reached no new checkpoint" in str(_final_failure(store, FOLDER))
