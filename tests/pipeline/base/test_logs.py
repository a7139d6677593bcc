"""The log is lines for people, or JSON that says where in a run a message arose."""

import json
import logging

import pytest
from hypothesis import given, strategies as st

from pipeline.base.logs import JsonLines, Lines, formatter
from tests.conftest import run_here


def record(message: str, *values: object) -> logging.LogRecord:
    return logging.LogRecord("trainer.run", logging.WARNING, "file.py", 1, message, values, None)


@given(st.text())
def test_a_json_line_is_one_line_of_ascii_with_the_message(message: str) -> None:
    line = JsonLines({}).format(record("%s", message))
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line)["message"] == message.encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass")


def test_a_json_line_says_where_in_a_run_it_arose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIT_LOG", "json")
    steps = iter([3, 4])
    shown = formatter(run="s3://b/run", rank=2, step=lambda: next(steps))
    first, second = (json.loads(shown.format(record("saved %d", number))) for number in (1, 2))
    assert {"time", "level", "logger", "message", "node", "process", "run", "rank", "step"} == set(first)
    assert (first["message"], first["run"], first["rank"], first["step"]) == ("saved 1", "s3://b/run", 2, 3)
    assert (first["level"], first["logger"], second["step"]) == ("warning", "trainer.run", 4)


def test_lines_fake_no_other_lines_cursor_or_direction() -> None:
    assert Lines("%(message)s").format(record("a\x1b[2J\u202eb\nERROR: c")) == r"a\x1b[2J\u202eb\nERROR: c"


def test_a_format_that_is_none_is_refused() -> None:
    done = run_here("inspect", "nothing", BIT_LOG="xml")
    assert (done.returncode, done.stderr) == (2, "error: BIT_LOG=xml is none of text, json\n")
