"""Whatever a stored file holds, it is read, or the error names the file."""

import pytest
from hypothesis import given, strategies as st

from pipeline.base.errors import CorruptShard
from pipeline.base.parsing import parse_json, parse_record
from pipeline.base.records import Record


class Point(Record):
    x: int
    names: tuple[str, ...] = ()


@given(st.builds(Point, x=st.integers(-(2**40), 2**40), names=st.tuples(st.text(), st.text())))
def test_a_record_comes_back(point: Point) -> None:
    assert parse_record(Point, point.to_json(), "a.json") == point


@given(st.binary(max_size=60))
def test_of_other_bytes_the_error_names_the_file(body: bytes) -> None:
    for parse in (lambda: parse_record(Point, body, "s3://b/a.json"), lambda: parse_json(body, "s3://b/a.json", dict)):
        try:
            parse()
        except CorruptShard as error:
            assert str(error).startswith("s3://b/a.json is damaged")  # noqa: PT017 - some bytes are JSON


@pytest.mark.parametrize("body", [b"[" * 100_000, b"\xff", b"", b"3", b'{"x": 1, "y": 2}', b'{"x": "one"}'])
def test_what_is_wrong_is_said(body: bytes) -> None:
    with pytest.raises(CorruptShard, match=r"^a\.json is damaged, or of something else \(.+\); restore it$"):
        parse_record(Point, body, "a.json")
    if not body.startswith(b"{"):
        with pytest.raises(CorruptShard, match=r"^a\.json"):
            parse_json(body, "a.json", dict)
